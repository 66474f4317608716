"""Malloc_thread: threads replace random blocks of their own, with inverse-square sizes.

    thread 0   free, malloc, free, malloc …    in the thread's slots, chosen at random
    thread 1   free, malloc, …                 sizes 4 to 32768, density ∝ size**-2

Slots are empty at first, so the first free of each slot is free(NULL), as in the original.  The
original takes sizes and slots from repeating tables; here every choice is drawn independently.

Source: the GNU C library's benchtests/bench-malloc-thread.c.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import previous, take_turns
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads")
SLOTS = number(1_024, low=1, high=1 << 20, text="slots per thread")
TURN = number(100, low=1, high=1 << 28, text="events before the next thread runs")
SIZES = sizes(kind="power", exponent=2, low=4, high=32_768)


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless slots fit into 32 bits."""
    if s.threads * s.slots > 1 << 28:
        raise ValueError(f"threads={s.threads}, slots={s.slots}: more than 2**28 slots in total")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Free a slot at every even event of a thread, and fill it at the next, odd one."""
    thread, step = take_turns(s.operations, s.threads, s.turn)
    frees = step % 2 == 0
    chosen = random.below((int(step.max()) // 2 + 1) * s.threads, s.slots)
    slot = thread * s.slots + chosen[step // 2 * s.threads + thread]
    mallocs = np.flatnonzero(~frees)
    size = np.zeros(s.operations, "i8")
    size[mallocs] = s.sizes.draw(random, len(mallocs))
    slot[frees & (previous(slot) < 0)] = -1
    return make_events(np.where(frees, FREE, MALLOC), slot, size, thread=thread)
