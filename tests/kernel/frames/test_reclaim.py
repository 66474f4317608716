"""Reclaim: the order in which pages are reclaimed, and the OOM kill when none can be."""

import random

import pytest

from kernel.engine.jit import disabled
from kernel.types import SIGKILL, WMARK_HIGH, WMARK_LOW, SimulatedSignal
from tests.kernel.frames.driver import BASE, PAGE, Memory, address

#: First page of the locked area.
LOCKED = 1 << 13


def pages(memory, first, n, write=1):
    for page in range(first, first + n):
        memory.touch(address(page), write)


def swapped(memory, n):
    return [page for page in range(n) if memory.state(page) == "swap"]


def test_nothing_is_reclaimed_while_memory_suffices():
    memory = Memory(256, min_free=16, swap=256)
    pages(memory, 0, 200)
    assert memory.k.vmstat.kswapd_wake == 0
    assert memory.lists()["inactive"] == list(range(199, -1, -1)), "newest first"
    memory.verify()


def test_the_oldest_page_is_reclaimed_first_up_to_the_high_watermark():
    memory = Memory(128, min_free=16, swap=64)
    wmark = [int(w) for w in memory.k.zone[0].wmark]
    room = 128 - 3 - wmark[WMARK_LOW]  # three frames are page tables
    pages(memory, 0, room)
    assert memory.k.vmstat.kswapd_wake == 0
    memory.touch(address(room), 1)
    gone = swapped(memory, room)
    # The first scan removes the rights of all pages; the second reclaims the oldest.
    assert gone == list(range(wmark[WMARK_HIGH] - wmark[WMARK_LOW] + 1))
    assert memory.k.vmstat.pswpout == len(gone)
    memory.verify()


def test_an_accessed_page_gets_a_second_chance_and_then_a_place_on_the_active_list():
    memory = Memory(128, min_free=16, swap=128)
    pages(memory, 0, 128 - 3 - 20 + 1)  # all have been scanned once afterwards
    memory.touch(address(50), 0)
    memory.touch(address(51), 0)
    pages(memory, 200, 60)
    lists = memory.lists()
    assert lists["active"] == [51, 50]
    assert memory.k.vmstat.pgactivate == 2
    assert memory.state(49) == memory.state(52) == "swap"
    memory.verify()


def test_active_pages_are_deactivated_when_they_are_too_many():
    memory = Memory(128, min_free=16, swap=512)
    for step in range(99):  # sixty pages that are accessed again and again, and a stream
        pages(memory, 0, 60, write=0)
        pages(memory, 300 + 2 * step, 2)
    assert memory.k.vmstat.pgactivate > 0
    pages(memory, 700, 120)
    assert memory.k.vmstat.pgdeactivate > 0
    lists = memory.lists()
    assert len(lists["active"]) <= len(lists["inactive"]) + 1
    memory.verify()


def test_a_page_from_swap_is_a_major_fault_and_keeps_its_contents_mark():
    memory = Memory(128, min_free=16, swap=128)
    pages(memory, 0, 130)
    page = swapped(memory, 130)[0]
    assert memory.touch(address(page), 0) == 2
    assert memory.state(page) == "frame"
    assert (memory.k.mm.majflt, memory.k.vmstat.pswpin) == (1, 1)
    memory.verify()


def test_a_locked_page_is_never_reclaimed_until_it_is_unlocked():
    memory = Memory(128, min_free=16, swap=1024)
    pages(memory, LOCKED, 20)
    pages(memory, 0, 200)
    assert all(memory.state(LOCKED + n) == "frame" for n in range(20))
    assert sorted(memory.lists()["unevictable"]) == list(range(LOCKED, LOCKED + 20))
    memory.verify()
    memory.k.vma[1].vm_flags &= ~0x2000
    memory.verify()
    pages(memory, 200, 200)
    assert all(memory.state(LOCKED + n) == "frame" for n in range(20)), "locked without an area"
    memory.munlock(address(LOCKED), 20)
    memory.verify()
    pages(memory, 400, 200)
    assert all(memory.state(LOCKED + n) == "swap" for n in range(20))
    memory.verify()


def test_lazily_freed_pages_are_reclaimed_first_and_need_no_swap():
    memory = Memory(128, min_free=16, swap=0)
    pages(memory, 0, 100)
    memory.lazy(address(40), 20)
    memory.touch(address(45), 1)  # written again: no longer lazily freed
    memory.touch(address(46), 0)  # accessed: a second chance
    pages(memory, 200, 10)
    gone = [page for page in range(100) if not memory.state(page)]
    assert gone[0] == 40
    assert set(gone) <= set(range(40, 60)) - {45, 46}
    assert memory.k.vmstat.pglazyfreed == len(gone)
    assert memory.k.vmstat.pswpout == 0
    memory.verify()
    pages(memory, 210, 17)
    assert memory.state(45) == "frame"
    assert memory.lists()["active"] == [45]
    assert not memory.state(46)


def test_a_huge_page_is_split_before_its_pages_are_swapped_out():
    memory = Memory(2048, min_free=16, swap=4096)
    assert memory.touch_huge(address(0), 1) == 1
    memory.verify()
    pages(memory, 1024, 1600)
    assert memory.k.vmstat.thp_split_page == 1
    assert memory.state(0) == "swap"
    gone = swapped(memory, 512)
    assert gone == list(range(len(gone))), "from its first page on"
    memory.verify()


def test_pages_of_a_huge_page_that_were_never_written_need_no_swap():
    memory = Memory(2048, min_free=16, swap=4096)
    assert memory.touch_huge(address(0), 0) == 1
    memory.touch(address(7), 1)
    pages(memory, 1024, 1600)
    assert memory.k.vmstat.thp_split_page == 1
    assert memory.state(7) == "frame", "it has room in what the others gave back"
    assert all(memory.state(page) == "" for page in range(512) if page != 7)
    memory.verify()


def test_the_pages_of_a_split_huge_page_take_its_place():
    memory = Memory(2048)
    memory.touch(address(1000), 1)
    memory.touch_huge(address(0))
    memory.touch(address(1001), 1)
    assert memory.lists()["inactive"] == [1001, 0, 1000]
    memory.split(address(0))
    assert memory.lists()["inactive"] == [1001, *range(511, -1, -1), 1000]
    memory.verify()


def test_a_lazily_freed_huge_page_is_split_and_dropped():
    memory = Memory(1024, min_free=16, swap=0)
    memory.touch_huge(address(0), 1)
    memory.lazy(address(0), 512)
    assert memory.lists()["lazy"] == [0]
    pages(memory, 512, 700)
    assert memory.k.vmstat.pglazyfreed > 100
    memory.verify()


def test_a_huge_page_fails_while_single_frames_are_plenty():
    memory = Memory(4 * 512, percent=100)
    assert memory.touch_huge(address(0)) == 0
    assert memory.k.vmstat.thp_fault_fallback == 1
    pages(memory, 0, 100)
    memory.verify()


def test_the_process_is_killed_when_neither_frames_nor_swap_are_left():
    memory = Memory(128, min_free=16, swap=40)
    with pytest.raises(SimulatedSignal):
        pages(memory, 0, 1000)
    mapped = sum(memory.state(page) != "" for page in range(1000))
    assert memory.k.task.sig == SIGKILL
    assert memory.k.task.si_addr == address(mapped)
    assert mapped == 128 - 16 - 3 + 40, "all but the tables and the min watermark, and the swap"
    assert (memory.k.vmstat.oom_kill, memory.k.phys.swap_used) == (1, 40)
    memory.verify()


def test_locked_memory_alone_causes_an_oom_kill():
    memory = Memory(128, min_free=16, swap=400)
    with pytest.raises(SimulatedSignal):
        pages(memory, LOCKED, 200)
    assert memory.k.vmstat.pswpout == 0
    memory.verify()


def test_page_tables_take_frames_and_give_them_back():
    memory = Memory(128)
    for n in range(10):
        memory.touch(address(512 * n), 1)
    assert memory.k.lru[4].frames == 12 == memory.k.mm.nr_ptes + 2
    memory.verify()
    memory.free_tables(2)
    assert memory.check_counts() == 12
    memory.k.mm.nr_ptes -= 2
    memory.verify()


def test_mremap_moves_frames_and_swap_slots():
    memory = Memory(2048, min_free=16, swap=64)
    memory.touch_huge(address(0))
    memory.move(address(0), address(1024))
    memory.k.pmd[address(0) >> 21], memory.k.pmd[address(1024) >> 21] = 1, 2
    memory.verify()
    memory.touch(address(512), 1)
    memory.move(address(512), address(600))
    assert (memory.state(512), memory.state(600)) == ("", "frame")
    memory.verify()
    small = Memory(128, min_free=16, swap=64)
    pages(small, 0, 120)
    page = swapped(small, 120)[0]
    small.move(address(page), address(300))
    small.verify()
    assert small.touch(address(300), 0) == 2


# --- A slow model of the lists -------------------------------------------------------------------


class Oracle:
    """The rules of kernel.vmscan with Python lists (head first), for single pages only."""

    def __init__(self, frames, min_free, swap):
        gap = max(min_free // 4, frames // 1000)
        self.low, self.high, self.min = min_free + gap, min_free + 2 * gap, min_free
        self.free, self.slots = frames, swap
        self.inactive, self.active, self.lazy, self.locked = [], [], [], []
        self.young, self.referenced, self.clean, self.swapped = set(), set(), set(), set()
        self.tables = set()

    def mapped(self, page):
        return any(page in a for a in (self.inactive, self.active, self.lazy, self.locked))

    def get(self):
        if self.free <= self.low:
            while self.free <= self.high and self.step():
                pass
            if self.free <= self.min:
                raise MemoryError
        self.free -= 1

    def step(self):
        if self.lazy:
            page = self.lazy.pop()
            if page not in self.clean:
                self.referenced.discard(page)
                self.active.insert(0, page)
            elif page >= LOCKED:
                self.locked.insert(0, page)
            elif self.look(page):
                self.lazy.insert(0, page)
            else:
                self.clean.discard(page)
                self.free += 1
        elif not self.slots:
            return False
        elif len(self.inactive) < len(self.active):
            page = self.active.pop()
            if page >= LOCKED:
                self.locked.insert(0, page)
            else:
                self.young.discard(page)
                self.inactive.insert(0, page)
        elif self.inactive:
            page = self.inactive.pop()
            if page >= LOCKED:
                self.locked.insert(0, page)
                return True
            was = page in self.referenced
            if self.look(page):
                (self.active if was else self.inactive).insert(0, page)
            elif page in self.clean:
                self.clean.discard(page)
                self.free += 1
            else:
                self.swapped.add(page)
                self.slots -= 1
                self.free += 1
        else:
            return False
        return True

    def look(self, page):
        self.referenced.discard(page)
        if page in self.young:
            self.young.discard(page)
            self.referenced.add(page)
            return True
        return False

    def touch(self, page, write):
        if page in self.swapped:
            self.get()
            self.swapped.discard(page)
            self.slots += 1
            self.inactive.insert(0, page)
        elif not self.mapped(page):
            for table in ("pud", "pmd", page // 512):
                if table not in self.tables:
                    self.get()
                    self.tables.add(table)
            self.get()
            self.inactive.insert(0, page)
        self.young.add(page)
        if write:
            self.clean.discard(page)

    def zap(self, page):
        if page in self.swapped:
            self.swapped.discard(page)
            self.slots += 1
        elif self.mapped(page):
            for a in (self.inactive, self.active, self.lazy, self.locked):
                if page in a:
                    a.remove(page)
            self.free += 1
        self.forget(page)

    def forget(self, page):
        for a in (self.young, self.referenced, self.clean):
            a.discard(page)

    def free_lazily(self, page):
        if self.mapped(page):
            self.young.discard(page)
            self.clean.add(page)
            if page not in self.lazy:
                for a in (self.inactive, self.active, self.locked):
                    if page in a:
                        a.remove(page)
                self.referenced.discard(page)
                self.lazy.insert(0, page)

    def lists(self):
        return {
            "inactive": self.inactive,
            "active": self.active,
            "lazy": self.lazy,
            "unevictable": self.locked,
        }


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_match_an_oracle(seed):
    rng = random.Random(seed)
    frames, swap = 96 + 32 * seed, (0, 40, 100, 200)[seed]
    memory, oracle = Memory(frames, min_free=12, swap=swap), Oracle(frames, 12, swap)
    died = False
    for step in range(150 if disabled() else 4000):
        # A moving working set, so that some pages are accessed again and others are not.
        page = (step // 40 + int(rng.expovariate(1 / (frames / 3)))) % 400
        if rng.random() < 0.03:
            page = LOCKED + rng.randrange(12)
        kind = rng.random()
        try:
            if kind < 0.85 - 0.25 * (swap == 0):
                write = int(rng.random() < 0.5)
                try:
                    memory.touch(address(page), write)
                except SimulatedSignal:
                    died = True
                oracle.touch(page, write)
                assert not died
            elif kind < 0.95:
                memory.zap(address(page), 1)
                oracle.zap(page)
            elif page < LOCKED:  # MADV_FREE refuses locked areas
                memory.lazy(address(page), 1)
                oracle.free_lazily(page)
        except MemoryError:
            assert died
        if step % 16 == 0 or died:
            assert memory.lists() == oracle.lists()
            assert {p for p in range(400) if memory.state(p) == "swap"} == oracle.swapped
            memory.verify()
        if died:
            break
    assert memory.k.vmstat.kswapd_wake or disabled()
    assert int(memory.k.zone[0].free) == oracle.free or died
    assert BASE % PAGE == 0
