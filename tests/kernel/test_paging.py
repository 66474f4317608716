"""Demand paging: resident pages after each access, fatal accesses, and contents of memory."""

import pytest

from kernel.task import reason
from kernel.types import SIGABRT, SIGKILL, SIGSEGV, SIGSYS, SimulatedSignal
from kernel.uapi import MAP_NORESERVE, MAP_POPULATE
from tests.kernel.driver import FIXED, PRIVATE, WINDOW_BITS, Process, configured

FAR = 0x600000000000
WINDOW = 1 << WINDOW_BITS


def faults(process):
    """Return minor faults by cause: write, read, cow, populate; check their sum."""
    mm = process.mm
    counts = [int(n) for n in (mm.flt_write, mm.flt_read, mm.flt_cow, mm.flt_populate)]
    assert mm.minflt == sum(counts)
    return counts


@pytest.mark.parametrize("process", [4096, 16384, 65536], indirect=True)
def test_first_touches(process):
    addr = process.map(pages=4)
    assert (faults(process), process.mm.rss) == ([0, 0, 0, 0], 0)
    process.touch(addr, 1, 1)
    assert (faults(process), process.mm.rss) == ([1, 0, 0, 0], 1)
    process.touch(addr + process.page, 1, 0)
    assert (faults(process), process.mm.rss) == ([1, 1, 0, 0], 1)
    assert [process.page_state(addr + n * process.page) for n in range(3)] == ["frame", "zero", ""]
    process.touch(addr + process.page, 1, 1)
    assert (faults(process), process.mm.rss) == ([1, 1, 1, 0], 2)
    process.touch(addr, 2 * process.page, 0)
    process.touch(addr, 2 * process.page, 1)
    assert (faults(process), process.mm.rss) == ([1, 1, 1, 0], 2)


def test_touch_covers_every_page_of_a_range(process):
    addr = process.map(pages=5)
    process.touch(addr + 4095, 4098, 1)
    assert [process.page_state(addr + n * 4096) for n in range(4)] == ["frame"] * 3 + [""]
    process.touch(addr, 0, 1)
    process.touch(addr + 4 * 4096, -1, 1)
    assert process.mm.rss == 3
    assert (process.mm.payload_stores, process.mm.payload_loads) == (513, 0)


@pytest.mark.parametrize(
    ("prot", "read", "write", "populated"),
    [
        (0, False, False, 0),
        (1, True, False, 4),
        (2, True, True, 4),  # x86 cannot map write-only
        (3, True, True, 4),
        (4, True, False, 4),  # nor execute-only
        (5, True, False, 4),
        (7, True, True, 4),
    ],
)
def test_protection(process, prot, read, write, populated):
    addr = process.map(prot=prot, pages=4)
    for allowed, access, word in ((read, 0, "read of"), (write, 1, "write to")):
        died = process.death("touch", addr + 5, 1, access)
        expected = f"SIGSEGV: {word} {addr + 5:#x}, which its mapping does not permit"
        assert died == ("alive" if allowed else expected)
        process.k.task.sig = 0
    before = int(process.mm.minflt)
    assert process.map(prot=prot, pages=4, flags=PRIVATE | MAP_POPULATE) > 0
    assert process.mm.flt_populate == process.mm.minflt - before == populated


@pytest.mark.parametrize("addr", [0, 8, -8, -(2**47), 0x555555559000, FAR, 2**47 - 1])
def test_touch_of_nothing(process, addr):
    """Expect SEGV_MAPERR with the address; no fault is counted and no table allocated."""
    for access, word in ((0, "read of"), (1, "write to")):
        died = process.death("touch", addr, 1, access)
        assert died == f"SIGSEGV: {word} {addr:#x}, where nothing is mapped"
        task = process.k.task
        assert (task.sig, task.si_code, task.si_addr, task.si_write) == (SIGSEGV, 1, addr, access)
    assert (process.mm.minflt, process.mm.nr_ptes) == (0, 0)


@pytest.mark.parametrize("addr", [2**47, 2**62, -(2**47) - 1, -(2**63)])
def test_touch_of_no_address(process, addr):
    """For a non-canonical address the hardware does not report the address."""
    for access in (0, 1):
        died = process.death("touch", addr, 1, access)
        assert died.startswith("SIGSEGV")
        task = process.k.task
        assert (task.sig, task.si_code, task.si_addr, task.si_write) == (SIGSEGV, 128, 0, access)
    assert (process.mm.minflt, process.mm.nr_ptes) == (0, 0)


def test_touch_faults_at_the_first_bad_page(process):
    addr = process.map(pages=2, flags=FIXED, addr=FAR)
    with pytest.raises(SimulatedSignal):
        process.touch(addr + 100, 3 * 4096, 1)
    assert process.k.task.si_addr == addr + 2 * 4096
    assert process.mm.rss == 2


def test_load_and_store_fault_too(process):
    process.map(prot=1, flags=FIXED, addr=FAR)
    assert process.load(FAR) == 0
    assert "does not permit" in process.death("store", FAR, 1)
    assert "nothing is mapped" in process.death("load", FAR + 4096)
    assert "nothing is mapped" in process.death("poke", FAR + 4096, 1)
    assert "nothing is mapped" in process.death("peek", FAR + 4096)


@pytest.mark.parametrize("overcommit", [0, 1])
def test_frames_run_out(overcommit):
    """Touching overcommitted memory kills, as the OOM killer would; the fault is not counted."""
    process = Process(configured(memory=4 * 4096, overcommit=overcommit))
    addr = process.map(pages=4)
    more = process.map(pages=4)
    process.touch(addr, 3 * 4096, 1)
    process.touch(more, 4 * 4096, 0)  # the zero page uses no frame
    process.touch(more, 1, 1)
    died = process.death("touch", more + 4096 + 9, 1, 1)
    assert died == f"SIGKILL: out of memory on a page fault at {more + 4096 + 9:#x}"
    assert process.k.task.sig == SIGKILL
    assert (process.mm.rss, process.mm.hiwater_rss) == (4, 4)
    assert faults(process) == [3, 4, 1, 0]


def test_frames_run_out_while_populating():
    process = Process(configured(memory=4 * 4096, overcommit=1))
    assert process.death("mmap", 0, 8 * 4096, 3, PRIVATE | MAP_POPULATE).startswith("SIGKILL")
    assert process.mm.rss == 4


def test_freed_frames_can_be_reused():
    process = Process(configured(memory=4 * 4096, overcommit=1))
    addr = process.map(pages=8)
    process.touch(addr, 4 * 4096, 1)
    process.dontneed(addr, 2 * 4096)
    process.touch(addr + 4 * 4096, 2 * 4096, 1)
    assert (process.mm.rss, process.mm.zapped) == (4, 2)


# --- The window ----------------------------------------------------------------------------------


def test_mappings_that_share_a_place_in_the_window_are_refused(process):
    """The model refuses mappings one window size apart instead of aliasing their words."""
    process.map(pages=2, flags=FIXED, addr=FAR)
    beside = FAR + WINDOW + 2 * 4096
    assert process.map(pages=2, flags=FIXED, addr=beside) == beside
    died = process.death("mmap", FAR + WINDOW - 4096, 8192, 3, FIXED)
    assert died.startswith(f"SIGSYS: the mapping at {FAR + WINDOW - 4096:#x} would overlap another")
    assert "larger kernel.window_bits" in died
    assert process.k.task.sig == SIGSYS


def test_a_larger_window_has_room(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    process = Process(configured(window_bits=41))
    process.map(pages=2, flags=FIXED, addr=FAR)
    assert process.map(pages=2, flags=FIXED, addr=FAR + WINDOW - 4096) > 0


def test_collision_is_seen_from_both_sides_and_around_the_end(process):
    process.map(pages=4, flags=FIXED, addr=FAR - 4096)  # wraps around the end of the window
    for first, pages in ((2, 1), (-1, 1), (-5, 64), (0, 1), (-3, 3)):
        addr = FAR + first * 4096 + 4 * WINDOW
        assert process.death("mmap", addr, pages * 4096, 1, FIXED).startswith("SIGSYS")
    assert process.map(flags=FIXED, addr=FAR + 3 * 4096 + 4 * WINDOW) > 0


def test_a_mapping_larger_than_the_window_is_refused(process):
    huge = WINDOW + 4096
    assert process.death("mmap", 0, huge, 0, PRIVATE | MAP_NORESERVE).startswith("SIGSYS")


def test_a_growing_heap_is_refused_too(process):
    start = process.sbrk(0)
    process.map(flags=FIXED, addr=start + WINDOW + 4096)
    assert process.sbrk(4096) == start
    assert process.death("sbrk", 4096).startswith("SIGSYS")


def test_a_request_refused_by_a_limit_is_no_collision():
    process = Process(configured(rlimit_as=1 << 20))
    assert process.map(pages=1 << 28) == -12


# --- Contents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [4096, 65536], indirect=True)
def test_words_are_kept_until_the_page_goes(process):
    page = process.page
    addr = process.map(pages=3, flags=FIXED, addr=FAR)
    for n in range(0, 3 * page, page // 4):
        process.store(addr + n, n + 1)
    assert [process.load(addr + n) for n in (0, page // 4, 2 * page)] == [
        1,
        page // 4 + 1,
        2 * page + 1,
    ]
    process.dontneed(addr + page, page)
    assert [process.load(addr + n * page) for n in range(3)] == [1, 0, 2 * page + 1]
    assert process.load(addr + page + page // 4) == 0
    assert process.page_state(addr + page) == "zero"
    process.dontneed(addr, 3 * page)
    process.store(addr + 8, 5)  # a write fault clears the rest of the page as well
    assert [process.load(addr + n) for n in (0, 8, page // 4, 2 * page)] == [0, 5, 0, 0]


def test_halves_of_a_word(process):
    """An access of two bytes counts and faults like one of eight."""
    addr = process.map()
    assert process.load_half(addr + 6) == 0
    process.store(addr, -1)
    process.store(addr + 8, 5)
    process.store_half(addr + 2, 0x8001)
    process.store_half(addr + 6, 0)
    assert process.load(addr) == 0x0000_FFFF_8001_FFFF
    assert [process.load_half(addr + n) for n in (0, 2, 4, 6, 8)] == [0xFFFF, 0x8001, 0xFFFF, 0, 5]
    mm = process.mm
    assert (mm.loads, mm.stores, mm.flt_read, mm.flt_cow) == (7, 4, 1, 1)
    fresh = process.map()
    process.store_half(fresh + 2, 1)
    assert (process.load(fresh), mm.flt_write) == (1 << 16, 1)


def test_a_page_is_held_by_a_fault_as_a_store_would(process):
    addr = process.map()
    process.hold(addr)
    assert (process.mm.flt_write, process.page_state(addr)) == (1, "frame")
    process.store(addr, 7)
    assert process.load(addr) == 7
    assert (process.mm.minflt, process.mm.loads, process.mm.stores) == (1, 1, 1)


def test_stale_words_are_cleared_however_often_they_are_given_back(process):
    addr = process.map(flags=FIXED, addr=FAR)
    process.store(addr + 8, 1)
    process.dontneed(addr, 4096)
    process.dontneed(addr, 4096)
    process.munmap(addr, 4096)
    process.map(flags=FIXED, addr=FAR)
    process.dontneed(addr, 4096)
    assert process.load(addr + 8) == 0
    # A page that is only read stays clean and needs no further clearing.
    process.dontneed(addr, 4096)
    assert process.k.pte[(FAR % WINDOW) >> 12] == 0


def test_a_place_in_the_window_is_clean_for_its_next_owner(process):
    process.map(flags=FIXED, addr=FAR)
    process.store(FAR + 16, 77)
    process.munmap(FAR, 4096)
    process.map(flags=FIXED, addr=FAR + WINDOW)
    assert process.load(FAR + WINDOW + 16) == 0
    process.store(FAR + WINDOW + 16, 78)
    assert process.load(FAR + WINDOW + 16) == 78


def test_heap_that_shrank_and_grew_reads_zero(process):
    start = process.sbrk(3 * 4096)
    for n in range(0, 3 * 4096, 1024):
        process.store(start + n, -1)
    process.sbrk(-2 * 4096)
    process.sbrk(2 * 4096)
    words = [process.load(start + n) for n in range(0, 3 * 4096, 1024)]
    assert words == [-1] * 4 + [0] * 8


def test_heap_page_that_stays_keeps_its_words(process):
    """Linux frees whole pages: words above the break in its last page remain."""
    start = process.sbrk(4096)
    process.store(start + 4088, 9)
    process.sbrk(-4000)
    process.sbrk(4000)
    assert process.load(start + 4088) == 9


def test_replaced_mapping_reads_zero(process):
    process.map(pages=2, flags=FIXED, addr=FAR)
    process.store(FAR, 3)
    process.store(FAR + 4096, 4)
    process.map(flags=FIXED, addr=FAR)
    assert [process.load(FAR), process.load(FAR + 4096)] == [0, 4]
    process.map(flags=FIXED | MAP_POPULATE, addr=FAR + 4096)
    assert process.peek(FAR + 4096) == 0


def test_peek_and_poke_stay_out_of_the_counters(process):
    addr = process.map()
    process.poke(addr, 2**62 + 1)
    process.poke(addr + 8, -(2**63))
    assert process.peek(addr) == process.load(addr) == 2**62 + 1
    assert process.peek(addr + 8) == -(2**63)
    mm = process.mm
    assert (mm.loads, mm.stores, mm.payload_loads, mm.payload_stores) == (1, 0, 0, 0)


def test_prefetch_is_no_access(process):
    before = process.counters()
    process.prefetch(process.sbrk(0))
    process.prefetch(0)
    assert process.counters() == before


# --- Page tables ---------------------------------------------------------------------------------


def tables(process):
    """Return the numbers of PTE, PMD and PUD pages."""
    return tuple(int(process.mm[n]) for n in ("nr_ptes", "nr_pmds", "nr_puds"))


def test_tables_come_with_faults_and_go_with_the_last_area_of_their_slot(process):
    """At 4 KiB a PTE page maps 2 MiB, a PMD page 1 GiB, a PUD page 512 GiB."""
    mib, gib = 1 << 20, 1 << 30
    process.map(pages=1024, flags=FIXED, addr=FAR)
    assert tables(process) == (0, 0, 0)
    process.touch(FAR, 1, 0)
    assert tables(process) == (1, 1, 1)
    process.touch(FAR + 2 * mib, 1, 1)
    assert tables(process) == (2, 1, 1)
    process.map(flags=FIXED, addr=FAR + 3 * gib)
    process.touch(FAR + 3 * gib, 1, 1)
    assert tables(process) == (3, 2, 1)
    process.map(flags=FIXED, addr=FAR + 513 * gib)
    process.touch(FAR + 513 * gib, 1, 1)
    assert tables(process) == (4, 3, 2)
    assert process.mm.hiwater_pgtables == 9
    process.munmap(FAR + 513 * gib, 4096)
    assert tables(process) == (3, 2, 1)
    process.munmap(FAR, 2 * mib - 4096)  # the slot's last page stays mapped
    assert tables(process) == (3, 2, 1)
    process.munmap(FAR, 2 * mib)
    assert tables(process) == (2, 2, 1)
    process.munmap(FAR, 4 * gib)
    assert tables(process) == (0, 0, 0)
    assert process.mm.hiwater_pgtables == 9


def test_dontneed_frees_tables_of_whole_slots_only(process):
    mib = 1 << 20
    process.map(pages=1024, flags=FIXED, addr=FAR + mib)
    process.touch(FAR + mib, 4 * mib, 1)
    assert tables(process) == (3, 1, 1)
    process.dontneed(FAR + 2 * mib, 2 * mib - 4096)
    assert tables(process) == (3, 1, 1)
    process.dontneed(FAR + mib, 4 * mib)
    assert tables(process) == (2, 1, 1)
    assert process.mm.rss == 0


def test_dontneed_over_a_slot_of_two_areas_keeps_its_table(process):
    """Linux serves one area at a time, so none of them empties a whole slot."""
    mib = 1 << 20
    process.map(pages=256, flags=FIXED, addr=FAR)
    process.map(pages=256, flags=FIXED, addr=FAR + mib, prot=1)
    process.touch(FAR, 2 * mib, 0)
    process.dontneed(FAR, 2 * mib)
    assert tables(process) == (1, 1, 1)


def test_replacing_a_mapping_frees_its_tables(process):
    process.map(pages=512, flags=FIXED, addr=FAR)
    process.touch(FAR, 1, 1)
    process.map(pages=512, flags=FIXED, addr=FAR)
    assert tables(process) == (0, 0, 0)


def test_huge_reservations_are_cheap(process):
    """Slots without a table are skipped."""
    addr = process.map(pages=1 << 25, prot=0)
    assert (process.mm.reserved_vm, process.mm.hiwater_vm) == (1 << 25, 46)
    assert process.dontneed(addr, 1 << 37) == 0
    assert process.munmap(addr, 1 << 37) == 0
    assert (process.mm.reserved_vm, process.mm.total_vm) == (0, 46)


# --- Other deaths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "SIGABRT: double free of 0x1230"),
        (2, "SIGABRT: free or realloc of 0x1230, which is not an allocated block"),
        (3, "SIGABRT: the allocator found its own heap corrupted at 0x1230"),
        (99, "SIGABRT: abort code 99 at 0x1230"),
    ],
)
def test_abort(process, code, words):
    assert process.death("abort", code, 0x1230) == words
    assert process.k.task.sig == SIGABRT


def test_reasons(process):
    assert reason(process.k) == ""
    process.k.task.sig = 5
    assert reason(process.k) == "signal 5, code 0, address 0x0"
