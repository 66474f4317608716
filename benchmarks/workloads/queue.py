"""Queue: the oldest object dies first.

    live objects   ╱▔╲╱╲╱╲╱╲╱   fill up to live, then burst mallocs and burst frees in turn

Message queues and pipelines; a steady heap in which every free block is old and next to others.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import room
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="malloc and free in all")
LIVE = number(25_000, low=1, high=1 << 28, text="objects alive between bursts")
BURST = number(100, low=1, high=1 << 28, text="objects produced, then consumed, at a time")
SIZES = sizes(kind="lognormal")


def check_settings(s: SimpleNamespace) -> None:
    """The fill takes one operation an object."""
    room(s.operations, s.live, "to fill up to live")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Objects are numbered by birth and die in that order; slots go round in a ring."""
    turn, phase = np.divmod(np.arange(s.operations - s.live), 2 * s.burst)
    born = phase < s.burst
    number_of = np.where(born, s.live + turn * s.burst + phase, (turn - 1) * s.burst + phase)
    op = np.concatenate([np.full(s.live, MALLOC), np.where(born, MALLOC, FREE)])
    slot = np.concatenate([np.arange(s.live), number_of % (s.live + s.burst)])
    size = np.zeros(s.operations, "i8")
    mallocs = op == MALLOC
    size[mallocs] = s.sizes.draw(random, int(np.count_nonzero(mallocs)))
    return make_events(op, slot, size)
