"""TLB hits and misses, compared with a table of sets in order of use (LRU)."""

import random
from collections import OrderedDict

import numpy as np
import pytest

from kernel.engine.jit import build_once, disabled, jit
from kernel.engine.record import as_record
from kernel.tlb import (
    FLUSH_CEILING,
    check_geometry,
    flush_tlb,
    flush_tlb_range,
    init_tlb,
    tlb_access,
)
from kernel.types import L1_BASE, L1_HUGE, L2, NR_TLBS, TLB_LEVEL, TLB_STAT

PAGE, HUGE = 1 << 12, 1 << 21
_ACCESS, _FLUSH, _FLUSH_ALL = range(3)
SKYLAKE = [(64, 4), (32, 4), (1536, 12)]


@jit
def enter(k, call, a, b):
    if call == _ACCESS:
        tlb_access(k, a, b)
    elif call == _FLUSH:
        flush_tlb_range(k, a, b)
    else:
        flush_tlb(k)


def compiled():
    return build_once(enter, PAGE_SHIFT=12)


#: The TLB fields of the kernel's record.
FIELDS = np.dtype([("tlb_level", TLB_LEVEL, (NR_TLBS,)), ("tlb_stat", TLB_STAT)], align=True)


class Tlb:
    def __init__(self, geometry):
        self.k = as_record(np.zeros(1, FIELDS))
        init_tlb(self.k, geometry)

    def access(self, addr, huge=0):
        compiled()(self.k, _ACCESS, addr, huge)

    def flush(self, start, end):
        compiled()(self.k, _FLUSH, start, end)

    def flush_all(self):
        compiled()(self.k, _FLUSH_ALL, 0, 0)

    def counts(self):
        levels = [(int(level.hits), int(level.misses)) for level in self.k.tlb_level]
        return levels, int(self.k.tlb_stat.walks), int(self.k.tlb_stat.walk_loads)


class Table:
    """Sets of page keys in order of use."""

    def __init__(self, entries, ways):
        self.ways = ways if entries else 0
        self.sets = [OrderedDict() for _ in range(entries // ways if entries else 0)]
        self.hits = self.misses = 0

    def find(self, number, huge):
        chosen = self.sets[number % len(self.sets)] if self.sets else {}
        if (number, huge) in chosen:
            chosen.move_to_end((number, huge))
            self.hits += 1
            return True
        self.misses += 1
        return False

    def fill(self, number, huge):
        if self.sets:
            chosen = self.sets[number % len(self.sets)]
            chosen[number, huge] = True
            if len(chosen) > self.ways:
                chosen.popitem(last=False)

    def drop(self, number, huge):
        if self.sets:
            self.sets[number % len(self.sets)].pop((number, huge), None)


class Oracle:
    def __init__(self, geometry):
        self.tables = [Table(*shape) for shape in geometry]
        self.walks = self.loads = 0

    def access(self, addr, huge=0):
        number = addr // (HUGE if huge else PAGE)
        first, second = self.tables[L1_HUGE if huge else L1_BASE], self.tables[L2]
        if first.find(number, huge):
            return
        if not (second.sets and second.find(number, huge)):
            self.walks += 1
            self.loads += 3 if huge else 4
            second.fill(number, huge)
        first.fill(number, huge)

    def flush(self, start, end):
        if (end - start) // PAGE > FLUSH_CEILING:
            self.flush_all()
            return
        for addr in range(start, end, PAGE):
            for table in self.tables:
                table.drop(addr // PAGE, 0)
                table.drop(addr // HUGE, 1)

    def flush_all(self):
        for table in self.tables:
            for entries in table.sets:
                entries.clear()

    def counts(self):
        return [(t.hits, t.misses) for t in self.tables], self.walks, self.loads


@pytest.mark.parametrize(
    "geometry",
    [
        SKYLAKE,
        [(4, 4), (1, 1), (0, 0)],
        [(0, 0), (0, 0), (64, 2)],
        [(16, 1), (8, 8), (32, 32)],
        [(0, 0), (0, 0), (0, 0)],
    ],
)
def test_random_accesses_and_flushes_match_an_oracle(geometry):
    rng = random.Random(repr(geometry))
    tlb, oracle = Tlb(geometry), Oracle(geometry)
    # About twice the entries of the largest table, more often near one end than the other.
    span = 2 * max(16, *(entries for entries, _ in geometry))
    base = 0x7FF000000000
    for _ in range(300 if disabled() else 20000):
        addr = base + int(rng.random() ** 3 * span) * PAGE + rng.randrange(PAGE)
        kind = rng.random()
        if kind < 0.7:
            calls = ("access", addr, 0)
        elif kind < 0.98:
            calls = ("access", base + int(rng.random() ** 3 * 40) * HUGE + rng.randrange(HUGE), 1)
        elif kind < 0.999:
            start = addr // PAGE * PAGE
            calls = ("flush", start, start + rng.choice([1, 2, 30, 33, 34]) * PAGE)
        else:
            calls = ("flush_all",)
        for side in (tlb, oracle):
            getattr(side, calls[0])(*calls[1:])
        assert tlb.counts() == oracle.counts()


def test_the_least_recently_used_entry_is_evicted():
    tlb = Tlb([(4, 4), (0, 0), (0, 0)])
    for page in (1, 2, 3, 4, 1, 5):  # page 5 evicts page 2
        tlb.access(page * PAGE)
    for page in (1, 3, 4, 5):
        tlb.access(page * PAGE)
    assert tlb.counts()[0][L1_BASE] == (5, 5)
    tlb.access(2 * PAGE)
    assert tlb.counts()[0][L1_BASE] == (5, 6)


def test_one_huge_entry_covers_512_pages():
    tlb = Tlb(SKYLAKE)
    for page in range(512):
        tlb.access(HUGE + page * PAGE, 1)
    assert tlb.counts() == ([(0, 0), (511, 1), (0, 1)], 1, 3)
    for page in range(512):
        tlb.access(HUGE + page * PAGE)
    assert tlb.counts() == ([(0, 512), (511, 1), (0, 513)], 513, 3 + 4 * 512)


def test_a_flush_of_one_page_takes_the_huge_entry_around_it():
    tlb = Tlb(SKYLAKE)
    tlb.access(HUGE, 1)
    tlb.flush(HUGE + 5 * PAGE, HUGE + 6 * PAGE)
    tlb.access(HUGE, 1)
    assert tlb.counts()[1] == 2
    assert (tlb.k.tlb_stat.flush_pages, tlb.k.tlb_stat.flush_all) == (1, 0)


def test_a_large_flush_takes_everything():
    tlb = Tlb(SKYLAKE)
    tlb.access(PAGE)
    tlb.flush(1000 * PAGE, 1033 * PAGE)
    tlb.access(PAGE)
    assert tlb.counts()[1] == 1
    tlb.flush(1000 * PAGE, 1034 * PAGE)
    tlb.access(PAGE)
    assert tlb.counts()[1] == 2
    assert tlb.k.tlb_stat.flush_all == 1


def test_a_new_table_is_empty():
    tlb = Tlb(SKYLAKE)
    tlb.access(PAGE)
    init_tlb(tlb.k, SKYLAKE)
    assert tlb.counts() == ([(0, 0)] * 3, 0, 0)
    tlb.access(PAGE)
    assert tlb.counts()[1] == 1


@pytest.mark.parametrize(
    ("entries", "ways", "message"),
    [
        (63, 4, "not a multiple"),
        (96, 4, "not a power of two"),
        (-4, 4, "not a multiple"),
        (64, 0, "not a multiple"),
        (1 << 15, 8, "too large"),
        (64, 64, "too large"),
    ],
)
def test_impossible_tables_are_refused(entries, ways, message):
    with pytest.raises(ValueError, match=message):
        check_geometry("tlb.l1", entries, ways)


def test_possible_tables_are_accepted():
    for entries, ways in [*SKYLAKE, (0, 0), (1, 1)]:
        check_geometry("tlb", entries, ways)
