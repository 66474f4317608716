"""Queue: the oldest object is freed first.

    live objects   ╱▔╲╱╲╱╲╱╲╱   fill up to ``live``, then alternate ``burst`` mallocs and frees

It models message queues and pipelines: a heap of constant size in which every free block is old and
adjacent to others.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import require_operations
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
LIVE = number(25_000, low=1, high=1 << 28, text="live objects between bursts")
BURST = number(100, low=1, high=1 << 28, text="objects produced, then consumed, per burst")
SIZES = sizes(kind="lognormal")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the operations suffice to fill up to ``live``."""
    require_operations(s.operations, s.live, "to fill up to live")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Number objects by birth and free them in that order; slots form a ring."""
    turn, phase = np.divmod(np.arange(s.operations - s.live), 2 * s.burst)
    born = phase < s.burst
    number_of = np.where(born, s.live + turn * s.burst + phase, (turn - 1) * s.burst + phase)
    op = np.concatenate([np.full(s.live, MALLOC), np.where(born, MALLOC, FREE)])
    slot = np.concatenate([np.arange(s.live), number_of % (s.live + s.burst)])
    size = np.zeros(s.operations, "i8")
    mallocs = op == MALLOC
    size[mallocs] = s.sizes.draw(random, int(np.count_nonzero(mallocs)))
    return make_events(op, slot, size)
