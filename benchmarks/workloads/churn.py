"""Churn: fill the heap to a constant number of objects, then replace random ones.

    live objects   ╱▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔   each replacement: free a random one, malloc another

Every object is equally likely to be freed next, so lifetimes are memoryless: the standard model of
a server in its steady state.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import require_operations
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
LIVE = number(25_000, low=1, high=1 << 28, text="live objects in the steady state")
SIZES = sizes(kind="lognormal")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the operations suffice to fill up to ``live``."""
    require_operations(s.operations, s.live, "to fill up to live")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate ``live`` mallocs, then pairs of free and malloc; the last pair may be cut."""
    op = np.full(s.operations, MALLOC, "u1")
    slot = np.empty(s.operations, "i4")
    size = np.zeros(s.operations, "i8")
    frees, mallocs = slice(s.live, None, 2), slice(s.live + 1, None, 2)
    op[frees] = FREE
    slot[: s.live] = np.arange(s.live)
    victims = random.below(len(op[frees]), s.live)
    slot[frees] = victims
    slot[mallocs] = victims[: len(op[mallocs])]
    size[: s.live] = s.sizes.draw(random, s.live)
    size[mallocs] = s.sizes.draw(random, len(op[mallocs]))
    return make_events(op, slot, size)
