"""Splitting, merging and replacing areas, as drawings (tests.kernel.drawing).

The last line of a case is the expected drawing; all lines before it are operations.
"""

import pytest

from kernel.engine.jit import jit
from kernel.uapi import MAP_FIXED_NOREPLACE, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE
from tests.kernel.drawing import ORIGIN, apply, check_accounts, draw, play
from tests.kernel.driver import FIXED, PRIVATE, Process, configured

EINVAL, EBADF, ENOMEM, EEXIST, EPERM, EOPNOTSUPP = -22, -9, -12, -17, -1, -95

CASES = {
    # munmap
    "whole area": ("WWWW", "~~~~", "    "),
    "its start": ("WWWW", "~~  ", "  WW"),
    "its end": ("WWWW", "  ~~", "WW  "),
    "its middle": ("WWWW", " ~~ ", "W  W"),
    "several at once": ("WWRRXXNN", " ~~~~~~ ", "W      N"),
    "several with holes": ("WW RR  XX", " ~~~~~~~ ", "W       X"),
    "a hole": ("WW  WW", "  ~~  ", "WW  WW"),
    "beyond both ends": (" WW ", "~~~~", "    "),
    # a new area merges with the one below, above, both, none
    "below": ("WW  ", "  WW", "WWWW"),
    "above": ("  WW", "WW  ", "WWWW"),
    "both": ("WW  WW", "  WW  ", "WWWWWW"),
    "neither": ("WW  WW", "  RR  ", "WWRRWW"),
    "not across a hole": ("WW    WW", "   WW   ", "WW WW WW"),
    "no-reserve is a difference": ("WW  VV", "  VV  ", "WWVVVV"),
    "of three kinds with their own": ("RR  NN", "  NN  ", "RRNNNN"),
    # anon_vmas: areas that were written separately do not merge
    "written above, unwritten below": ("WW  WW", "    ! ", "  WW  ", "WWWWWW"),
    "written below, unwritten above": ("WW  WW", "!     ", "  WW  ", "WWWWWW"),
    "both written: with the one below": ("WW  WW", "!   ! ", "  WW  ", "WWWWww"),
    "a read gives no anon_vma": ("WW  WW", "?   ! ", "  WW  ", "WWWWWW"),
    "what merged keeps the anon_vma": (
        "WW  WW    ",
        "    !     ",
        "  WW      ",
        "        WW",
        "        ! ",
        "      WW  ",
        "WWWWWWWWww",
    ),
    "the rest of one area merges again": ("WWWWWW", "!     ", "  ~~  ", "  WW  ", "WWWWWW"),
    "written apart, then the lower rewritten": (
        "WW  WW",
        "!   ! ",
        "~~    ",
        "WW    ",
        "  WW  ",
        "WWWWWW",
    ),
    "an anon_vma is shared across protections": (
        "WWXXWW",
        "  !   ",
        "!     ",
        "    ! ",
        "  WW  ",
        "WWWWWW",
    ),
    "but not once each has its own": ("WWXXWW", "!     ", "    ! ", "  WW  ", "WWWWww"),
    "the next neighbour's is preferred": (
        "WW  WW",
        "!   ! ",
        "  XX  ",
        "  !   ",
        "~~    ",
        "WW    ",
        "!     ",
        "  WW  ",
        "WWWWWW",
    ),
    "nor with one that differs in no-reserve": (
        "WWVVWW",
        "  !   ",
        "!     ",
        "    ! ",
        "  WW  ",
        "WWWWww",
    ),
    # MAP_FIXED over existing areas
    "over the middle": ("WWWWWW", "  RR  ", "WWRRWW"),
    "over the middle by its like": ("WWWWWW", "  WW  ", "WWWWWW"),
    "over the middle, the rest written": ("WWWWWW", "!     ", "  WW  ", "WWWWWW"),
    "over the start": ("WWWW", "RR  ", "RRWW"),
    "over the end": ("WWWW", "  RR", "WWRR"),
    "over several": ("WWRR XX NN", " VVVVVVVV ", "WVVVVVVVVN"),
    "over several, merging": ("WWRRXXWW", " WWWWWW ", "WWWWWWWW"),
    # MADV_DONTNEED changes no area
    "dontneed": ("WWWWRR", " !!!  ", " dddd ", "WWWWRR"),
    "dontneed keeps the anon_vma": ("WW  WW", "!   ! ", "dd  dd", "  WW  ", "WWWWww"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_drawn(page, case):
    *lines, expected = CASES[case]
    process = Process(configured(page_size=page, overcommit=0))
    assert play(process, lines) == expected
    check_accounts(process)


FILES = """
000000400000-000000401000 rw-p 00400000 00:01 1 program
000000401000-000000402000 rw-p 00000000 00:00 0
000000402000-000000403000 rwxp 00402000 00:01 1 program
000000403000-000000404000 rw-p 00000000 00:01 1 program
000000404000-000000405000 rw-p 00404000 00:01 2 other
"""


def test_areas_of_files_share_nothing_with_their_neighbours():
    """Areas of files never merge, even if the offset in the file equals the address."""
    process = Process(configured(maps=FILES))
    process.touch(0x400000, 5 * 4096, 1)
    assert [int(v.anon_vma) for v in process.k.vma[:5]] == [1, 2, 3, 4, 5]
    process.munmap(0x401000, 4096)
    process.map(flags=FIXED, addr=0x401000)
    assert process.mm.map_count == 5


def test_areas_with_other_page_offsets_stay_apart(process):
    """Areas that were moved after being written have such page offsets."""
    apply(process, "W WXX")
    for i in (3, 4):
        process.k.vma[i].vm_pgoff += 100
    assert apply(process, " W   ") == [0]
    assert draw(process, 5) == "WWwXX"
    apply(process, "  ! ")
    apply(process, "!   ")
    assert [int(v.anon_vma) for v in process.k.vma[2:4]] == [2, 1]
    apply(process, "   !")
    assert process.k.vma[4].anon_vma == 1


@jit
def always_its_own(k, i):
    k.mm.anon_vmas += 1
    k.vma[i].anon_vma = k.mm.anon_vmas


@jit
def always_compatible(a, b):
    return True


@jit
def never_split(k, i, addr):
    return


@pytest.mark.parametrize(
    ("rule", "broken", "case"),
    [
        ("anon_vma_prepare", always_its_own, "an anon_vma is shared across protections"),
        ("anon_vmas_compatible", always_compatible, "both written: with the one below"),
        ("split_vma", never_split, "its middle"),
    ],
)
def test_drawings_detect_broken_rules(rule, broken, case, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    *lines, expected = CASES[case]
    assert play(Process(**{rule: broken}), lines) != expected


# --- Placement of mappings -----------------------------------------------------------------------


def test_addresses_are_those_of_linux(process):
    """Addresses observed on Linux 6.18: a position-independent program, no randomisation."""
    assert process.sbrk(0) == 0x555555559000
    assert process.map() == 0x7FFFF7FF6000  # below vvar, which begins at ...7000
    assert process.map(pages=3, prot=1) == 0x7FFFF7FF3000
    assert process.map(pages=512) == 0x7FFFF7C00000  # 2 MiB-aligned since Linux 6.7
    assert process.map(pages=512) == 0x7FFFF7A00000
    assert process.map(pages=513) == 0x7FFFF77FF000
    assert process.map(pages=2) == 0x7FFFF7FF1000  # the highest gap that fits


def test_multiple_of_2_mib_that_is_aligned_by_itself_moves_up(process):
    below = process.map(pages=502, flags=FIXED, addr=0x7FFFF7E00000)
    process.map(pages=1, flags=FIXED, addr=below + 502 * 4096)
    # The gap searched for is 2 MiB longer and would start at ...a00000, an aligned address.
    assert process.map(pages=512) == 0x7FFFF7C00000


def test_top_down_ends_at_a_stack_guard(process):
    """An area that grows down keeps 256 pages free below itself."""
    stack = process.areas()[-1][0]
    assert process.map(addr=stack - 257 * 4096) == stack - 257 * 4096
    process.munmap(stack - 257 * 4096, 4096)
    assert process.map(addr=stack - 256 * 4096) != stack - 256 * 4096


MMAP_BASE = 0x7FFFF7FFF000


def test_search_below_a_stack_and_from_the_bottom():
    """The guard of a stack below mmap_base limits the search; if no gap fits, it goes bottom-up."""
    stack = "7ffff0000000-7ffff0021000 rw-p 00000000 00:00 0 [stack]"
    process = Process(configured(maps=stack, mmap_base=MMAP_BASE))
    top = 0x7FFFF7FFF000 - 0x7FFFF0021000
    assert process.get_unmapped_area(0, top - 4096) == 0x7FFFF0022000
    assert process.get_unmapped_area(1, top + 4096) == 0x7FFFF0000000 - (top + 4096) - 256 * 4096
    # No gap below mmap_base is large enough: Linux then searches upwards from a third of the space.
    data = "2aaaaaaab000-2aaaaaaac000 rw-p 00000000 00:00 0 data"
    high = Process(configured(maps=data, mmap_base=MMAP_BASE))
    length = 0x7FFFFFFFF000 - 0x2AAAAAAAC000
    assert high.get_unmapped_area(0, length) == 0x2AAAAAAAC000
    assert high.get_unmapped_area(0, length + 4096) == ENOMEM
    free = Process(configured(maps="", mmap_base=MMAP_BASE))
    assert free.get_unmapped_area(0, 0x7FFFF7FFF000) == ENOMEM
    assert free.get_unmapped_area(0, 0x7FFFF7FFF000 - 0x10000) == 0x10000
    # No address below mmap_min_addr is used.
    low = Process(configured(maps="1000-2000 rw-p 0 0 0", mmap_base=MMAP_BASE))
    assert low.get_unmapped_area(0, 0x7FFFF7FFF000 - 0x2000) == ENOMEM
    # A multiple of 2 MiB that fits only without 2 MiB to spare is not aligned.
    assert free.get_unmapped_area(0, 0x7FFFF7E00000) == 0x1FF000


def test_bottom_up_keeps_the_guard_of_a_stack():
    maps = """
    2aaaaaaab000-2aaaaaaac000 rw-p 00000000 00:00 0
    7ff000000000-7ff000001000 rw-p 00000000 00:00 0 [stack]
    """
    process = Process(configured(maps=maps))
    room = 0x7FF000000000 - 0x2AAAAAAAC000 - 256 * 4096
    assert process.get_unmapped_area(0, room) == 0x2AAAAAAAC000


@pytest.mark.parametrize(
    ("hint", "pages", "where"),
    [
        (0x600000001000, 1, 0x600000001000),
        (0x600000001234, 1, 0x600000001000),  # rounded down
        (1, 1, 0x7FFFF7FF6000),  # in page 0: no hint
        (0x1000, 1, 0x10000),  # raised to mmap_min_addr
        (-4096, 1, 0x7FFFF7FF6000),
        (0x7FFFFFFFF000, 1, 0x7FFFF7FF6000),  # beyond the end
        (0x7FFFF7FF7000, 1, 0x7FFFF7FF6000),  # taken
        (0x7FFFF7FF6000, 2, 0x7FFFF7FF5000),  # taken in part
        (0x7FFFF7FF7000, 512, 0x7FFFF7DF7000),  # a failed hint is not aligned to 2 MiB
        (1, 512, 0x7FFFF7C00000),
    ],
)
def test_hint(process, hint, pages, where):
    assert process.map(addr=hint, pages=pages) == where


def test_noreplace(process):
    addr = process.map(pages=2, flags=FIXED, addr=ORIGIN)
    flags = PRIVATE | MAP_FIXED_NOREPLACE
    assert process.map(flags=flags, addr=addr + 4096) == EEXIST
    assert process.map(flags=flags, addr=addr - 4096, pages=2) == EEXIST
    assert process.map(flags=flags, addr=addr + 8192) == addr + 8192
    assert draw(process, 4) == "WWW "


# --- Refusals ------------------------------------------------------------------------------------

END = 0x7FFFFFFFF000


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((0, 0, 3, PRIVATE), EINVAL),
        ((0, -1, 3, PRIVATE), ENOMEM),
        ((0, END + 1, 3, PRIVATE), ENOMEM),
        ((0, END, 3, PRIVATE), ENOMEM),
        ((ORIGIN + 1, 4096, 3, FIXED), EINVAL),
        ((END, 4096, 3, FIXED), ENOMEM),
        ((END + 1, 4096, 3, FIXED), ENOMEM),  # checked before the alignment
        ((-4096, 4096, 3, FIXED), ENOMEM),
        ((END - 4096, 8192, 3, FIXED), ENOMEM),
        ((0x8000, 4096, 3, FIXED), EPERM),
        ((0, 4096, 3, 0x20), EINVAL),  # neither shared nor private
        ((END, 4096, 3, 0x30), ENOMEM),  # the address is checked before the type
        ((0, 4096, 3, 0x02), EBADF),  # a file, without a descriptor
        ((0, 0, 3, 0x02), EBADF),  # checked before the length
        ((0, 4096, 3, 0x23), EINVAL),  # MAP_SHARED_VALIDATE is for files
        ((0, 4096, 3, 0x121), EINVAL),  # shared, and MAP_GROWSDOWN
        ((0, 4096, 3, PRIVATE | 0x40000), EOPNOTSUPP),  # MAP_HUGETLB
    ],
)
def test_mmap_refuses(process, args, error):
    before = process.areas()
    assert process.mmap(*args) == error
    assert process.areas() == before
    assert (process.mm.nr_mmap, process.mm.nr_failed) == (1, 1)


@pytest.mark.parametrize(
    ("addr", "length", "error"),
    [
        (ORIGIN, 0, EINVAL),
        (ORIGIN + 1, 4096, EINVAL),
        (ORIGIN, -4096, EINVAL),
        (-4096, 4096, EINVAL),
        (END, 4096, EINVAL),
        (END, 0, EINVAL),
        (ORIGIN, END, EINVAL),
        (END + 4096, 4096, EINVAL),
        (ORIGIN + 0x100000, 4096, 0),  # nothing there
        (ORIGIN, 1, 0),  # lengths are rounded up
    ],
)
def test_munmap_refuses(process, addr, length, error):
    process.map(pages=2, flags=FIXED, addr=ORIGIN)
    assert process.munmap(addr, length) == error
    assert draw(process, 2) == (" W" if (addr, length) == (ORIGIN, 1) else "WW")


@pytest.mark.parametrize(
    ("addr", "length", "advice", "error"),
    [
        (ORIGIN, 4096, 5, EINVAL),
        (ORIGIN + 1, 4096, 4, EINVAL),
        (ORIGIN, -1, 4, EINVAL),
        (ORIGIN, 0, 4, 0),
        (-4096, 4096, 4, EINVAL),  # ends at 2**64
        (-8192, 4096, 4, ENOMEM),
        (-4096, 0, 4, 0),
        (END, 4096, 4, ENOMEM),
        (ORIGIN, 2**63 - 1, 4, EINVAL),  # includes [vvar], which cannot be freed
        (ORIGIN - 4096, 8192, 4, ENOMEM),
        (ORIGIN, 8192, 4, 0),
    ],
)
def test_madvise_refuses(process, addr, length, advice, error):
    process.map(pages=2, flags=FIXED, addr=ORIGIN)
    assert process.madvise(addr, length, advice) == error
    assert (process.mm.nr_madvise, process.mm.nr_failed) == (1, error != 0)


def test_madvise_refuses_locked_memory(process):
    process.map(flags=FIXED | MAP_LOCKED, addr=ORIGIN)
    assert process.dontneed(ORIGIN, 4096) == EINVAL


def test_dontneed_with_a_hole_serves_the_rest(process):
    apply(process, "WW  WW")
    apply(process, "!!  !!")
    assert process.dontneed(ORIGIN, 6 * 4096) == ENOMEM
    assert (process.mm.rss, process.mm.zapped) == (0, 4)


def test_covered(process):
    apply(process, "WWRR W")
    assert process.covered(ORIGIN, ORIGIN + 4 * 4096, 1)
    assert not process.covered(ORIGIN, ORIGIN + 4 * 4096, 3)
    assert not process.covered(ORIGIN, ORIGIN + 6 * 4096, 1)
    assert process.covered(ORIGIN + 4096 - 1, ORIGIN + 4096 + 1, 3)
    assert not process.covered(END, END + 1, 0)


# --- Limits --------------------------------------------------------------------------------------


def limited(**limits):
    """Return a process whose limits allow a few pages or areas more than at boot."""
    fresh = Process().mm
    areas = limits.pop("areas", None)
    # Overcommit 2 reserves a page for root and one for the user; committed stays below the limit.
    memory = fresh.committed + 3
    base = {"rlimit_as": fresh.total_vm, "rlimit_data": fresh.data_vm, "memory": memory}
    if limits.get("overcommit", 2) != 2:
        base["memory"] = 0
    config = {n: (int(base[n]) + v) * 4096 if n in base else v for n, v in limits.items()}
    process = Process(configured(**config))
    if areas is not None:
        process.mm.max_map_count = process.mm.map_count + areas
    return process


def test_rlimit_as_counts_everything():
    process = limited(rlimit_as=4)
    assert process.map(prot=0, pages=5) == ENOMEM
    assert process.map(prot=0, pages=2) > 0
    assert process.map(prot=1, pages=2) > 0
    assert process.map() == ENOMEM
    assert process.sbrk(4096) == ENOMEM
    assert process.mm.nr_failed == 3


def test_rlimit_data_counts_private_writable_memory():
    process = limited(rlimit_data=4)
    assert process.map(pages=5) == ENOMEM
    assert process.map(prot=1, pages=100) > 0
    assert process.map(pages=4) > 0
    assert process.sbrk(4096) == ENOMEM
    assert process.map() == ENOMEM


def test_rlimit_data_of_the_break_counts_from_start_brk():
    """brk's check of RLIMIT_DATA counts the program's data and the heap, mapped or not."""
    process = limited(rlimit_data=4)
    start = process.sbrk(0)
    process.munmap(start - 4096, 4096)  # the data
    assert process.brk(start + 4 * 4096 + 1) == start
    assert process.brk(start + 4 * 4096) == start + 4 * 4096
    assert process.map() > 0


def test_replaced_pages_do_not_count():
    process = limited(rlimit_as=4, rlimit_data=4)
    addr = process.map(pages=4)
    assert process.map(pages=4, flags=FIXED, addr=addr) == addr
    assert process.map(pages=5, flags=FIXED, addr=addr - 4096) == ENOMEM


def test_a_failed_replacement_leaves_its_splits():
    process = limited(rlimit_data=0)
    apply(process, "RRRR ")
    assert process.map(pages=3, flags=FIXED, addr=ORIGIN + 2 * 4096) == ENOMEM
    assert draw(process, 5) == "RRrr "
    # Every replaced page counts, even one that was not data.
    assert process.map(pages=2, flags=FIXED, addr=ORIGIN + 2 * 4096) > 0


@pytest.mark.parametrize("flags", [0, MAP_NORESERVE])
def test_strict_account(flags):
    """vm.overcommit_memory=2: writable mappings must fit, and MAP_NORESERVE is ignored."""
    process = limited(memory=4)
    assert process.map(prot=0, pages=100) > 0
    assert process.map(prot=1, pages=100) > 0
    assert process.map(pages=5, flags=PRIVATE | flags) == ENOMEM
    addr = process.map(pages=3, flags=PRIVATE | flags)
    assert process.sbrk(2 * 4096) == ENOMEM
    assert process.sbrk(4096) > 0
    assert process.map(flags=PRIVATE | flags) == ENOMEM
    assert process.map(pages=3, flags=FIXED | flags, addr=addr) == addr
    process.munmap(addr, 3 * 4096)
    assert process.map(pages=3) > 0


def test_committed_memory_is_not_charged_twice():
    """A replacement commits nothing, so it succeeds even if boot exceeded the commit limit."""
    process = limited(memory=-10)
    data = process.areas()[1]
    assert process.map() == ENOMEM
    assert process.map(flags=FIXED, addr=data[0]) == data[0]


def test_heuristic_overcommit():
    """vm.overcommit_memory=0: only a single request larger than memory + swap fails."""
    process = limited(memory=8, overcommit=0)
    addr = process.map(pages=8)
    assert process.map(pages=8) > 0
    assert process.map(pages=9) == ENOMEM
    assert process.map(pages=9, flags=PRIVATE | MAP_NORESERVE) > 0
    assert process.map(pages=9, prot=1) > 0
    # Replaced pages are subtracted: 12 pages over 8 request 4.
    assert process.map(pages=12, flags=FIXED, addr=addr - 4 * 4096) > 0


def test_full_overcommit():
    process = limited(memory=8, overcommit=1)
    assert process.map(pages=1000) > 0


def test_map_count_limit():
    """mmap is refused if the count exceeds the limit at entry; munmap if it would add an area."""
    process = limited(areas=2)
    apply(process, "WWWWRRRR")
    assert process.mm.map_count == process.mm.max_map_count
    assert process.munmap(ORIGIN + 4096, 4096) == ENOMEM
    assert process.map(flags=FIXED, addr=ORIGIN + 4096, prot=0) == ENOMEM
    assert process.munmap(ORIGIN + 3 * 4096, 2 * 4096) == 0  # splits two, removes two
    assert draw(process, 8) == "WWW  RRR"
    assert apply(process, "   N    ") == [0]
    assert process.map() == ENOMEM
    assert process.sbrk(4096) == ENOMEM
    assert process.munmap(ORIGIN, 4096) == 0


def test_break_grows_up_to_the_map_count_limit():
    process = limited(areas=0)
    assert process.sbrk(4096) > 0
    assert process.mm.map_count == process.mm.max_map_count + 1
    assert process.sbrk(4096) == ENOMEM


def test_brk_cannot_shrink_by_a_hole_at_the_map_count_limit():
    process = limited(areas=1)
    start = process.sbrk(0)
    process.sbrk(8 * 4096)
    process.mm.brk = start + 4 * 4096  # as if a mapping above the break had merged with the heap
    assert process.brk(start + 4096) == start + 4 * 4096


# --- The break -----------------------------------------------------------------------------------


def test_break_moves_by_bytes_and_maps_pages(process):
    start = process.sbrk(0)
    assert process.mm.nr_brk == 0  # libc keeps a copy of the break
    assert process.sbrk(1) == start
    assert process.areas()[2][:3] == (start, start + 4096, 3)
    assert process.sbrk(4095) == start + 1
    assert process.sbrk(1) == start + 4096
    assert process.areas()[2][:2] == (start, start + 8192)
    assert process.brk(0) == start + 4097
    assert process.sbrk(-4097) == start + 4097
    assert process.mm.map_count == 6
    assert (process.mm.nr_brk, process.mm.nr_failed) == (5, 0)


@pytest.mark.filterwarnings("ignore:overflow")  # int64 wraps, and plain NumPy warns about it
@pytest.mark.parametrize("increment", [-1, -(2**62), 2**62, 2**63 - 1])
def test_break_refuses(process, increment):
    start = process.sbrk(0)
    assert process.sbrk(increment) == ENOMEM
    assert process.sbrk(0) == start
    assert process.mm.nr_failed == 1


def test_break_needs_a_free_page_above(process):
    start = process.sbrk(0)
    process.map(flags=FIXED, addr=start + 4 * 4096)
    assert process.sbrk(4 * 4096) == ENOMEM
    assert process.sbrk(3 * 4096) == start
    assert process.sbrk(1) == ENOMEM
    process.munmap(start + 4 * 4096, 4096)
    assert process.sbrk(1) == start + 3 * 4096


def test_break_keeps_the_guard_of_a_stack():
    maps = """
    000000400000-000000401000 rw-p 00000000 00:01 1 program
    000000600000-000000621000 rw-p 00000000 00:00 0 [stack]
    """
    process = Process(configured(maps=maps))
    start = process.sbrk(0)
    room = 0x600000 - 256 * 4096 - start - 4096
    assert process.sbrk(room + 1) == ENOMEM
    assert process.sbrk(room) == start


def test_heap_merges_with_a_mapping_inside_it_only(process):
    """As observed: the first growth does not merge with an area that ends at start_brk."""
    start = process.sbrk(0)
    process.map(flags=FIXED, addr=start - 4096)
    process.sbrk(4096)
    assert [a[:2] for a in process.areas()[1:3]] == [(start - 4096, start), (start, start + 4096)]
    process.munmap(start, 4096)
    process.map(flags=FIXED, addr=start)
    process.sbrk(4096)
    assert process.areas()[1][:2] == (start - 4096, start + 8192)


def test_break_does_not_shrink_where_nothing_is_mapped(process):
    start = process.sbrk(0)
    process.sbrk(8 * 4096)
    process.munmap(start + 6 * 4096, 2 * 4096)
    assert process.sbrk(-4096) == ENOMEM
    assert process.sbrk(-3 * 4096) == start + 8 * 4096
    assert process.areas()[2][:2] == (start, start + 5 * 4096)


def test_populate_maps_only_the_new_pages(process):
    apply(process, "WW  ")
    assert process.map(pages=2, addr=ORIGIN + 2 * 4096, flags=FIXED | MAP_POPULATE) > 0
    assert draw(process, 4) == "WWWW"
    assert process.mm.flt_populate == 2
