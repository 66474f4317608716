"""TLBs of a process: every access looks them up, and every change of a mapping flushes them."""

from kernel import uapi
from kernel.types import L1_BASE, L1_HUGE, L2
from tests.kernel.frames.process import HUGE, PAGE, Process, at

PRIVATE = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS


def mapped(**settings):
    process = Process(16, 0, **settings)
    process.call(uapi.NR_MMAP, at(0), 2048 * PAGE, 3, PRIVATE | uapi.MAP_FIXED)
    return process


def counts(process, level):
    table = process.k.tlb_level[level]
    return int(table.hits), int(table.misses)


def test_loads_stores_and_touches_are_looked_up():
    process = mapped()
    for n in range(10):  # the first faults, the others need no page check
        process.store(0, n)
    assert counts(process, L1_BASE) == (9, 1)
    process.load(0)
    process.touch(0, 3)
    assert counts(process, L1_BASE) == (11, 3)
    assert counts(process, L2) == (0, 3)
    assert (process.k.tlb_stat.walks, process.k.tlb_stat.walk_loads) == (3, 12)


def test_a_huge_page_needs_one_entry():
    process = mapped(thp="always")
    process.touch(0, HUGE)
    process.touch(0, HUGE)
    assert counts(process, L1_HUGE) == (2 * HUGE - 1, 1)
    assert counts(process, L1_BASE) == (0, 0)
    assert process.k.tlb_stat.walk_loads == 3


def test_unmapped_pages_are_flushed_one_by_one_or_all_at_once():
    process = mapped()
    process.touch(0, 100)
    stat = process.k.tlb_stat
    process.call(uapi.NR_MUNMAP, at(0), 5 * PAGE)
    assert (stat.flush_pages, stat.flush_all) == (5, 0)
    process.call(uapi.NR_MUNMAP, at(500), 500 * PAGE)
    assert (stat.flush_pages, stat.flush_all) == (5, 0), "nothing was mapped there"
    process.call(uapi.NR_MUNMAP, at(0), 100 * PAGE)
    assert (stat.flush_pages, stat.flush_all) == (5, 1)


def test_the_zero_page_is_flushed_when_it_is_replaced():
    process = mapped()
    process.touch(0, 1, 0)
    assert process.k.tlb_stat.flush_pages == 0
    process.store(0, 1)
    assert process.k.tlb_stat.flush_pages == 1
    assert counts(process, L1_BASE) == (0, 2)


def test_a_split_flushes_the_entry_of_the_huge_page():
    process = mapped(thp="always")
    process.touch(0, 2)
    assert process.call(uapi.NR_MLOCK, at(7), PAGE) == 0
    assert process.k.tlb_stat.flush_pages == 1
    process.touch(0, 2)
    assert counts(process, L1_HUGE) == (1, 1)
    assert counts(process, L1_BASE) == (0, 2)


def test_the_huge_zero_page_is_flushed_when_it_is_replaced():
    process = mapped(thp="always")
    process.touch(3, 1, 0)
    process.call(uapi.NR_MADVISE, at(9), PAGE, uapi.MADV_POPULATE_WRITE)
    assert process.mm.rss == HUGE
    assert process.k.tlb_stat.flush_pages == 1


def test_pages_that_lose_rights_are_flushed():
    process = mapped()
    process.touch(0, 3)
    assert process.call(uapi.NR_MPROTECT, at(0), 10 * PAGE, 1) == 0
    assert process.k.tlb_stat.flush_pages == 3
    assert process.call(uapi.NR_MADVISE, at(0), 2 * PAGE, uapi.MADV_FREE) == 0
    assert process.k.tlb_stat.flush_pages == 5
