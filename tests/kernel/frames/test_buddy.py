"""The buddy allocator: it allocates the expected blocks and merges all free buddies."""

import random

import numpy as np
import pytest

from kernel.engine.jit import disabled
from kernel.frames import default_min_free, fragmentation_index, free_blocks, unusable_free_index
from kernel.types import OTHERS, WMARK_HIGH, WMARK_LOW, WMARK_MIN
from tests.kernel.frames.driver import Memory

MAX_ORDER = 10


def canonical(free, zones):
    """Return the blocks {(first, order)} of fully merged free memory.

    They are unique: the largest aligned blocks of free frames within a zone.
    """
    blocks = set()
    for start, end in zones:
        pfn = start
        while pfn < end:
            if not free[pfn]:
                pfn += 1
                continue
            order = 0
            while (
                order < MAX_ORDER
                and pfn % (2 << order) == 0
                and pfn + (2 << order) <= end
                and free[pfn : pfn + (2 << order)].all()
            ):
                order += 1
            blocks.add((pfn, order))
            pfn += 1 << order
    return blocks


@pytest.mark.parametrize("frames", [1, 7, 1024, 2500])
def test_all_memory_is_free_after_boot(frames):
    memory = Memory(frames, boundary=1024)
    zones = [(0, min(frames, 1024)), (min(frames, 1024), frames)]
    assert memory.blocks() == canonical(np.ones(frames, bool), zones)
    memory.verify()


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_match_an_oracle(seed):
    rng = random.Random(seed)
    frames = rng.choice([2048, 3000, 4096])
    memory = Memory(frames, boundary=1024)
    zones = [(0, 1024), (1024, frames)]
    free = np.ones(frames, bool)
    owned = []
    for _ in range(60 if disabled() else 600):
        if owned and rng.random() < 0.5:
            pfn, order = owned.pop(rng.randrange(len(owned)))
            free[pfn : pfn + (1 << order)] = True
            memory.free(pfn, order)
        else:
            order = min(int(rng.expovariate(0.5)), MAX_ORDER)
            memory.k.zone[0].lowmem_reserve = 0
            pfn = memory.alloc(order, WMARK_MIN)
            # The upper zone first; in it the smallest block that is large enough; its lower end.
            room = [canonical(free, [zone]) for zone in reversed(zones)]
            room = next((r for r in room if any(o >= order for _, o in r)), None)
            if room is None:
                assert pfn == -1
                continue
            smallest = min(o for _, o in room if o >= order)
            assert (pfn, smallest) in room
            free[pfn : pfn + (1 << order)] = False
            owned.append((pfn, order))
        assert memory.blocks() == canonical(free, zones)
        assert sum(int(z.free) for z in memory.k.zone) == free.sum()
    for pfn, order in owned:
        memory.free(pfn, order)
    memory.verify()


def test_the_last_block_freed_is_the_next_one_used():
    memory = Memory(1024)
    frames = [memory.alloc(0, WMARK_MIN) for _ in range(8)]
    assert frames == list(range(8))
    for pfn in (1, 5, 3):
        memory.free(pfn, 0)
    assert [memory.alloc(0, WMARK_MIN) for _ in range(3)] == [3, 5, 1]


def test_events_are_counted():
    memory = Memory(1024)
    pfn = memory.alloc(0, WMARK_MIN)
    stat = memory.k.vmstat
    assert (stat.pgalloc, stat.splits) == (1, 10)
    memory.free(pfn, 0)
    assert (stat.pgfree, stat.merges) == (1, 10)


def test_the_upper_zone_is_used_first_and_never_merges_with_the_lower():
    memory = Memory(2048, boundary=1024)
    memory.k.zone[0].lowmem_reserve = 0
    assert memory.alloc(0, WMARK_MIN) == 1024
    assert memory.alloc(9, WMARK_MIN) == 1024 + 512
    assert memory.alloc(9, WMARK_MIN) == 0, "the upper zone has no whole block left"
    memory = Memory(2048, boundary=1024)
    assert memory.blocks() == {(0, 10), (1024, 10)}


def test_a_zone_keeps_a_reserve_from_requests_that_the_other_may_serve():
    memory = Memory(4096, boundary=1024)
    assert memory.k.zone[0].lowmem_reserve == 3072 // 256
    got = 0
    while memory.alloc(0, WMARK_MIN) >= 0:
        got += 1
    assert got == 4096 - 3072 // 256


@pytest.mark.parametrize(("mark", "left"), [(WMARK_MIN, 100), (WMARK_LOW, 125), (WMARK_HIGH, 150)])
def test_watermarks_hold_frames_back(mark, left):
    memory = Memory(1024, min_free=100)
    while memory.alloc(0, mark) >= 0:
        pass
    assert memory.k.zone[0].free == left


def test_watermarks_follow_linux():
    assert default_min_free(64 << 20) == 1024 << 10
    assert default_min_free(1 << 20) == 128 << 10
    assert default_min_free(16 << 30) == 16384 << 10
    assert default_min_free(1 << 50) == 262144 << 10
    memory = Memory(100_000, min_free=100)
    assert list(memory.k.zone[0].wmark) == [100, 200, 300], "a thousandth apart at least"


@pytest.mark.parametrize("percent", [0, 10, 50, 100])
def test_kernel_fragmentation_occupies_the_requested_share_of_blocks(percent):
    memory = Memory(20 * 512, percent=percent)
    memory.verify()
    held = [n for n in range(20 * 512) if memory.k.frame[n].state == OTHERS]
    assert len({n // 512 for n in held}) == len(held) == 20 * percent // 100 == memory.k.phys.others
    assert memory.k.zone[0].managed == memory.k.zone[0].free == 20 * 512 - len(held)
    huge = 0
    while memory.alloc(9, WMARK_MIN) >= 0:
        huge += 1
    assert huge == 20 - len(held)
    assert memory.k.zone[0].free == len(held) * 511, "all but one frame of a block are still there"
    assert not held or memory.alloc(0, WMARK_MIN) >= 0


def test_booting_again_resets_everything():
    memory = Memory(4096, percent=30)
    before = memory.blocks()
    for _ in range(100):
        memory.alloc(0, WMARK_MIN)
    memory.init(2048, 1 << 22, 0, 0, 0)
    memory.verify()
    assert memory.blocks() == {(0, 10), (1024, 10)}
    memory.init(4096, 1 << 22, 0, 30, 0)
    assert memory.blocks() == before


def test_indices_of_known_cases():
    one_run = np.zeros(14, "i8")
    one_run[10] = 3
    assert unusable_free_index(one_run, 9) == 0
    assert fragmentation_index(one_run, 9) == -1
    checkerboard = np.zeros(14, "i8")
    checkerboard[0] = n = 1000
    assert unusable_free_index(checkerboard, 1) == 1
    assert fragmentation_index(checkerboard, 1) == pytest.approx(0.5 - 1 / n)
    nothing = np.zeros(14, "i8")
    assert fragmentation_index(nothing, 9) == 0
    assert unusable_free_index(nothing, 9) == 1
    # Half of the free memory is in blocks of order 9.
    half = np.zeros(14, "i8")
    half[9], half[8] = 2, 4
    assert unusable_free_index(half, 9) == 0.5
    memory = Memory(10 * 512, percent=100)
    assert unusable_free_index(free_blocks(memory.k), 9) == 1
    assert 0.5 < fragmentation_index(free_blocks(memory.k), 9) < 1
