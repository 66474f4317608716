"""Realloc_growth: vectors start small, grow by a factor with realloc, and end at a random size.

    capacity   ▁▂▄█ free ▁▂ free ▁▂▄ free …     of each vector; vectors are interleaved at random

The last capacity is a random one of the steps up to ``largest``.  A factor of 200 doubles; with a
factor below the golden ratio (161) the blocks freed before can together hold the next one.
"""

from bisect import bisect_left
from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number, size
from benchmarks.events.events import FREE, MALLOC, REALLOC, Events, make_events
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc, realloc and free calls")
VECTORS = number(1_000, low=1, high=1 << 20, text="vectors that are live concurrently")
FACTOR = number(200, low=101, high=10_000, text="new capacity, percent of the old: 200 doubles")
SMALLEST = size(32, low=1, high=1 << 30, text="bytes of a new vector")
LARGEST = size(65_536, low=1, high=1 << 30, text="upper bound on a vector's capacity, bytes")
ELEMENT = size(8, low=1, high=1 << 20, text="capacities grow by multiples of this, bytes")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless smallest <= largest."""
    if s.smallest > s.largest:
        raise ValueError(f"smallest={s.smallest} is above largest={s.largest}")


def capacities(s: SimpleNamespace) -> np.ndarray:
    """Return the capacities of a vector at its birth and after each growth, (steps,) int64."""
    steps = [s.smallest]
    while True:
        grown = steps[-1] * s.factor // 100
        following = max(steps[-1] + s.element, grown - (grown - s.smallest) % s.element)
        if following > s.largest:
            return np.array(steps, "i8")
        steps.append(following)


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Assign operations to vectors at random; each vector's operations form successive lives."""
    capacity = capacities(s)
    slot = random.below(s.operations, s.vectors)
    by_vector = np.argsort(slot, kind="stable")
    share = np.bincount(slot, minlength=s.vectors)

    # Concatenate all lives: a life of g growths is malloc, g reallocs, free.  Each vector starts
    # with the first life that the previous vector has not begun.
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
