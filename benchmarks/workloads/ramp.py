"""Ramp: grow to a peak, hold it, drain to a plateau, hold that, repeatedly.

    peak       ╱▔▔▔╲        ╱▔▔▔╲
    plateau   ╱     ╲______╱     ╲______     held by replacing random objects

The drain frees random objects, so the survivors are scattered over the heap: memory that stays
resident on the plateau is memory that the allocator could not return to the kernel.
"""

from types import SimpleNamespace

from allocators.base.settings import number
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release, replace, require_operations
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
PEAK = number(50_000, low=1, high=1 << 28, text="live objects at the peak")
PLATEAU = number(5_000, low=1, high=1 << 28, text="live objects after a drain")
CYCLES = number(4, low=1, high=10_000, text="number of cycles, each with one peak")
SIZES = sizes(kind="lognormal")


def _moves(s: SimpleNamespace) -> int:
    """Return the number of operations that growing and draining take."""
    return s.plateau + 2 * s.cycles * (s.peak - s.plateau)


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless plateau <= peak and the operations suffice for all cycles."""
    if s.plateau > s.peak:
        raise ValueError(f"plateau={s.plateau} is above peak={s.peak}")
    require_operations(s.operations, _moves(s), "to grow and drain in every cycle")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Divide the operations that growing and draining do not need equally among the holds."""
    left = s.operations - _moves(s)
    hold = left // 2 // (2 * s.cycles)
    order = random.permutation(s.peak)  # live slots first
    live, pieces = 0, []
    for cycle in range(s.cycles):
        pieces.append(allocate(order[live:], s.sizes.draw(random, s.peak - live)))
        victims = order[random.below(hold, s.peak)]
        pieces.append(replace(victims, s.sizes.draw(random, hold)))
        order = order[random.permutation(s.peak)]
        live = s.plateau
        pieces.append(release(order[live:]))
        last = cycle == s.cycles - 1
        count = (left - 2 * hold * (2 * s.cycles - 1) + 1) // 2 if last else hold
        victims = order[random.below(count, live)]
        pieces.append(replace(victims, s.sizes.draw(random, count)))
    return join(*pieces, operations=s.operations)
