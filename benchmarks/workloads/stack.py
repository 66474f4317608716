"""Stack: the newest object is freed first.

    depth   ╱╲  ╱╲╱▔╲    ╱     turning points are random depths, uniform in 0 … depth
           ╱  ╲╱     ╲╱╲╱

It models recursive programs and parsers: the best case for LIFO free lists and regions with bump
allocation.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
DEPTH = number(10_000, low=1, high=1 << 28, text="largest number of objects on the stack")
SIZES = sizes(kind="lognormal")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Walk from turning point to turning point until there are enough operations."""
    points = np.zeros(1, "i8")
    while np.abs(np.diff(points)).sum() < s.operations:
        # The mean distance of two random depths is a third of ``depth``.
        more = random.below(3 * s.operations // s.depth + 16, s.depth + 1)
        points = np.concatenate([points, more])
    steps = np.diff(points)
    lengths = np.abs(steps)
    runs = int(np.searchsorted(np.cumsum(lengths), s.operations)) + 1
    step = np.repeat(np.sign(steps[:runs]), lengths[:runs])[: s.operations]
    depth = np.cumsum(step)
    grows = step > 0
    size = np.zeros(s.operations, "i8")
    size[grows] = s.sizes.draw(random, int(np.count_nonzero(grows)))
    return make_events(np.where(grows, MALLOC, FREE), depth - grows, size)
