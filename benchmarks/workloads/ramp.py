"""Ramp: grow to a peak, hold it, drain to a plateau, hold that, again and again.

    peak       ╱▔▔▔╲        ╱▔▔▔╲
    plateau   ╱     ╲______╱     ╲______     held by replacing random objects

Victims of the drain are random, so survivors lie scattered over the heap: what stays resident on
the plateau is what the allocator could not give back.
"""

from types import SimpleNamespace

from allocators.base.settings import number
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release, replace, room
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="malloc and free in all")
PEAK = number(50_000, low=1, high=1 << 28, text="objects at the peak")
PLATEAU = number(5_000, low=1, high=1 << 28, text="objects left after a drain")
CYCLES = number(4, low=1, high=10_000, text="times that the peak is reached")
SIZES = sizes(kind="lognormal")


def _moves(s: SimpleNamespace) -> int:
    """Operations that growing and draining take."""
    return s.plateau + 2 * s.cycles * (s.peak - s.plateau)


def check_settings(s: SimpleNamespace) -> None:
    """The plateau lies below the peak, and the operations reach to the last one."""
    if s.plateau > s.peak:
        raise ValueError(f"plateau={s.plateau} is above peak={s.peak}")
    room(s.operations, _moves(s), "to grow and drain in every cycle")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """What growing and draining leaves of the operations is spread over the holds."""
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
