"""Physical memory from the view of a process: swapping, advice, locks, OOM kill."""

import re

import pytest

from kernel import uapi
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import disabled
from kernel.types import ACTIVE, INACTIVE, LAZY, VM_MAYREAD, VM_MAYWRITE
from tests.kernel.frames.process import HUGE, PAGE, Process, at

PRIVATE = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
SHARED = uapi.MAP_SHARED | uapi.MAP_ANONYMOUS


def mapped(memory=1, swap=1, *, flags=PRIVATE, **settings):
    """Return a process with an area of 2048 pages at page 0; memory and swap in MiB."""
    settings = {"min_free": 1 << 16, "rlimit_memlock": 8 << 20} | settings
    process = Process(memory, swap, **settings)
    process.call(uapi.NR_MMAP, at(0), 2048 * PAGE, 3, flags | uapi.MAP_FIXED)
    return process


def advise(process, page, pages, advice):
    assert process.call(uapi.NR_MADVISE, at(page), pages * PAGE, advice) == 0


def listed(process, state):
    """Return the pages on a list from head to tail."""
    found, pfn = [], int(process.k.lru[state].head)
    while pfn >= 0:
        f = process.k.frame[pfn]
        found.append((int(f.page_high) << 31) + int(f.page_low) - (at(0) >> 12))
        pfn = int(f.next)
    return found


def test_a_page_from_swap_is_a_major_fault_and_no_minor_one():
    process = mapped()
    process.store(0, 1)
    process.touch(1, 299)
    assert process.state(0) == "swap"
    before = int(process.mm.minflt)
    assert process.load(0) == 1
    assert (process.mm.majflt, process.mm.minflt) == (1, before)
    assert process.mm.minflt == process.mm.flt_write == 300


@pytest.mark.parametrize("how", ["populate", "mlock"])
def test_pages_are_brought_back_ahead_of_use_too(how):
    process = mapped()
    process.store(3, 7)
    advise(process, 3, 1, uapi.MADV_PAGEOUT)
    assert process.state(3) == "swap"
    if how == "populate":
        advise(process, 3, 1, uapi.MADV_POPULATE_WRITE)
    else:
        assert process.call(uapi.NR_MLOCK, at(3), PAGE) == 0
    assert process.state(3) == "frame"
    assert (process.mm.majflt, process.mm.flt_populate, process.mm.minflt) == (1, 0, 1)
    assert process.load(3) == 7


def test_cold_pages_leave_the_active_list_and_lose_their_reference():
    process = mapped(swap=4)
    for step in range(60):  # forty pages that are accessed again and again, and a stream
        process.touch(0, 40)
        process.touch(100 + 20 * step, 20)
    active = [page for page in listed(process, ACTIVE) if page < 40]
    assert active
    advise(process, 0, 40, uapi.MADV_COLD)
    assert not any(page < 40 for page in listed(process, ACTIVE))
    assert set(active) <= set(listed(process, INACTIVE))


def test_paging_out_stops_when_the_swap_area_is_full():
    process = mapped(swap=16 * PAGE / 2**20)
    process.touch(0, 40)
    advise(process, 0, 40, uapi.MADV_PAGEOUT)
    assert [process.state(page) for page in (0, 15, 16, 39)] == ["swap", "swap", "frame", "frame"]


def test_lazily_freed_pages_are_reclaimed_first():
    process = mapped(swap=0)
    for page in range(30):
        process.store(page, 5)
    advise(process, 10, 10, uapi.MADV_FREE)
    assert sorted(listed(process, LAZY)) == list(range(10, 20))
    process.store(12, 6)
    process.touch(100, 216)
    assert process.k.vmstat.pglazyfreed == 9
    assert [process.load(page) for page in (9, 10, 12, 19, 20)] == [5, 0, 6, 0, 5]


def test_a_lazily_freed_page_that_was_read_is_reclaimed_at_the_second_scan():
    process = mapped(swap=0)
    process.touch(10, 10)
    advise(process, 10, 10, uapi.MADV_FREE)
    process.load(15)
    # Populate causes no accesses, which would evict the translation.
    advise(process, 100, 234, uapi.MADV_POPULATE_WRITE)
    assert process.states(10, 10) == {""}


def test_lazily_freeing_a_swapped_page_frees_its_slot():
    process = mapped()
    process.store(0, 5)
    advise(process, 0, 1, uapi.MADV_PAGEOUT)
    assert process.k.phys.swap_used == 1
    advise(process, 0, 1, uapi.MADV_FREE)
    assert process.k.phys.swap_used == 0
    assert process.load(0) == 0


def test_locked_pages_are_never_reclaimed():
    process = mapped(swap=4)
    process.touch(0, 50)
    assert process.call(uapi.NR_MLOCK, at(0), 50 * PAGE) == 0
    process.touch(100, 600)
    assert process.states(0, 50) == {"frame"}
    assert process.call(uapi.NR_MUNLOCK, at(0), 50 * PAGE) == 0
    process.touch(800, 600)
    assert process.states(0, 50) == {"swap"}


def test_pages_of_shared_memory_take_no_frames():
    process = mapped(flags=SHARED)
    process.touch(0, 1)
    free = int(process.k.zone[0].free)
    process.touch(1, 400)
    assert process.mm.rss_file == 401
    assert int(process.k.zone[0].free) == free


def test_a_private_copy_of_a_file_page_takes_a_frame():
    process = mapped()
    process.k.file[3].id = 1000
    process.k.file[3].may = VM_MAYREAD | VM_MAYWRITE
    flags = uapi.MAP_PRIVATE | uapi.MAP_FIXED
    assert process.call(uapi.NR_MMAP, at(0), 4 * PAGE, 3, flags, 3) == at(0)
    process.touch(0, 1, 0)
    assert (process.mm.rss_file, process.mm.rss) == (1, 0)
    free = int(process.k.zone[0].free)
    advise(process, 0, 2, uapi.MADV_POPULATE_WRITE)
    assert (process.mm.rss_file, process.mm.rss) == (0, 2)
    assert int(process.k.zone[0].free) == free - 2


def test_freeing_a_huge_page_frees_its_deposited_table():
    process = mapped(memory=8, thp="always")
    process.touch(0, 1)
    free = int(process.k.zone[0].free)
    advise(process, 0, HUGE, uapi.MADV_DONTNEED)
    assert int(process.k.zone[0].free) == free + HUGE + 1


def test_a_huge_page_is_paged_out_page_by_page():
    process = mapped(memory=8, swap=8, thp="always")
    process.touch(0, 300)
    advise(process, 0, HUGE, uapi.MADV_PAGEOUT)
    assert process.states(0, 300) == {"swap"}
    assert process.states(300, 212) == {"zero"}, "never written"
    assert (process.mm.rss, process.k.phys.swap_used) == (0, 300)


def test_page_tables_take_frames():
    process = mapped()
    free = int(process.k.zone[0].free)
    process.touch(0, 1, 0)
    assert int(process.k.zone[0].free) == free - 3, "the zero page is no frame of the process"
    process.touch(HUGE, 1, 0)
    assert int(process.k.zone[0].free) == free - 4


def test_a_huge_page_fails_in_a_fragmented_block_and_small_pages_are_used():
    process = mapped(memory=8, thp="always", fragmentation=100)
    process.touch(0, 3)
    assert process.k.vmstat.thp_fault_fallback == 1
    assert (process.mm.flt_huge, process.mm.rss) == (0, 3)
    whole = mapped(memory=8, thp="always")
    whole.touch(0, 3)
    assert (whole.mm.flt_huge, whole.mm.rss) == (1, HUGE)


def test_an_oom_kill_is_reported_and_frames_stay_accounted_for():
    process = mapped(swap=0)
    process.touch(0, 2000)
    assert process.killed
    assert process.why().startswith("SIGKILL: out of memory on a page fault at 0x")
    assert process.k.vmstat.oom_kill == 1
    process.machine.reset()
    assert process.k.zone[0].free == process.k.phys.nr_frames
    assert process.k.vmstat.pgalloc == 0
    process.verify(0, 1 << 62)


@pytest.mark.parametrize("page_size", [16384, 65536])
@pytest.mark.skipif(disabled(), reason="a huge page of these has thousands of pages")
def test_larger_pages_have_larger_blocks(page_size):
    config = {"frames": True, "page_size": page_size, "memory": 1 << 30}
    zone = Machine(KernelConfig(window_bits=36, zone_boundary=0, **config)).k.zone
    assert int(zone["free"].sum()) == (1 << 30) // page_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "frames needs memory"),
        ({"memory": 1 << 20, "layout_only": True}, "exclude each other"),
        ({"memory": 1 << 36}, "at most 8388608 pages of 4096"),
        ({"memory": 1 << 20, "swap": 1 << 36}, "swap is 68719476736 bytes"),
        ({"memory": 1 << 20, "fragmentation": 101}, "fragmentation must be 0 to 100 %, not 101"),
        ({"memory": 1 << 20, "zone_boundary": 4096}, "zone_boundary must be a multiple of 4194304"),
        ({"memory": 1 << 16}, "min_free (131072) must be less than memory (65536)"),
        ({"memory": 1 << 20, "min_free": -1}, "min_free"),
    ],
)
def test_impossible_memory_is_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        KernelConfig(frames=True, **settings)


def test_page_tables_cannot_be_assumed():
    machine = Machine(KernelConfig(frames=True, memory=1 << 24, window_bits=32))
    with pytest.raises(ValueError, match="cannot be assumed with frames"):
        machine.assume_tables(0, 1 << 21)
