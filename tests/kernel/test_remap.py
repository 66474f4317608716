"""mremap: moved areas and pages (tests.kernel.drawing), counters, errors.

All drawings were also observed on Linux; test_real_drawings repeats them on the host.
"""

import pytest

from kernel.uapi import (
    MAP_GROWSDOWN,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
)
from tests.kernel.drawing import ORIGIN, apply, check_accounts, draw, play, watch
from tests.kernel.driver import FIXED, WINDOW_BITS, Process, configured

EAGAIN, ENOMEM, EFAULT, EINVAL = -11, -12, -14, -22
P = 4096
END = 0x7FFFFFFFF000
MOVE, FIX, KEEP = MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP

CASES = {
    # in place
    "grow": ("WW  ", "==++", "WWWW"),
    "grow the end of an area": ("WWWW  ", "  ==++", "WWWWWW"),
    "grow by what it holds": ("WWWW  ", " ===++", "WWWWWW"),
    "grow until another begins": ("WW WW ", "==+", "WWWWW "),
    "grow until another written begins": ("WW WW ", "!  !  ", "==+", "WWWww "),
    "no room": ("WW R", "==++", ENOMEM, "WW R"),
    "no room in its own area": ("WWWW  ", "==++", ENOMEM, "WWWW  "),
    "grow beyond its end": ("WWWW ", " ====+", EFAULT, "WWWW  "),
    "shrink": ("WWWW", "==--", "WW  "),
    "shrink to its start": ("WWWW", " =--", "WW  "),
    "shrink over several areas": ("WW RRX", "=-----", "W     "),
    "the same length": ("WWWW", "=== ", "WWWW"),
    "grow read-only": ("RR  ", "==++", "RRRR"),
    "grow none": ("NN  ", "==++", "NNNN"),
    "grow shared": ("SS  ", "==++", "SSSS"),
    "grow locked": ("LL  ", "==++", "LLLL"),
    # elsewhere
    "move": ("WW    ", "<<  >>", "    WW"),
    "move what was written": ("WW    ", "!     ", "<<  >>", "    WW"),
    "move the middle": ("WWWW    ", " <<   >>", "W  W  WW"),
    "move and shrink": ("WWWW    ", "<<<   >>", "   W  WW"),
    "move and grow": ("WWWW    ", "<<  >>>>", "  WWWWWW"),
    "move and grow over others": ("WWWWRRRR", "<<  >>>>", "  WWWWWW"),
    "move and grow what was written": ("WWWWRRRR", "!       ", "<<  >>>>", "  WWwwww"),
    "beside its like": ("WW  WW  ", "<<    >>", "    WWWW"),
    "beside its like, written": ("WW  WW  ", "!       ", "<<    >>", "    WWww"),
    "beside its like, both written": ("WW  WW  ", "!   !   ", "<<    >>", "    WWww"),
    "below its like, apart by two": ("    WW  WW", ">>      <<", "WW  WW    "),
    "over its like": ("WWWW  WW", "  >>  <<", "WWWW    "),
    "not beside no reserve": ("WW  VV  ", "<<    >>", "    VVWW"),
    "next to itself": ("WWWWWW", "  <<>>", "WW  WW"),
    "next to itself, written": ("WW  WW", "!     ", "<<>>  ", "  WWww"),
    "next to itself, unwritten": ("WW  WW", "<<>>  ", "  WWWW"),
    "there and back": ("WWWW    ", " <<  >> ", " >>  << ", "WWWW    "),
    "there and back, written": ("WWWW    ", "!!!!    ", " <<  >> ", " >>  << ", "WWWW    "),
    "shared keeps its offset": ("SSSS    ", " <<  >> ", "S  S SS "),
    "shared, there and back": ("SSSS    ", " <<  >> ", " >>  << ", "SSSS    "),
    "read-only, still accounted": ("WW    ", "!     ", "rr    ", "<<  >>", "    QQ"),
    "several areas": ("WWRR    ", "<<<<>>>>", "    WWRR"),
    "several areas, written": ("WWRR    ", "!       ", "<<<<>>>>", "    WWRR"),
    "several areas, with holes": ("W  R    ", "<<<<>>>>", "    W  R"),
    "several areas, shrunk to more than one": ("WWRR    ", "<<<<>>> ", EFAULT, "WWRR    "),
    "several areas, shrunk to one": ("WWRR    ", "<<<<>>  ", "    WW  "),
    "several areas to a longer place": ("W  R     ", "<<<<>>>>>", EFAULT, "W  R     "),
    "from a hole": ("  WW    ", "<<<<>>>>", EFAULT, "  WW    "),
    # MREMAP_DONTUNMAP
    "keep": ("WW    ", "[[  ]]", "WW  WW"),
    "keep, written": ("WW    ", "!     ", "[[  ]]", "WW  WW"),
    "keep, the middle": ("WWWW    ", "!       ", " [[  ]] ", "WWWW WW "),
    "keep, next to itself": ("WW  ", "[[]]", "WWWW"),
    "keep, next to itself, written": ("WW  ", "!   ", "[[]]", "WWww"),
    "keep, below itself": ("  WW", "]][[", "WWWW"),
    "keep, in its own end": ("WW    ", "[[  ]]", " [] ", "WWW WW"),
    "keep, locked": ("LL    ", "[[  ]]", "WW  LL"),
    "keep, the middle of a locked area": ("LLLL    ", " [[  ]] ", "WWWW LL "),
    "keep, no reserve": ("VV    ", "[[  ]]", "VV  VV"),
    "keep, shared": ("SS    ", "[[  ]]", "SS  SS"),
    "keep, over another": ("WW  RR", "[[  ]]", "WW  WW"),
    "keep, next to none": ("WWNN  ", "  [[]]", "WWNNNN"),
    "keep, several areas": ("WWRR      ", "[[[   ]]] ", "WWRR  WWR "),
    # The anon_vma moves with the pages of a whole area, so that the remaining area can merge again.
    "kept and fresh": ("WW    ", "!     ", "[[  ]]", "   WW ", "WW    ", "WW WWw"),
    "kept and written again": ("WW    ", "!     ", "[[  ]]", "!     ", "  WW  ", "WWWWww"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [4096, 65536])
def test_drawn(page, case):
    *lines, expected = CASES[case]
    process = Process(configured(page_size=page, overcommit=0))
    assert play(process, lines) == expected
    if "locked" not in case:  # MREMAP_DONTUNMAP unlocks the old area without subtracting its pages
        check_accounts(process)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((ORIGIN + 1, P, P, MOVE, 0), EINVAL),
        ((ORIGIN, P, P, 8, 0), EINVAL),
        ((ORIGIN, P, P, MREMAP_FIXED, ORIGIN + 8 * P), EINVAL),  # without MREMAP_MAYMOVE
        ((ORIGIN, P, P, MREMAP_DONTUNMAP, 0), EINVAL),
        ((ORIGIN, P, 0, MOVE, 0), EINVAL),
        ((ORIGIN, 0, P, MOVE, 0), EINVAL),  # an old length of 0 requires a shared mapping
        ((ORIGIN, 0, P, FIX, ORIGIN + 8 * P), EINVAL),
        ((ORIGIN, P, -P, MOVE, 0), EINVAL),
        ((ORIGIN, P, END + P, MOVE, 0), EINVAL),
        ((ORIGIN, -P, P, MOVE, 0), EINVAL),
        ((ORIGIN, P, END, MOVE, 0), ENOMEM),
        ((ORIGIN, P, 1 << 46, 0, 0), ENOMEM),
        ((ORIGIN, P, P, FIX, ORIGIN + 1), EINVAL),
        ((ORIGIN, P, P, FIX, ORIGIN), EINVAL),  # overlaps
        ((ORIGIN, 2 * P, 2 * P, FIX, ORIGIN + P), EINVAL),
        ((ORIGIN + P, 2 * P, 2 * P, FIX, ORIGIN), EINVAL),
        ((ORIGIN, P, 2 * P, FIX, ORIGIN - P), EINVAL),
        ((ORIGIN, P, P, FIX, END), EINVAL),
        ((ORIGIN, P, P, FIX, -P), EINVAL),
        ((ORIGIN, P, 2 * P, KEEP, 0), EINVAL),
        ((ORIGIN, 2 * P, P, KEEP, ORIGIN + 8 * P), EINVAL),
        ((ORIGIN, P, P, KEEP, ORIGIN + 1), EINVAL),
        ((ORIGIN, 4 * P, 5 * P, FIX, ORIGIN + 8 * P), EFAULT),  # from two areas
        ((ORIGIN, 4 * P, 5 * P, MOVE, 0), EFAULT),
        ((ORIGIN, 5 * P, 5 * P, KEEP, 0), EFAULT),
        ((ORIGIN + 4 * P, P, P, 0, 0), EFAULT),  # nothing there
        ((ORIGIN + 4 * P, P, 2 * P, MOVE, 0), EFAULT),
        ((ORIGIN + 4 * P, P, P, FIX, ORIGIN + 8 * P), EFAULT),
        ((0, P, P, MOVE, 0), EFAULT),
        ((-P, P, P, MOVE, 0), EFAULT),
    ],
)
def test_mremap_refuses(process, args, error):
    apply(process, "WWRR")
    assert process.mremap(*args) == error
    assert draw(process, 12) == "WWRR        "
    assert (process.mm.nr_mremap, process.mm.nr_failed) == (1, 1)
    check_accounts(process)


def test_an_unchanged_length_is_not_checked(process):
    """Equal lengths in place succeed even if part of the range is not mapped."""
    apply(process, "WW R")
    for length in (P, 2 * P - 1, 5 * P):
        assert process.mremap(ORIGIN, length, length, 0, 0) == ORIGIN
    assert draw(process, 4) == "WW R"


def test_lengths_are_rounded_up(process):
    apply(process, "WWWW")
    assert process.mremap(ORIGIN, 4 * P - 1, 3 * P - 5, 0, 0) == ORIGIN
    assert process.mremap(ORIGIN, P + 1, P + 2, FIX, ORIGIN + 6 * P) == ORIGIN + 6 * P
    assert draw(process, 8) == "  W   WW"


def test_the_place_is_unmapped_before_anything_else_is_refused(process):
    apply(process, "WW RRRR ")
    assert process.mremap(ORIGIN, P, 0, FIX, ORIGIN + 3 * P) == EINVAL
    assert process.mremap(ORIGIN + 2 * P, P, 2 * P, FIX, ORIGIN + 3 * P) == EFAULT
    assert draw(process, 8) == "WW RRRR "
    process.setrlimit(RLIMIT_AS, int(process.mm.total_vm) * P)
    assert process.mremap(ORIGIN, 2 * P, 2 * P, KEEP | MREMAP_FIXED, ORIGIN + 3 * P) > 0
    assert draw(process, 8) == "WW WWRR "
    assert process.mremap(ORIGIN, 2 * P, 2 * P, KEEP | MREMAP_FIXED, ORIGIN + 2 * P) == ENOMEM
    assert draw(process, 8) == "WW  WRR "


def test_mremap_moves_to_a_free_gap(process):
    apply(process, "WWR")
    process.store(ORIGIN + P, 11)
    addr = process.mremap(ORIGIN, 2 * P, 4 * P, MOVE, 0)
    assert addr == 0x7FFFF7FF7000 - 4 * P
    assert process.load(addr + P) == 11
    assert draw(process, 3) == "  R"
    # A length that is a multiple of 2 MiB moves to an address that is one.
    addr = process.mremap(addr, 4 * P, 2 << 20, MOVE, 0)
    assert addr == 0x7FFFF7C00000
    assert process.load(addr + P) == 11


def test_dontunmap_takes_its_address_as_a_hint(process):
    apply(process, "WW    RR")
    assert process.mremap(ORIGIN, 2 * P, 2 * P, KEEP, ORIGIN + 3 * P) == ORIGIN + 3 * P
    assert process.mremap(ORIGIN, 2 * P, 2 * P, KEEP, ORIGIN + 5 * P) == 0x7FFFF7FF5000
    assert draw(process, 8) == "WW WW RR"


def test_shared_memory_can_be_doubled(process):
    apply(process, "SSSS")
    assert process.mremap(ORIGIN + P, 0, 2 * P, FIX, ORIGIN + 6 * P) == ORIGIN + 6 * P
    assert process.mremap(ORIGIN, 0, P, 0, 0) == ENOMEM
    assert draw(process, 8) == "SSSS  SS"
    check_accounts(process)


# --- Pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [4096, 65536], indirect=True)
@pytest.mark.parametrize("flags", [0, MREMAP_DONTUNMAP])
def test_pages_move_with_the_mapping(process, flags):
    page = process.page
    new = ORIGIN + 9 * page
    process.map(pages=3, flags=FIXED, addr=new)
    process.store(new + page + 16, 99)  # stale words that must not remain visible
    process.map(pages=3, flags=FIXED, addr=ORIGIN)
    process.store(ORIGIN, 1)
    process.touch(ORIGIN + page, 1, 0)
    process.touch(ORIGIN + 2 * page, 1, 1)
    before = process.levels()
    assert process.mremap(ORIGIN, 3 * page, 3 * page, FIX | flags, new) == new
    assert process.levels()[:2] == (before[0], 2)
    states = [process.page_state(new + n * page) for n in range(3)]
    assert states == ["frame", "zero", "frame"]
    assert [process.load(new + n) for n in (0, page, page + 16)] == [1, 0, 0]
    assert process.levels()[0] == before[0]
    if flags:
        assert [process.load(ORIGIN + n * page) for n in range(3)] == [0] * 3
        assert process.mm.flt_read == 1 + 3
    else:
        assert "nothing is mapped" in process.death("load", ORIGIN)


def test_moved_pages_leave_no_words_behind(process):
    apply(process, "WW  ")
    process.store(ORIGIN + 8, 5)
    assert process.mremap(ORIGIN, P, P, FIX, ORIGIN + 2 * P) == ORIGIN + 2 * P
    process.map(flags=FIXED, addr=ORIGIN)
    process.store(ORIGIN, 6)
    assert [process.load(ORIGIN + n) for n in (0, 8)] == [6, 0]
    assert process.load(ORIGIN + 2 * P + 8) == 5
    # And in the other direction, replacing an existing mapping.
    assert process.mremap(ORIGIN + 2 * P, P, P, FIX, ORIGIN) == ORIGIN
    assert [process.load(ORIGIN + n) for n in (0, 8)] == [0, 5]


def test_protection_moves_with_the_mapping(process):
    process.map(flags=FIXED, addr=ORIGIN)
    process.touch(ORIGIN, 1, 1)
    process.mprotect(ORIGIN, P, 1)
    process.mremap(ORIGIN, P, P, FIX, ORIGIN + 5 * P)
    assert "does not permit" in process.death("touch", ORIGIN + 5 * P, 1, 1)
    process.k.task.sig = 0
    process.touch(ORIGIN + 5 * P, 1, 0)
    assert process.mm.minflt == 1


#: Columns of 128 pages, four per page table; the numbers: faults, RssAnon, tables, locked pages.
TABLES = {
    "an empty area takes no table": [("WWWW    ", "0 0 0 0"), ("<<<<>>>>", "0 0 0 0")],
    "a page takes its table": [
        ("WW      ", "0 0 0 0"),
        (("!", 0, 1), "1 1 3 0"),
        ("<<  >>  ", "0 1 3 0"),
        ("    ~~  ", "0 0 0 0"),
    ],
    "within one table": [
        ("W   ", "0 0 0 0"),
        (("!", 3, 9), "9 9 3 0"),
        ("<  >", "0 9 3 0"),
        ("   ~", "0 0 0 0"),
    ],
    "aligned slots carry their tables": [
        ("WWWWWWWW        ", "0 0 0 0"),
        (("!", 3, 2), "2 2 3 0"),
        (("?", 600, 1), "1 2 4 0"),
        ("<<<<<<<<>>>>>>>>", "0 2 4 0"),
    ],
    "a first slot that is shared with nothing counts as whole": [
        (" WWW    WWWW", "0 0 0 0"),
        (("!", 128, 2), "2 2 3 0"),
        (" <<<     >>>", "0 2 3 0"),
    ],
    "also where it holds more": [
        (" WWWWWWW         ", "0 0 0 0"),
        (("!", 128, 2), "2 2 3 0"),
        (" <<<<<<<     >>>>>>>", "0 2 3 0"),
    ],
    "but not when something is there": [
        ("WWWW        ", "0 0 0 0"),
        (("!", 128, 2), "2 2 3 0"),
        (" <<<     >>>", "0 2 4 0"),
    ],
    "dontunmap leaves tables": [
        ("WWWW    ", "0 0 0 0"),
        (("!", 3, 2), "2 2 3 0"),
        ("[[[[]]]]", "0 2 3 0"),
        (("!", 3, 1), "1 3 4 0"),
    ],
    "grown locked areas are faulted in": [
        ("L   ", "128 128 3 128"),
        ("=+  ", "128 256 3 256"),
        ("<< >", "0 128 3 128"),
    ],
    "dontunmap unlocks what stays, uncounted": [
        ("L   ", "128 128 3 128"),
        ("[  ]", "0 128 3 256"),
        ("u   ", "0 128 3 256"),
        ("   ~", "0 0 3 128"),
    ],
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(process, case):
    assert watch(process, TABLES[case], 128) == TABLES[case]


def test_a_far_place_gets_its_highest_table_even_for_nothing(process):
    """mremap allocates a PUD page at the new address before it checks a slot for pages to move."""
    far = ORIGIN + (1 << 39)
    process.map(pages=2, flags=FIXED, addr=ORIGIN)
    process.touch(ORIGIN, 1, 1)
    assert process.mremap(ORIGIN + P, P, P, FIX, far) == far
    assert (process.mm.nr_ptes, process.mm.nr_pmds, process.mm.nr_puds) == (2, 2, 2)
    process.munmap(far, P)
    assert (process.mm.nr_ptes, process.mm.nr_pmds, process.mm.nr_puds) == (1, 1, 1)


def test_a_gigabyte_moves_by_its_pmd_page(process):
    gib = 1 << 30
    process.map(pages=1 << 18, flags=FIXED, addr=ORIGIN)
    for n in range(3):
        process.store(ORIGIN + n * (gib // 4), n + 1)
    before = process.levels()
    assert process.mremap(ORIGIN, gib, gib, FIX, ORIGIN + 4 * gib) == ORIGIN + 4 * gib
    assert process.levels() == before
    assert [process.load(ORIGIN + 4 * gib + n * (gib // 4)) for n in range(3)] == [1, 2, 3]
    assert process.munmap(ORIGIN + 4 * gib, gib) == 0
    assert process.levels()[1:3] == (0, 0)


# --- Limits --------------------------------------------------------------------------------------


def test_growth_is_limited(process):
    apply(process, "WW  ")
    process.setrlimit(RLIMIT_AS, (int(process.mm.total_vm) + 1) * P)
    assert process.mremap(ORIGIN, 2 * P, 4 * P, 0, 0) == ENOMEM
    assert process.mremap(ORIGIN, 2 * P, 4 * P, MOVE, 0) == ENOMEM
    assert process.mremap(ORIGIN, 2 * P, 3 * P, 0, 0) == ORIGIN
    assert process.mremap(ORIGIN, P, P, KEEP, 0) == ENOMEM
    process.setrlimit(RLIMIT_AS, 2**63 - 1)
    process.setrlimit(RLIMIT_DATA, int(process.mm.data_vm) * P)
    assert process.mremap(ORIGIN, 3 * P, 4 * P, 0, 0) == ENOMEM
    assert draw(process, 4) == "WWW "


def test_growth_of_locked_areas_is_limited(process):
    apply(process, "LL  ")
    process.setrlimit(RLIMIT_MEMLOCK, 3 * P)
    assert process.mremap(ORIGIN, 2 * P, 4 * P, MOVE, 0) == EAGAIN
    assert process.mremap(ORIGIN, 2 * P, 3 * P, 0, 0) == ORIGIN
    assert process.mm.locked_vm == 3


def test_growth_is_charged():
    process = Process(configured(memory=1000 * P, overcommit=2))
    free = int(process.mm.commit_limit - process.mm.committed)
    process.map(pages=free // 2, flags=FIXED, addr=ORIGIN)
    process.map(prot=1, flags=FIXED, addr=ORIGIN + (free // 2) * P)
    for flags in (0, MOVE):
        assert process.mremap(ORIGIN, free // 2 * P, (free + 9) * P, flags, 0) == ENOMEM
    assert process.mremap(ORIGIN, free // 2 * P, free // 2 * P, KEEP, 0) == ENOMEM
    assert process.mremap(ORIGIN, P, P, KEEP, 0) > 0
    process.munmap(ORIGIN + (free // 2) * P, P)
    assert process.mremap(ORIGIN, free // 2 * P, (free + 9) * P, 0, 0) == ENOMEM
    assert process.mremap(ORIGIN, free // 2 * P, (free // 2 + 9) * P, 0, 0) == ORIGIN
    check_accounts(process)


def test_mremap_at_the_map_count_limit(process):
    """A move needs room for several areas; a change in place does not."""
    apply(process, "WW  R")
    process.mm.max_map_count = process.mm.map_count + 3
    assert process.mremap(ORIGIN, 2 * P, 4 * P, 0, 0) == ORIGIN
    assert process.mremap(ORIGIN, 4 * P, 8 * P, MOVE, 0) == ENOMEM
    assert process.mremap(ORIGIN, P, P, FIX, ORIGIN + 9 * P) == ENOMEM
    assert process.mremap(ORIGIN, 4 * P, 2 * P, 0, 0) == ORIGIN
    process.mm.max_map_count += 1
    assert process.mremap(ORIGIN, P, P, FIX, ORIGIN + 9 * P) == ENOMEM  # counts two more
    assert process.mremap(ORIGIN, 2 * P, 8 * P, MOVE, 0) > 0


def test_moves_that_split_at_the_map_count_limit(process):
    """The munmap that a move requires may be refused first."""
    apply(process, "WWW RRR    ")
    process.mm.max_map_count = process.mm.map_count + 6
    assert process.mremap(ORIGIN + P, P, 4 * P, MOVE, 0) > 0
    process.mm.max_map_count = process.mm.map_count + 5
    assert process.mremap(ORIGIN, P, P, FIX, ORIGIN + 5 * P) == ENOMEM


def test_a_move_may_not_collide_in_the_window(process):
    apply(process, "WW")
    beside = ORIGIN + (1 << WINDOW_BITS)
    assert process.death("mremap", ORIGIN, P, P, FIX, beside + P).startswith("SIGSYS")
    process.k.task.sig = 0
    process.map(flags=FIXED, addr=beside + 3 * P)
    assert process.death("mremap", ORIGIN, 2 * P, 4 * P, 0, 0).startswith("SIGSYS")


def test_the_kernels_own_mappings_move_but_do_not_grow(process):
    vdso, end, *_ = process.areas()[-2]
    assert process.mremap(vdso, end - vdso, end - vdso + P, MOVE, 0) == EFAULT
    assert process.mremap(vdso, end - vdso, end - vdso, KEEP, 0) == EINVAL
    assert process.mremap(vdso, end - vdso, end - vdso, FIX, ORIGIN) == ORIGIN


def test_a_stack_moves_with_its_guard(process):
    process.map(pages=2, flags=FIXED | MAP_GROWSDOWN, addr=ORIGIN)
    assert process.mremap(ORIGIN, 2 * P, 2 * P, FIX, ORIGIN + 800 * P) == ORIGIN + 800 * P
    process.touch(ORIGIN + 790 * P, 1, 1)
    assert process.kinds()[2] == (ORIGIN + 790 * P, ORIGIN + 802 * P, "rw-p gd")
    check_accounts(process)
