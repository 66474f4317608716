"""madvise and huge pages: areas (tests.kernel.drawing), resident pages, errors.

All drawings and tables were also observed on Linux; test_real_drawings repeats them on the host.
"""

import pytest

from kernel.uapi import (
    MADV_COLD,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_STACK,
)
from tests.kernel.drawing import ORIGIN, apply, check_accounts, draw, play, watch
from tests.kernel.driver import FIXED, PRIVATE, Process, configured

EAGAIN, ENOMEM, EINVAL = -11, -12, -22
P = 4096
#: Pages of a huge page.
HUGE = 512

CASES = {
    "huge pages in the middle": ("WWWW", " hh ", "WHHW"),
    "huge pages, then not": ("WWWW", "hhhh", " gg ", "HGGH"),
    "no huge pages, then again": ("WWWW", " gg ", " hh ", "WHHW"),
    "all the other way": ("WWWW", "hhhh", "gggg", "GGGG"),
    "one half after the other": ("WWWW", "hh  ", "  hh", "HHHH"),
    "like what is below": ("WWWW", "hh  ", "  h ", "HHHW"),
    "up to a hole": ("WW WW", "hhhhh", ENOMEM, "HH HH"),
    "moved": ("WW  ", "hh  ", "<<>>", "  HH"),
    "moved from the middle": ("WWWW", " gg ", " <>  ", "W GW "),
    "free changes no area": ("WWRR", "!   ", "ffff", "WWRR"),
    "free over a hole": ("WW RR", "fffff", ENOMEM, "WW RR"),
    "free of shared memory": ("SSSS", " ff ", EINVAL, "SSSS"),
    "dontneed of shared memory": ("SSSS", " dd ", "SSSS"),
    "dontneed of none": ("NNNN", " dd ", "NNNN"),
}

#: Columns of 128 pages, four per huge page; the numbers: faults, RssAnon, tables, locked pages.
TABLES = {
    "a huge page a slot": [
        ("WWWWWWWW", "0 0 0 0"),
        ("hhhhhhhh", "0 0 0 0"),
        (("!", 3, 1), "1 512 3 0"),
        (("?", 515, 1), "1 512 4 0"),
        (("!", 516, 1), "1 1024 4 0"),
        ("!!!!!!!!", "0 1024 4 0"),
    ],
    "only slots that lie inside": [
        ("  WWWWWWWWWW", "0 0 0 0"),
        ("  hhhhhhhhhh", "0 0 0 0"),
        (("!", 256, 1), "1 1 3 0"),
        (("!", 512, 1), "1 513 4 0"),
        (("!", 1024, 1), "1 1025 5 0"),
        (("!", 1380, 1), "0 1025 5 0"),
    ],
    "not where a page table is": [
        ("WWWW", "0 0 0 0"),
        (("!", 3, 1), "1 1 3 0"),
        ("hhhh", "0 1 3 0"),
        (("!", 4, 1), "1 2 3 0"),
        ("dddd", "0 0 2 0"),
        (("!", 5, 1), "1 512 3 0"),
    ],
    "advised against": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("gggg", "0 512 3 0"),
        (("!", 9, 1), "0 512 3 0"),
        ("dddd", "0 0 2 0"),
        (("!", 10, 1), "1 1 3 0"),
    ],
    "not advised": [
        ("WWWW", "0 0 0 0"),
        (("!", 7, 1), "1 1 3 0"),
    ],
    "area that grew into its slot": [
        ("WWW ", "0 0 0 0"),
        ("hhh ", "0 0 0 0"),
        (("!", 7, 1), "1 1 3 0"),
        ("   W", "0 1 3 0"),
        ("   h", "0 1 3 0"),
        (("!", 8, 1), "1 2 3 0"),
        ("dddd", "0 0 2 0"),
        (("!", 9, 1), "1 512 3 0"),
    ],
    "read-only, then written": [
        ("RRRR", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("?", 7, 1), "1 0 3 0"),
        (("?", 9, 1), "0 0 3 0"),
        ("wwww", "0 0 3 0"),
        (("!", 9, 1), "1 512 3 0"),
        ("rrrr", "0 512 3 0"),
    ],
    "shared memory has small ones": [
        ("SSSS", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 0 3 0"),
        (("?", 100, 1), "1 0 3 0"),
    ],
    "dontneed of a part": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 0, 1), "1 512 3 0"),
        (" d  ", "0 384 3 0"),
        (("?", 130, 1), "1 384 3 0"),
        (("!", 131, 1), "1 385 3 0"),
        ("dddd", "0 0 2 0"),
    ],
    "dontneed of whole slots": [
        ("WWWWWWWW", "0 0 0 0"),
        ("hhhhhhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("!", 600, 1), "1 1024 4 0"),
        ("  dddd", "0 512 4 0"),
        ("    dddd", "0 256 3 0"),
    ],
    "dontneed of a part of the huge zero page": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("?", 7, 1), "1 0 3 0"),
        (" d  ", "0 0 3 0"),
        (("!", 130, 1), "1 1 3 0"),
        (("!", 1, 1), "1 2 3 0"),
        (("?", 2, 1), "0 2 3 0"),
    ],
    "munmap of a part": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("  ~~", "0 256 3 0"),
        ("~~~~", "0 0 0 0"),
    ],
    "another protection for a part": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("  rr", "0 512 3 0"),
        (("!", 9, 1), "0 512 3 0"),
        (("?", 300, 1), "0 512 3 0"),
        ("  ww", "0 512 3 0"),
        (("!", 300, 1), "0 512 3 0"),
    ],
    "another protection for a part of the huge zero page": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("?", 7, 1), "1 0 3 0"),
        ("  rr", "0 0 3 0"),
        (("!", 1, 1), "1 1 3 0"),
        (("?", 300, 1), "0 1 3 0"),
    ],
    "free of all": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("ffff", "0 512 3 0"),
        (("!", 8, 1), "0 512 3 0"),
        ("dddd", "0 0 2 0"),
    ],
    "free of a part": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 0, 10), "1 512 3 0"),
        (("!", 200, 3), "0 512 3 0"),
        (" f  ", "0 13 3 0"),
        (("!", 300, 1), "1 14 3 0"),
        (("?", 300, 1), "0 14 3 0"),
        (("!", 5, 1), "0 14 3 0"),
    ],
    "free of a page": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("f", 100, 1), "0 1 3 0"),
        (("!", 7, 1), "0 1 3 0"),
        (("!", 8, 1), "1 2 3 0"),
        (("?", 8, 1), "0 2 3 0"),
    ],
    "free of a page of the huge zero page": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("?", 7, 1), "1 0 3 0"),
        (("f", 100, 1), "0 0 3 0"),
        (("?", 7, 1), "0 0 3 0"),
        (("!", 8, 1), "1 512 3 0"),
    ],
    "free of parts of two": [
        ("WWWWWWWW", "0 0 0 0"),
        ("hhhhhhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("!", 600, 1), "1 1024 4 0"),
        ("  ffff", "0 2 4 0"),
    ],
    "free after a mapping was split": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("r", 100, 1), "0 512 3 0"),
        (("f", 300, 1), "0 1 3 0"),
    ],
    "free of what split it": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("r", 100, 1), "0 512 3 0"),
        (("f", 100, 1), "0 1 3 0"),
        (("f", 200, 300), "0 1 3 0"),
    ],
    "free of a half that is left": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("  ~~", "0 256 3 0"),
        (" f  ", "0 1 3 0"),
    ],
    "free of all that is left": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("  ~~", "0 256 3 0"),
        ("ff  ", "0 1 3 0"),
    ],
    "free of a page, locked before": [
        ("LLLL", "512 512 3 512"),
        ("hhhh", "0 512 3 512"),
        (("!", 7, 1), "0 512 3 512"),
        ("uuuu", "0 512 3 0"),
        (("f", 7, 1), "0 512 3 0"),
    ],
    "free of a page, partly locked": [
        ("LLLL", "512 512 3 512"),
        ("hhhh", "0 512 3 512"),
        ("uuuu", "0 512 3 0"),
        ("  ll", "0 512 3 256"),
        (("f", 7, 1), "0 512 3 256"),
    ],
    "locking": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        ("llll", "1 512 3 512"),
        (("!", 7, 1), "0 512 3 512"),
        ("uuuu", "0 512 3 0"),
    ],
    "moved by whole slots": [
        ("WWWW    ", "0 0 0 0"),
        ("hhhh    ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("<<<<>>>>", "0 512 3 0"),
        (("!", 519, 1), "0 512 3 0"),
        ("    ffff", "0 512 3 0"),
    ],
    "moved elsewhere": [
        ("WWWW       ", "0 0 0 0"),
        ("hhhh       ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (" <<   >>   ", "0 512 4 0"),
        (("!", 769, 1), "0 512 4 0"),
    ],
    "moved elsewhere and freed in part": [
        ("WWWW      ", "0 0 0 0"),
        ("hhhh      ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("<<<<  >>>>", "0 512 4 0"),
        (("!", 769, 1), "0 512 4 0"),
        (("f", 768, 1), "0 2 4 0"),
    ],
    "kept and moved": [
        ("WWWW    ", "0 0 0 0"),
        ("hhhh    ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("[[[[]]]]", "0 512 3 0"),
        (("!", 3, 1), "1 1024 4 0"),
        (("!", 521, 1), "0 1024 4 0"),
        ("    dddd", "0 512 3 0"),
    ],
    "cold": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("cccc", "0 512 3 0"),
        (("c", 3, 1), "0 1 3 0"),
        (("!", 9, 1), "1 2 3 0"),
    ],
    "paged out with nowhere to go": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("pppp", "0 1 3 0"),
        (("!", 9, 1), "1 2 3 0"),
    ],
    "paged out in part": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("p", 300, 1), "0 1 3 0"),
    ],
    "paged out after it was freed": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("ffff", "0 512 3 0"),
        ("pppp", "0 0 3 0"),
        (("!", 9, 1), "1 1 3 0"),
    ],
    "paged out, freed and written again": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("ffff", "0 512 3 0"),
        (("!", 9, 1), "0 512 3 0"),
        ("pppp", "0 512 3 0"),
    ],
    "small pages paged out after they were freed": [
        ("WWWW", "0 0 0 0"),
        (("!", 7, 3), "3 3 3 0"),
        ("ffff", "0 3 3 0"),
        (("!", 8, 1), "0 3 3 0"),
        ("pppp", "0 1 3 0"),
        (("!", 7, 1), "1 2 3 0"),
    ],
    "paged out, partly locked": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("l", 7, 1), "0 512 3 1"),
        (("u", 7, 1), "0 512 3 0"),
        ("pppp", "0 1 3 0"),
    ],
    "huge zero page paged out": [
        ("WWWW", "0 0 0 0"),
        ("hhhh", "0 0 0 0"),
        (("?", 7, 1), "1 0 3 0"),
        ("pppp", "0 0 3 0"),
        (("!", 9, 1), "1 512 3 0"),
    ],
    "moved and paged out": [
        ("WWWW      ", "0 0 0 0"),
        ("hhhh      ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        ("<<<<  >>>>", "0 512 4 0"),
        ("      pppp", "0 1 4 0"),
    ],
    "parts of two moved together": [
        ("WWWWWWWW      ", "0 0 0 0"),
        ("hhhhhhhh      ", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("!", 600, 1), "1 1024 4 0"),
        ("  <<      >>  ", "0 1024 5 0"),
        (("f", 1290, 40), "0 513 5 0"),
    ],
    "two halves beside each other": [
        ("WWWWWWWW  WWWW", "0 0 0 0"),
        ("hhhhhhhh  hhhh", "0 0 0 0"),
        (("!", 7, 1), "1 512 3 0"),
        (("!", 600, 1), "1 1024 4 0"),
        ("  <<      >>  ", "0 1024 5 0"),
        ("    <<      >>", "0 1024 6 0"),
        (("f", 1535, 2), "0 2 6 0"),
        ("          ffff", "0 2 6 0"),
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [4096, 65536])
def test_drawn(page, case):
    *lines, expected = CASES[case]
    process = Process(configured(page_size=page, overcommit=0, thp="madvise"))
    assert play(process, lines) == expected
    check_accounts(process)


@pytest.mark.parametrize("case", TABLES)
def test_tables(case):
    process = Process(configured(thp="madvise"))
    assert watch(process, TABLES[case], 128) == TABLES[case]
    check_accounts(process)


# --- Arguments and areas that advice refuses -----------------------------------------------------

OTHERS = (MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT)
FLAGS = (MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK)


@pytest.mark.parametrize("advice", [*OTHERS, *FLAGS])
def test_madvise_hints_change_no_page(process, advice):
    apply(process, "WWWW")
    apply(process, "!?  ")
    before = process.levels()
    assert process.madvise(ORIGIN, 4 * P, advice) == 0
    assert process.levels() == before
    assert process.madvise(ORIGIN + 4 * P, P, advice) == ENOMEM
    check_accounts(process)


@pytest.mark.parametrize(
    ("advice", "back"),
    [
        (MADV_RANDOM, MADV_NORMAL),
        (MADV_SEQUENTIAL, MADV_NORMAL),
        (MADV_DONTFORK, MADV_DOFORK),
        (MADV_DONTDUMP, MADV_DODUMP),
        (MADV_WIPEONFORK, MADV_KEEPONFORK),
        (MADV_RANDOM, MADV_SEQUENTIAL),
    ],
)
def test_advice_splits_and_merges(process, advice, back):
    apply(process, "WWWW")
    assert process.madvise(ORIGIN + P, 2 * P, advice) == 0
    starts = [start for start, *_ in process.areas()]
    assert starts[2:5] == [ORIGIN, ORIGIN + P, ORIGIN + 3 * P]
    assert process.madvise(ORIGIN + P, 2 * P, advice) == 0
    assert process.madvise(ORIGIN, 4 * P, back) == 0
    assert draw(process, 4) == "WWWW"


@pytest.mark.parametrize(
    ("line", "advice", "error"),
    [
        ("W", 5, EINVAL),
        ("W", 7, EINVAL),
        ("W", 9, EINVAL),
        ("W", 100, EINVAL),
        ("W", -1, EINVAL),
        ("L", MADV_DONTNEED, EINVAL),
        ("L", MADV_FREE, EINVAL),
        ("L", MADV_COLD, EINVAL),
        ("L", MADV_PAGEOUT, EINVAL),
        ("L", MADV_DONTNEED_LOCKED, 0),
        ("S", MADV_FREE, EINVAL),
        ("S", MADV_WIPEONFORK, EINVAL),
        ("S", MADV_DONTNEED, 0),
        ("N", MADV_POPULATE_READ, EINVAL),
        ("N", MADV_POPULATE_WRITE, EINVAL),
        ("R", MADV_POPULATE_WRITE, EINVAL),
        ("R", MADV_POPULATE_READ, 0),
        ("N", MADV_FREE, 0),
        ("N", MADV_COLD, 0),
        ("N", MADV_DONTNEED_LOCKED, 0),
        (" ", MADV_POPULATE_READ, ENOMEM),
        (" ", MADV_WILLNEED, ENOMEM),
    ],
)
def test_madvise_refuses(process, line, advice, error):
    if line != " ":
        apply(process, line)
    assert process.madvise(ORIGIN, P, advice) == error
    assert process.mm.nr_failed == (error != 0)


@pytest.mark.parametrize(
    ("length", "advice", "error"),
    [
        (0, 4, 0),
        (0, 99, EINVAL),
        (-1, 4, EINVAL),
        (1, 4, 0),
        (2 * P, 4, ENOMEM),
        (P + 1, 4, ENOMEM),
    ],
)
def test_lengths(process, length, advice, error):
    apply(process, "W")
    assert process.madvise(ORIGIN, length, advice) == error
    assert process.madvise(ORIGIN + 1, length, advice) == EINVAL


def test_an_error_keeps_the_completed_part(process):
    apply(process, "WWLL")
    apply(process, "!!  ")
    assert process.dontneed(ORIGIN, 4 * P) == EINVAL
    assert process.mm.rss == 2  # the locked pages


def test_advice_that_needs_areas_stops_at_their_limit(process):
    apply(process, "WWWW")
    process.mm.max_map_count = process.mm.map_count + 1
    assert process.madvise(ORIGIN + P, P, MADV_DONTFORK) == EAGAIN
    assert process.madvise(ORIGIN, P, MADV_DONTFORK) == 0


# --- Populating ----------------------------------------------------------------------------------


def test_populate(process):
    apply(process, "WWWRX")
    process.touch(ORIGIN, 1, 1)
    process.touch(ORIGIN + P, 1, 0)
    assert process.madvise(ORIGIN, 5 * P, MADV_POPULATE_READ) == 0
    states = [process.page_state(ORIGIN + n * P) for n in range(5)]
    assert states == ["frame", "zero", "zero", "zero", "zero"]
    assert process.levels()[:2] == (2 + 3, 1)
    assert process.madvise(ORIGIN, 5 * P, MADV_POPULATE_WRITE) == EINVAL  # at the R, after the W
    states = [process.page_state(ORIGIN + n * P) for n in range(5)]
    assert states == ["frame", "frame", "frame", "zero", "zero"]
    assert process.levels()[:2] == (5 + 2, 3)
    process.touch(ORIGIN, 3 * P, 1)
    assert process.mm.minflt == 7


def test_populate_up_to_a_hole(process):
    apply(process, "WW W")
    assert process.madvise(ORIGIN, 4 * P, MADV_POPULATE_WRITE) == ENOMEM
    assert process.mm.rss == 2


def test_populate_huge_pages():
    process = Process(configured(thp="madvise"))
    apply(process, "WWWWWWWW", 128)
    apply(process, "hhhhhhhh", 128)
    assert process.madvise(ORIGIN + 3 * P, 600 * P, MADV_POPULATE_WRITE) == 0
    assert process.levels() == (2, 1024, 4, 0)
    assert (process.mm.flt_huge, process.mm.flt_populate) == (2, 0)


def test_huge_zero_page_is_populated_for_reading():
    process = Process(configured(thp="madvise"))
    apply(process, "WWWWWWWW", 128)
    apply(process, "hhhhhhhh", 128)
    assert process.madvise(ORIGIN + 3 * P, 600 * P, MADV_POPULATE_READ) == 0
    assert process.levels() == (2, 0, 4, 0)
    process.touch(ORIGIN + 100 * P, 1, 1)
    assert process.levels() == (3, 512, 4, 0)


# --- Huge pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thp", "flags", "advice", "pages"),
    [
        ("always", 0, None, HUGE),
        ("always", 0, MADV_NOHUGEPAGE, 1),
        ("always", MAP_STACK, None, 1),
        ("madvise", 0, None, 1),
        ("madvise", 0, MADV_HUGEPAGE, HUGE),
        ("madvise", MAP_STACK, MADV_HUGEPAGE, HUGE),
        ("never", 0, MADV_HUGEPAGE, 1),
    ],
)
def test_huge_pages_depend_on_mode_and_advice(thp, flags, advice, pages):
    process = Process(configured(thp=thp))
    process.map(pages=HUGE, flags=FIXED | flags, addr=ORIGIN)
    if advice is not None:
        assert process.madvise(ORIGIN, HUGE * P, advice) == 0
    process.touch(ORIGIN + 5 * P, 1, 1)
    assert (process.mm.rss, process.mm.minflt) == (pages, 1)


def test_new_areas_are_faulted_in_by_huge_pages():
    process = Process(configured(thp="always"))
    assert process.map(pages=HUGE + 1, flags=FIXED | MAP_POPULATE, addr=ORIGIN) == ORIGIN
    assert process.levels() == (2, HUGE + 1, 4, 0)
    addr = process.map(pages=2 * HUGE, flags=PRIVATE | MAP_LOCKED)
    assert addr % (HUGE * P) == 0
    assert process.mm.flt_huge == 3
    assert process.mm.locked_vm == 2 * HUGE


@pytest.mark.parametrize("page", [16384, 65536])
def test_huge_pages_of_larger_pages(page):
    """A slot has as many pages as a page holds 8-byte entries: 2048 and 8192."""
    slot = page // 8
    process = Process(configured(page_size=page, thp="always"))
    process.map(pages=slot, flags=FIXED, addr=ORIGIN)
    process.touch(ORIGIN + page, 1, 1)
    assert process.levels() == (1, slot, process.levels()[2], 0)
    process.dontneed(ORIGIN, page)
    assert process.mm.rss == slot - 1
    process.madvise(ORIGIN, 3 * page, MADV_FREE)
    assert process.mm.rss == 1  # only the page that was written
    assert process.page_state(ORIGIN + page) == "frame"


def test_huge_pages_hold_words():
    """Contents follow their page when a huge page is split, moved, and mapped again."""
    process = Process(configured(thp="always"))
    process.map(pages=HUGE, flags=FIXED, addr=ORIGIN)
    process.store(ORIGIN + 3 * P, 1)
    process.store(ORIGIN + 9 * P, 2)
    process.dontneed(ORIGIN + 9 * P, P)
    process.madvise(ORIGIN + 20 * P, P, MADV_FREE)
    assert [process.load(ORIGIN + n * P) for n in (3, 9)] == [1, 0]
    process.store(ORIGIN + 9 * P, 4)
    process.mremap(ORIGIN, HUGE * P, HUGE * P, 3, ORIGIN + 5 * HUGE * P)
    assert [process.load(ORIGIN + 5 * HUGE * P + n * P) for n in (3, 9)] == [1, 4]
    process.dontneed(ORIGIN + 5 * HUGE * P, HUGE * P)
    process.store(ORIGIN + 5 * HUGE * P + P, 5)  # a huge page again
    assert [process.load(ORIGIN + 5 * HUGE * P + n * P) for n in (1, 3, 9)] == [5, 0, 0]
    assert process.mm.rss == HUGE


def test_a_huge_page_needs_its_room_in_memory():
    """If memory cannot hold 512 more pages, the fault maps a small page."""
    process = Process(configured(thp="always", memory=600 * P, overcommit=1))
    process.map(pages=4 * HUGE, flags=FIXED, addr=ORIGIN)
    process.touch(ORIGIN, 1, 1)
    assert process.mm.rss == HUGE
    process.touch(ORIGIN + HUGE * P, 1, 1)
    assert (process.mm.rss, process.mm.flt_huge) == (HUGE + 1, 1)
    process.touch(ORIGIN + 2 * HUGE * P, 1, 0)  # the huge zero page needs no memory
    process.touch(ORIGIN + (2 * HUGE + 7) * P, 1, 1)  # a write splits it
    assert (process.mm.rss, process.mm.flt_huge) == (HUGE + 2, 2)
    assert process.page_state(ORIGIN + (2 * HUGE + 8) * P) == "zero"
    check_accounts(process)


def test_reset_forgets_huge_pages():
    process = Process(configured(thp="always"))
    boot = process.counters()
    for _ in range(2):
        process.map(pages=2 * HUGE, flags=FIXED, addr=ORIGIN)
        process.store(ORIGIN + 5 * P, 3)
        process.touch(ORIGIN + HUGE * P, 1, 0)
        process.mprotect(ORIGIN + 9 * P, P, 1)
        seen = process.counters()
        assert seen["rss"] == HUGE
        process.machine.reset()
        assert process.counters() == boot
        process.map(pages=2 * HUGE, flags=FIXED, addr=ORIGIN)
        assert process.load(ORIGIN + 5 * P) == 0
        assert process.madvise(ORIGIN + 5 * P, P, MADV_FREE) == 0
        process.machine.reset()


# --- MADV_FREE -----------------------------------------------------------------------------------


def test_freed_pages_stay_until_memory_is_needed(process):
    apply(process, "WW")
    process.store(ORIGIN, 4)
    process.touch(ORIGIN + P, 1, 0)
    before = process.levels()
    assert process.madvise(ORIGIN, 2 * P, MADV_FREE) == 0
    assert process.load(ORIGIN) == 4
    process.store(ORIGIN, 5)
    assert process.load(ORIGIN) == 5
    assert process.levels() == before


def test_cold_pages_stay_too():
    process = Process(configured(thp="madvise"))
    process.map(pages=HUGE, flags=FIXED, addr=ORIGIN)
    process.madvise(ORIGIN, HUGE * P, MADV_HUGEPAGE)
    process.store(ORIGIN + 7 * P, 4)
    assert process.madvise(ORIGIN, HUGE * P, MADV_COLD) == 0
    assert process.mm.rss == HUGE
    assert process.madvise(ORIGIN + 3 * P, P, MADV_COLD) == 0  # splits the huge page
    assert process.mm.rss == 1
    assert process.load(ORIGIN + 7 * P) == 4
