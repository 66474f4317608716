"""Sawtooth: live objects grow steadily to a peak and are freed all at once, repeatedly.

    live    ╱│  ╱│  ╱│  ╱│      a tooth: up to ``peak`` objects, then all are freed
           ╱ │ ╱ │ ╱ │ ╱ │      except ``kept`` % that live through the next tooth
          ╱  │╱  │╱  │╱  │

Compilers, request handlers and games free the objects of a phase together.  The few survivors are
scattered over the heap, and are freed only after new survivors exist: the memory that they pin is
the allocator's loss.  ``order`` is the order in which a tooth's objects are freed.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import choice, number
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release, require_operations
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
PEAK = number(50_000, low=1, high=1 << 28, text="live objects at the peak of a tooth")
KEPT = number(2, low=0, high=100, text="objects that live through the next tooth, %")
ORDER = choice("random", "fifo", "lifo", text="order in which a tooth's objects are freed")
SIZES = sizes(kind="lognormal")

RANDOM, FIFO = 0, 1


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the first tooth reaches its peak."""
    require_operations(s.operations, s.peak, "to reach the peak")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Fill the empty slots in order; free a tooth together with the survivors of the last one."""
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
