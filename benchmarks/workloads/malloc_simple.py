"""Malloc_simple: blocks of one size, allocated in sequence and freed in the same order.

    live   ╱╲╱╲╱╲╱╲ … ╱▔╲╱▔╲ …      ``least`` blocks, then four times as many, up to ``most``

For each of three sizes (``size``, twice and four times that) the main thread, then another thread,
then the main thread again go through all numbers of blocks.  It shows the effect of caches of
recently freed blocks, and of their overflow.

Source: the GNU C library's benchtests/bench-malloc-simple.c.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import FREE, MALLOC, Events, make_events
from benchmarks.workloads.base.pieces import require_operations
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
SIZE = size_setting(16, low=1, high=1 << 28, text="bytes of the smallest blocks")
LEAST = number(25, low=1, high=1 << 20, text="smallest number of live blocks")
MOST = number(1_600, low=1, high=1 << 24, text="largest number of live blocks")

#: Multiples of the size, and the threads that run in turn.
_SIZES, _THREADS = (1, 2, 4), (0, 1, 0)


def _counts(s: SimpleNamespace) -> list[int]:
    """Return the numbers of live blocks: ``least``, times four while not above ``most``."""
    counts = [s.least]
    while 4 * counts[-1] <= s.most:
        counts.append(4 * counts[-1])
    return counts


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the operations suffice for a round in each part."""
    if s.least > s.most:
        raise ValueError(f"least={s.least} is above most={s.most}")
    counts = _counts(s)
    parts = len(_SIZES) * len(_THREADS) * len(counts)
    require_operations(
        s.operations, parts * 2 * counts[-1], f"for one round in each of {parts} parts"
    )


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate parts of about equal length, each of whole rounds.  Nothing is random."""
    counts = _counts(s)
    parts = [(m, t, n) for m in _SIZES for t in _THREADS for n in counts]
    ends = np.arange(1, len(parts) + 1) * s.operations // len(parts)
    pieces, begin = [], 0
    for (multiple, thread, count), end in zip(parts, ends.tolist(), strict=True):
        rounds = max(1, (end - begin) // (2 * count))
        length = s.operations - begin if end == s.operations else rounds * 2 * count
        step = np.arange(length) % (2 * count)
        births = step < count
        pieces.append(
            (
                np.where(births, MALLOC, FREE),
                step % count,
                np.where(births, multiple * s.size, 0),
                np.full(length, thread),
            )
        )
        begin += length
    op, slot, size, thread = map(np.concatenate, zip(*pieces, strict=True))
    return make_events(op, slot, size, thread=thread)
