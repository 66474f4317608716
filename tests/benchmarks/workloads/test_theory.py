"""Theoretical results on placement policies hold for the allocators of this project.

Sources and formulas: benchmarks.workloads.ffworst, robson and checkerboard; for the buddy system
and the worst case of first fit: Knuth, TAOCP 1, section 2.5, exercises 42 and 43.
"""

import math

import numpy as np
import pytest

from allocators.base import registry
from allocators.base.contract import usable_size
from benchmarks import workloads
from benchmarks.events.events import MALLOC
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig
from kernel.engine.jit import build, jit

SPACE, SMALLEST, ROUNDS = 16 << 20, 4096, 13
FFWORST = {"name": "ffworst", "space": SPACE, "smallest": SMALLEST, "rounds": ROUNDS}
#: First fit and nothing else: no mappings, no more than is needed, nothing given back.
PURE = {"order": "address", "mmap_threshold": 0, "growth": 0, "trim_threshold": 0}
BUDGET, UNIT, OVERHEAD = 1 << 18, 64, 8
DOUBLINGS = 7


def simulate(allocator, workload, **settings):
    """Return a Simulation of an allocator with the given settings and the workload."""
    plugin = registry.load(allocator, settings)
    return Simulation(plugin, workloads.load(workload), KernelConfig(), OBSERVED)


def ratios(simulation):
    """Return the largest heap over the largest live bytes after each round of ffworst."""
    op = simulation.workload.events.op
    last = np.flatnonzero((op[:-1] == MALLOC) & (op[1:] != MALLOC)).tolist()
    # The last block of the last round is the last allocation, even if no free follows it.
    ends = [*last, int(np.flatnonzero(op == MALLOC)[-1])][:ROUNDS]
    found = []
    for end in ends:
        simulation.replay(end + 1)
        found.append(int(simulation.r.peak_heap) / int(simulation.r.peak_live))
    return found


def without_reuse(k):
    return k / (2 - 2 ** (1 - k))


def test_without_reuse_ffworst_grows_by_the_formula():
    found = ratios(simulate("bump", FFWORST))
    assert len(found) == ROUNDS
    for k, ratio in enumerate(found, 1):
        assert ratio == pytest.approx(without_reuse(k), rel=0.03), k


def test_allocators_that_reuse_large_blocks_stay_flat():
    found = ratios(simulate("first_fit", FFWORST))
    threshold = 128 << 10
    below = sum(SMALLEST << i <= threshold for i in range(ROUNDS))
    for k, ratio in enumerate(found[:below], 1):  # below the threshold, nothing is reused
        assert ratio == pytest.approx(without_reuse(k), rel=0.05), k
    # Above the threshold the heap stays constant, plus the live mmapped blocks.
    for k, ratio in enumerate(found[below:], below + 1):
        mapped = 2 - 2 ** (1 - (k - below))
        assert ratio == pytest.approx((below + mapped) / (2 - 2 ** (1 - k)), rel=0.03), k
    flat = found[below + 2 :]
    assert len(flat) >= 4
    assert max(flat) <= 1.01 * min(flat)
    assert max(flat) < 0.65 * without_reuse(ROUNDS)


def test_the_peak_live_bytes_follow_the_formula():
    for k in (1, 2, 5, ROUNDS):
        events = workloads.load(FFWORST | {"rounds": k}).events
        sizes = dict(zip(events.slot.tolist(), events.size.tolist(), strict=True))
        assert len(sizes) == np.count_nonzero(events.op == MALLOC)  # one slot per block
        size_of = np.zeros(len(sizes), "i8")
        births = events.op == MALLOC
        size_of[events.slot[births]] = events.size[births]
        live = np.cumsum(np.where(births, 1, -1) * size_of[events.slot])
        assert live.max() == SPACE * (2 - 2 ** (1 - k))


@jit
def measure_blocks(k, a, objects, usable):
    """Return the usable bytes of every live object."""
    for i in range(objects.shape[0]):
        if objects[i, 0] > 0:
            usable[i] = usable_size(k, a, objects[i, 0])
    return 0


@pytest.mark.parametrize("high", [8 << 10, 64 << 10])
def test_buddy_rounds_log_smooth_sizes_by_four_to_three_up_to_three_to_two(high):
    sizes = {"kind": "power", "exponent": 1, "low": SMALLEST, "high": high}
    churn = {"name": "churn", "operations": 8000, "live": 8000, "sizes": sizes}
    simulation = simulate("buddy", churn)
    simulation.replay()
    asked, usable = simulation.objects[:, 1], np.zeros(8000, "i8")
    measure = build(measure_blocks, **simulation._bindings)
    measure(simulation.k, simulation.a, simulation.objects, usable)
    block = usable + 16
    assert (block & (block - 1) == 0).all()
    # Ratio of block to request: mean 1/ln 2, ratio of the sums 2 ln 2.
    assert (block / asked).mean() == pytest.approx(1 / math.log(2), rel=0.02)
    assert block.sum() / asked.sum() == pytest.approx(2 * math.log(2), rel=0.02)
    # Nothing was freed: the heap is the sum of the blocks plus less than a chunk.
    assert 1.33 <= int(simulation.r.peak_heap) / int(simulation.r.peak_live) <= 1.50


def adversary(name, **settings):
    """Return the heap of address-ordered first fit over the budget M of an adversary."""
    common = {"name": name, "budget": BUDGET, "unit": UNIT, "overhead": OVERHEAD}
    simulation = simulate("first_fit", common | settings, **PURE)
    simulation.replay()
    simulation.verify_end()
    assert not simulation.r.failed
    blocks = int(simulation.r.peak_live) + OVERHEAD * int(simulation.r.peak_live_objects)
    assert int(simulation.r.peak_live) <= BUDGET
    assert blocks >= BUDGET / 2
    return int(simulation.r.peak_heap) / BUDGET


def any_policy(doublings):
    """Return the lower bound for every policy, over M (Robson 1971): ½ log2 n + 1 - n / M."""
    return doublings / 2 + 1 - (UNIT << doublings) / BUDGET


def first_fit_at_most(doublings):
    """Return the bound of address-ordered first fit, over M: H_n / ln 2, about log2 n + 0.83."""
    return sum(1 / i for i in range(1, (1 << doublings) + 1)) / math.log(2)


@pytest.mark.parametrize("doublings", [2, 5, DOUBLINGS])
def test_first_fit_lies_between_the_bounds(doublings):
    page = 4096 / BUDGET
    upper = first_fit_at_most(doublings) + page
    classic = adversary("checkerboard", rounds=doublings)
    assert any_policy(doublings) - page <= classic <= upper
    double = adversary("robson", doublings=doublings, steps=1)
    assert any_policy(doublings) - page <= double <= upper
    finer = adversary("robson", doublings=doublings, steps=8)
    assert any_policy(doublings) < finer <= upper


def test_finer_sizes_grow_the_heap_beyond_the_bound_for_any_policy():
    found = [adversary("robson", doublings=DOUBLINGS, steps=steps) for steps in (1, 4, 16)]
    assert found == sorted(found)
    assert found[-1] > 1.15 * any_policy(DOUBLINGS)
    assert found[-1] < DOUBLINGS
