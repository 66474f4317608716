"""TLSF keeps its bound on every heap, and finds the blocks that the paper specifies.

The heaps are worst cases of very different sizes.  The steps of first fit and kr on one of them
show that the bound is a property of the policy, not of the heap.
"""

from itertools import pairwise

import numpy as np
import pytest

from allocators import tlsf
from allocators.base import registry
from allocators.base.contract import (
    BLOCK_FREE,
    BLOCK_USED,
    aligned_alloc,
    calloc,
    free,
    init,
    malloc,
    realloc,
)
from allocators.base.settings import number
from allocators.verify import variations
from kernel.access import peek
from kernel.boot import Machine
from kernel.brk import sbrk
from kernel.config import KernelConfig
from kernel.engine.jit import build, disabled, jit
from kernel.uapi import RLIM_INFINITY

INIT, MALLOC, CALLOC, FREE, REALLOC, ALIGNED = range(6)
#: Maximum steps by operation, derived in the docstring of allocators.tlsf.
BOUNDS = [
    0,
    tlsf.MALLOC_STEPS,
    tlsf.MALLOC_STEPS,
    tlsf.FREE_STEPS,
    tlsf.REALLOC_STEPS,
    tlsf.ALIGNED_STEPS,
]
#: Live blocks of the heaps, and of the heaps for policies that search.
SIZES = (100, 1_000) if disabled() else (100, 1_000, 10_000, 150_000)
SEARCHED = SIZES[:3]
PROBES = 40 if disabled() else 400


@jit
def drive(k, a, objects, events, steps):
    """Perform ``events`` (op, slot, size, alignment); ``steps`` receives each one's steps."""
    for i in range(events.shape[0]):
        op, slot, size = events[i, 0], events[i, 1], events[i, 2]
        before = k.mm.loads + k.mm.stores
        if op == INIT:
            init(k, a)
        elif op == MALLOC:
            objects[slot] = malloc(k, a, size)
        elif op == CALLOC:
            objects[slot] = calloc(k, a, size)
        elif op == ALIGNED:
            objects[slot] = aligned_alloc(k, a, events[i, 3], size)
        elif op == REALLOC:
            p = realloc(k, a, objects[slot], size)
            objects[slot] = p if p else objects[slot]
        else:
            free(k, a, objects[slot])
            objects[slot] = 0
        steps[i] = k.mm.loads + k.mm.stores - before


class Heap:
    """Allocator that performs lists of operations and counts the steps of each."""

    def __init__(self, name="tlsf", values=None, slots=1 << 10):
        config = KernelConfig()
        plugin = registry.load(name, values)
        bindings = plugin.bindings()
        self.switches = config.switches() | {"COUNT": True}
        self.drive = build(drive, **bindings, **self.switches)
        self.others = {
            n: build(bindings[n], **bindings, **self.switches) for n in ("check", "trim", "walk")
        }
        self.machine = Machine(config)  # keeps the simulated memory alive
        self.k = self.machine.k
        self.a = plugin.state()
        self.objects = np.zeros(slots, "i8")
        self.do([(INIT, 0, 0, 0)])

    def do(self, events):
        """Perform the operations; return the maximum steps by kind of operation."""
        events = np.array(events, "i8").reshape(-1, 4)
        steps = np.zeros(len(events), "i8")
        self.drive(self.k, self.a, self.objects, events, steps)
        return [int(steps[events[:, 0] == op].max(initial=0)) for op in range(6)]

    def steps(self, op, slot, size=0, alignment=16):
        """Perform one operation; return its steps."""
        return max(self.do([(op, slot, size, alignment)]))

    def address(self, op, slot, size, alignment=16):
        """Perform one operation; return the address in its slot."""
        self.do([(op, slot, size, alignment)])
        return int(self.objects[slot])

    def call(self, name, *arguments):
        """Call check, trim or walk."""
        return self.others[name](self.k, self.a, *arguments)

    def pieces(self, kind):
        """Return the addresses and sizes of all rows of a kind in the walk, (n, 2)."""
        rows = np.zeros((4 * len(self.objects), 3), "i8")
        rows = rows[: self.call("walk", rows)]
        return rows[rows[:, 2] == kind, :2]

    def filled_lists(self):
        """Return the number of non-empty lists, according to the bit maps."""
        read = build(peek, **self.switches)
        words = [int(read(self.k, self.a.control + tlsf.SL + 8 * i)) for i in range(tlsf.powers())]
        return sum(word.bit_count() for word in words)


# --- The bound ------------------------------------------------------------------------------------


def births(sizes, first=0):
    return [(MALLOC, slot, size, 0) for slot, size in enumerate(sizes, first)]


def deaths(slots):
    return [(FREE, slot, 0, 0) for slot in slots]


def checkerboard(n, random):
    """Free every other of ``n`` equal blocks: no hole fits a larger block."""
    return [40] * n, range(0, n, 2)


def every_list(n, random):
    """Make free blocks of all sizes, from 32 bytes to 16 or 256 KiB, separated by used ones."""
    top = 14 if n > 10_000 else 18
    sizes = (2.0 ** np.linspace(5, top, n // 2)).astype(int)
    return np.column_stack([sizes, np.full(n // 2, 24)]).ravel(), range(0, n, 2)


def shuffled(n, random):
    """Free half of ``n`` blocks of random sizes in random order; adjacent ones merge."""
    return random.lognormal(4.5, 1.5, n).astype(int), random.permutation(n)[: n // 2]


HEAPS = {f.__name__: f for f in (checkerboard, every_list, shuffled)}


def probes(n, random, live):
    """Return operations on the slots below ``n``, of which ``live`` hold blocks, and on new slots.

    First come all operations with sizes up to 1 MiB.  Then come frees of neighbours that may be
    alone on their lists, aligned blocks that leave a remainder at both ends, and reallocs that grow
    in place or must move.
    """
    events = []
    for _ in range(PROBES):
        size = int(2.0 ** random.uniform(0, 20))
        slot = int(random.integers(n))
        if slot not in live:
            op = random.choice([MALLOC, CALLOC, ALIGNED])
            events.append((op, slot, size, 16 << int(random.integers(9))))
            live.add(slot)
        elif random.random() < 0.5:
            events.append((REALLOC, slot, size, 0))
        else:
            events.append((FREE, slot, 0, 0))
            live.remove(slot)
    for low in range(n, n + PROBES, 8):
        sizes = [int(2.0 ** random.uniform(5, 20)) for _ in range(3)]
        events += births([24, *sizes, 24], low)
        events += deaths([low + 1, low + 3, low + 2])
        events.append((random.choice([MALLOC, CALLOC]), low + 5, min(sizes), 0))
        alignment = 32 << int(random.integers(10))
        events.append((ALIGNED, low + 6, min(sizes) // 8, alignment))
        events.append((REALLOC, low, sizes[0], 0))
        events.append((REALLOC, low + 4, sizes[2], 0))
        events += deaths([low, low + 6, low + 5, low + 4])
    return events


def most_steps(heap, name, n):
    """Build a heap of ``n`` blocks, probe it, free it; return the maximum steps by operation."""
    random = np.random.default_rng(n)
    sizes, dead = HEAPS[name](n, random)
    most = [heap.do(births(sizes)), heap.do(deaths(dead))]
    live = set(range(n)) - {int(slot) for slot in dead}
    assert np.count_nonzero(heap.objects) == len(live) == n // 2
    if name == "every_list" and n >= 10_000:
        # Lists 0 and 1 are always empty, and a block can be 16 bytes larger than requested.
        assert heap.filled_lists() >= tlsf.list_of(1 << 14) - 4
    most.append(heap.do(probes(n, random, live)))
    assert heap.call("check") == 0
    most.append(heap.do(deaths(np.flatnonzero(heap.objects))))
    assert len(heap.pieces(BLOCK_FREE)) == 1
    return np.max(most, axis=0).tolist()


@pytest.mark.parametrize("name", HEAPS)
def test_the_bound_holds_for_every_heap_of_every_size(name):
    seen = {n: most_steps(Heap(slots=n + PROBES), name, n) for n in SIZES}
    for n, most in seen.items():
        assert all(steps <= bound for steps, bound in zip(most, BOUNDS, strict=True)), (n, most)
    # The bound is tight: heaps of every size reach it for free and malloc.
    if not disabled():
        assert {most[FREE] for most in seen.values()} == {tlsf.FREE_STEPS}
        assert {most[MALLOC] for most in seen.values()} == {tlsf.MALLOC_STEPS}


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", HEAPS)
def test_the_bound_holds_with_other_settings(name):
    for plugin in list(variations("tlsf"))[1:]:
        most = most_steps(Heap(values=plugin.formatted(), slots=100 + PROBES), name, 100)
        assert all(steps <= bound for steps, bound in zip(most, BOUNDS, strict=True)), plugin.label


@pytest.mark.parametrize("name", ["first_fit", "kr"])
def test_policies_that_search_have_no_bound(name):
    """On a checkerboard, a request that fits no hole visits all of them."""
    found = []
    for n in SEARCHED:
        heap = Heap(name, slots=n + 1)
        heap.do(births([40] * n))
        heap.do(deaths(range(0, n, 2)))
        found.append(max(heap.steps(MALLOC, n, 120) for _ in range(3)))
        assert found[-1] >= n
    assert found[-1] > max(BOUNDS)
    assert all(after > 8 * before for before, after in pairwise(found))


@pytest.mark.usefixtures("plain")
def test_each_bound_is_met_by_a_heap_made_for_it():
    heap = Heap()
    heap.do(births([24]))
    assert heap.steps(MALLOC, 1, 400_000) == tlsf.MALLOC_STEPS  # grows the last block
    # Both neighbours are alone in their powers: 1 KiB before, 8 KiB after.
    heap.do([*births([1000, 3000, 9000, 24], 2), *deaths([2, 4])])
    assert heap.steps(FREE, 3) == tlsf.FREE_STEPS
    assert heap.steps(CALLOC, 2, 3000) == tlsf.MALLOC_STEPS  # found by first level, split
    heap = Heap()
    heap.do([*births([48_000, 24]), *deaths([0])])
    assert heap.steps(ALIGNED, 0, 3000, 16384) == tlsf.ALIGNED_STEPS
    # Neither the free end nor the kernel has enough, but a block elsewhere can be split.
    heap = Heap()
    heap.do([*births([600_000, 24, 1000, 3000]), *deaths([0, 2])])
    heap.k.mm.rlim_data = 0
    old = int(heap.objects[3])
    assert heap.steps(REALLOC, 3, 280_000) == tlsf.REALLOC_STEPS
    assert heap.objects[3] < old


# --- The lists ------------------------------------------------------------------------------------


def test_lists_are_mapped_as_in_the_paper():
    sli, small = int(tlsf.SLI), 16 << tlsf.SLI
    for size in range(32, small, 16):
        assert tlsf.list_of(size) == size // 16
    rng = np.random.default_rng(1)
    for power in range(small.bit_length() - 1, 47):
        width = 1 << (power - sli)
        for size in [1 << power, (2 << power) - 16, *rng.integers(1 << power, 2 << power, 20)]:
            first, second = divmod(tlsf.list_of(int(size) & -16), 1 << sli)
            assert first == power - sli - 3
            assert second == ((int(size) & -16) - (1 << power)) // width
            assert 0 <= first < tlsf.powers()


def test_the_search_starts_at_the_lowest_list_whose_blocks_all_fit():
    rng = np.random.default_rng(2)
    for need in (2.0 ** rng.uniform(5, 46, 500)).astype(int).tolist():
        need = tlsf.block_for(need)
        found = tlsf.list_of(tlsf.good_fit(need))
        assert tlsf.good_fit(need) >= need
        assert tlsf.list_of(tlsf.good_fit(need) - 16) < found
        assert tlsf.list_of(need - 16) < found or need == tlsf.good_fit(need)
        assert tlsf.good_fit(need) <= need + (need >> tlsf.SLI) + 16


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("sli", [1, 5])
def test_malloc_takes_a_block_of_the_lowest_list_that_fits(sli, monkeypatch):
    monkeypatch.setattr(tlsf, "SLI", number(sli))
    random = np.random.default_rng(3)
    heap = Heap(values={"sli": sli})
    heap.do(births((2.0 ** random.uniform(4, 12, 300)).astype(int)))
    heap.do(deaths(random.permutation(300)[:150]))
    reused = 0
    for size in (2.0 ** random.uniform(3, 12, 80)).astype(int).tolist():
        need = tlsf.block_for(size)
        fits = {
            int(block): tlsf.list_of(int(length))
            for block, length in heap.pieces(BLOCK_FREE)
            if tlsf.list_of(int(length)) >= tlsf.list_of(tlsf.good_fit(need))
        }
        best = [block for block, index in fits.items() if index == min(fits.values())]
        block = heap.address(MALLOC, 999, size) - tlsf.TAG
        assert block in best
        reused += block < max(heap.pieces(BLOCK_USED)[:-1, 0])
    assert reused > 40


# --- The pool -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain")
def test_adjacent_memory_from_the_kernel_joins_the_pool():
    heap = Heap()
    heap.do(births([100_000] * 20))
    assert heap.k.mm.nr_brk >= 8
    heap.do(deaths([*range(0, 20, 2), *range(1, 20, 2)]))
    assert len(heap.pieces(BLOCK_FREE)) == 1


@pytest.mark.usefixtures("plain")
def test_foreign_memory_between_pools_is_fenced_off():
    heap = Heap()
    last = heap.address(MALLOC, 0, 100_000)
    foreign = build(sbrk, **heap.switches)(heap.k, 5_000)
    above = heap.address(MALLOC, 1, 300_000)
    assert above >= foreign + 5_000
    assert above % 16 == 0
    assert heap.call("check") == 0
    # A block neither grows nor merges across the fence.
    moved = heap.address(REALLOC, 0, 250_000)
    assert moved != last
    heap.do(deaths([0, 1]))
    assert heap.call("check") == 0
    below, behind = heap.pieces(BLOCK_FREE)
    assert below.sum() <= foreign
    assert behind[0] >= foreign + 5_000
    # trim returns the new part except its first page; the old part is not at the break.
    pages = heap.k.mm.total_vm
    heap.call("trim")
    assert pages - heap.k.mm.total_vm >= 100
    assert heap.call("check") == 0
    assert heap.pieces(BLOCK_FREE)[1, 1] < 4096
    build(sbrk, **heap.switches)(heap.k, 5_000)
    pages = heap.k.mm.total_vm
    heap.call("trim")
    assert heap.k.mm.total_vm == pages


@pytest.mark.usefixtures("plain")
def test_an_empty_pool_is_released_with_its_control_structure():
    heap = Heap()
    start = int(heap.k.mm.brk)
    for _ in range(2):
        heap.call("trim")
        assert heap.k.mm.brk == start
        heap.do(births([40, 4000, 70_000]))
        assert heap.a.control == start
        heap.do(deaths([2, 0]))
        heap.call("trim")
        assert start < heap.k.mm.brk <= heap.objects[1] + 3 * 4096
        assert heap.call("check") == 0
        heap.do(deaths([1]))
    heap.call("trim")
    assert heap.k.mm.brk == start


@pytest.mark.usefixtures("plain")
def test_the_last_block_serves_a_request_that_rounding_up_would_miss():
    """A request for exactly the last free block needs no sbrk, even if good_fit exceeds it."""
    heap = Heap(values={"growth": 0})
    heap.do(births([24]))
    (_, room), calls = heap.pieces(BLOCK_FREE)[0], int(heap.k.mm.nr_brk)
    heap.do([(MALLOC, 1, room - tlsf.TAG, 0), (FREE, 1, 0, 0)])
    assert tlsf.good_fit(int(room)) > room
    assert heap.address(MALLOC, 1, room - tlsf.TAG)
    assert heap.k.mm.nr_brk == calls
    assert not len(heap.pieces(BLOCK_FREE))


@pytest.mark.usefixtures("plain")
def test_realloc_grows_in_place_if_there_is_room():
    heap = Heap()
    p, behind, _ = (heap.address(MALLOC, slot, 1000) for slot in range(3))
    heap.do(deaths([1]))
    assert heap.address(REALLOC, 0, 1500) == p  # splits the next block
    assert heap.address(MALLOC, 1, 300) > p
    heap.do(deaths([1]))
    assert heap.address(REALLOC, 0, 2000) == p  # takes all of the next block
    assert heap.address(REALLOC, 0, 200) == p
    assert p < heap.address(MALLOC, 1, 1000) < behind  # reuses the returned part
    last = heap.address(MALLOC, 3, 1000)
    calls = int(heap.k.mm.nr_brk)
    assert heap.address(REALLOC, 3, 500_000) == last  # the pool grows in place
    assert heap.k.mm.nr_brk == calls + 1
    heap.k.mm.rlim_data = 0
    assert heap.address(REALLOC, 3, 5_000_000) == last  # refused: kept
    heap.k.mm.rlim_data = RLIM_INFINITY
    assert heap.address(REALLOC, 0, 100_000) > last  # the next block is used: moves
    assert heap.call("check") == 0


@pytest.mark.usefixtures("plain")
def test_the_control_structure_is_counted():
    """malloc from a list of two blocks counts the head and the bit maps: they are simulated."""
    heap = Heap()
    heap.do(births([100] * 8))
    heap.do(deaths([1, 3]))
    links, head, sl, size, tags = 2 + 1, 1 + 1, 1, 1, 1 + 2
    assert heap.steps(MALLOC, 1, 100) == sl + head + size + links + tags
