"""Larson: threads replace random blocks of an array and pass the array on when they end.

    thread 0 fills every array     array 0 ── thread 1 ── thread T+1 ── …
    and ends                       array 1 ── thread 2 ── thread T+2 ── …

A thread first frees blocks that its predecessor allocated: the "bleeding" between threads that the
benchmark is known for.  Threads take turns, as on one processor.

Source: P.-Å. Larson, M. Krishnan, "Memory allocation for long-running server applications", 1998.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, THREAD_END, Events, make_events
from benchmarks.workloads.base.pieces import require_operations
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import sizes

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads that run concurrently")
BLOCKS = number(5_000, low=1, high=1 << 24, text="blocks in a thread's array")
LIFETIME = number(20_000, low=1, high=1 << 28, text="replacements by a thread before it ends")
TURN = number(100, low=1, high=1 << 28, text="replacements before the next thread runs")
SIZES = sizes(kind="uniform", low=8, high=1000)


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless slots fit into 32 bits and the operations fill the arrays."""
    if s.threads * s.blocks > 1 << 28:
        raise ValueError(f"threads={s.threads}, blocks={s.blocks}: more than 2**28 blocks in total")
    require_operations(s.operations, s.threads * s.blocks, "to fill the arrays")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate two events per replacement; a thread end is an additional event, no operation."""
    filled = s.threads * s.blocks
    replacements = (s.operations - filled + 1) // 2
    turn, step = np.divmod(np.arange(replacements), s.turn)
    array = turn % s.threads
    generation, age = np.divmod(turn // s.threads * s.turn + step, s.lifetime)
    thread = 1 + generation * s.threads + array
    slot = array * s.blocks + random.below(replacements, s.blocks)
    ends = np.flatnonzero(age == s.lifetime - 1)

    # Index of each replacement's free: every earlier thread end shifts it by one.
    place = filled + 1 + 2 * np.arange(replacements)
    place[1:] += np.cumsum(age == s.lifetime - 1)[:-1]
    n = filled + 1 + 2 * replacements + len(ends)
    columns = {"op": np.full(n, MALLOC), "slot": np.full(n, -1), "size": np.zeros(n, "i8")}
    columns["thread"] = np.zeros(n, "i8")
    columns["slot"][:filled] = np.arange(filled)
    columns["op"][filled] = THREAD_END
    columns["op"][place] = FREE
    for first in (place, place + 1):
        columns["slot"][first] = slot
        columns["thread"][first] = thread
    columns["op"][place[ends] + 2] = THREAD_END
    columns["thread"][place[ends] + 2] = thread[ends]
    mallocs = columns["op"] == MALLOC
    columns["size"][mallocs] = s.sizes.draw(random, int(np.count_nonzero(mallocs)))
    # If the number of operations is odd, cut off everything after the last free.
    if (s.operations - filled) % 2:
        columns = {name: column[: place[-1] + 1] for name, column in columns.items()}
    return make_events(**columns)
