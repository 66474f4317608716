"""Sawtooth: the live curve rises steadily and falls at once, again and again.

    live    ╱│  ╱│  ╱│  ╱│      a tooth: up to ``peak`` objects, then all of it dies
           ╱ │ ╱ │ ╱ │ ╱ │      but ``kept`` % that live through the next tooth
          ╱  │╱  │╱  │╱  │

Compilers, request handlers and games drop what a phase needed all together.  The few objects that
stay lie scattered over the heap, and die when others have taken their place: what they pin down is
what an allocator loses.  ``order`` is the order of a fall.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import choice, number
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release, room
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="malloc and free in all")
PEAK = number(50_000, low=1, high=1 << 28, text="objects at the tip of a tooth")
KEPT = number(2, low=0, high=100, text="objects that live through the next tooth, %")
ORDER = choice("random", "fifo", "lifo", text="in which a tooth's objects die")
SIZES = sizes(kind="lognormal")

RANDOM, FIFO = 0, 1


def check_settings(s: SimpleNamespace) -> None:
    """The first tooth reaches its tip."""
    room(s.operations, s.peak, "to reach the peak")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """A tooth fills the empty slots in order; the survivors of the one before die with it."""
    pieces, done = [], 0
    survivors, empty = np.empty(0, "i8"), np.arange(s.peak)
    kept = min(s.peak * s.kept // 100, s.peak // 2)
    while done < s.operations:
        pieces.append(allocate(empty, s.sizes.draw(random, len(empty))))
        mixed = empty[random.permutation(len(empty))]
        stay, go = mixed[:kept], mixed[kept:]
        if s.order != RANDOM:
            go = np.sort(go) if s.order == FIFO else np.sort(go)[::-1]
        go = np.concatenate([survivors, go])
        pieces.append(release(go))
        done += len(empty) + len(go)
        survivors, empty = stay, np.sort(go)
    return join(*pieces, operations=s.operations)
