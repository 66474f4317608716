"""Growing vectors: each starts small, is reallocated by a factor, and is dropped at a random size.

    capacity   ▁▂▄█ gone ▁▂ gone ▁▂▄ gone …     of every vector, interleaved at random

The last capacity is a random step of the way to ``largest``.  A factor of 200 doubles; below the
golden ratio (161) the blocks left behind can in principle hold the next one.
"""

from bisect import bisect_left
from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number, size
from benchmarks.events.events import FREE, MALLOC, REALLOC, Events, make_events
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="malloc, realloc and free in all")
VECTORS = number(1_000, low=1, high=1 << 20, text="vectors that live side by side")
FACTOR = number(200, low=101, high=10_000, text="new capacity in percent of the old: 200 doubles")
SMALLEST = size(32, low=1, high=1 << 30, text="bytes of a new vector")
LARGEST = size(65_536, low=1, high=1 << 30, text="no vector grows beyond this")
ELEMENT = size(8, low=1, high=1 << 20, text="capacities grow by multiples of this")


def check_settings(s: SimpleNamespace) -> None:
    """A vector must be able to start."""
    if s.smallest > s.largest:
        raise ValueError(f"smallest={s.smallest} is above largest={s.largest}")


def capacities(s: SimpleNamespace) -> np.ndarray:
    """Bytes of a vector at its birth and after each growth, (steps,) int64."""
    steps = [s.smallest]
    while True:
        grown = steps[-1] * s.factor // 100
        following = max(steps[-1] + s.element, grown - (grown - s.smallest) % s.element)
        if following > s.largest:
            return np.array(steps, "i8")
        steps.append(following)


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Deal operations to vectors at random; each vector plays whole lives, one after the other."""
    capacity = capacities(s)
    slot = random.below(s.operations, s.vectors)
    by_vector = np.argsort(slot, kind="stable")
    share = np.bincount(slot, minlength=s.vectors)

    # All lives in one row: a life of g growths is malloc, g reallocs, free.  Each vector starts
    # with the first life that the one before it has not begun.
    growths = random.below(s.operations // 2 + s.vectors + 1, len(capacity))
    begins = np.concatenate([[0], np.cumsum(growths + 2)])
    marks = begins.tolist()
    first, life = np.zeros(s.vectors, "i8"), 0
    for vector, operations in enumerate(share.tolist()):
        first[vector] = marks[life]
        life = bisect_left(marks, marks[life] + operations)
    rank = np.arange(s.operations) - np.repeat(np.cumsum(share) - share, share)
    position = np.repeat(first, share) + rank
    life_of = np.searchsorted(begins, position, side="right") - 1
    step = position - begins[life_of]
    dies = step > growths[life_of]
    op = np.empty(s.operations, "u1")
    op[by_vector] = np.where(dies, FREE, np.where(step == 0, MALLOC, REALLOC))
    bytes_of = np.zeros(s.operations, "i8")
    bytes_of[by_vector] = np.where(dies, 0, capacity[np.minimum(step, len(capacity) - 1)])
    return make_events(op, slot, bytes_of)
