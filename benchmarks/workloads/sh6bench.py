"""Sh6bench: many small sizes in a fixed order; a buffer is freed forwards and backwards.

    buffer     │  freed ─▶  │ kept │  ◀─ freed  │     a fifth of the buffer, a different one in
    of a       │  │ kept │  ◀──────── freed     │     each cycle, is kept through the next cycle
    thread

A cycle fills the empty places from the left.  Then the blocks left of the kept fifth are freed in
the order of the buffer, and the blocks right of it in reverse.  Sizes: for each of 1, 2, 4, 7, 11,
… (times 3/2, plus 1) below ``largest``, that size, half of it, a quarter … 1; each 250 times below
100 bytes, 50 times below 1000, 10 times below 10000, else once.  Nothing is random.

Source: MicroQuill, sh6bench.c, 2000 (its description and behaviour; mimalloc-bench's call count).
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import NEVER, lives, moment
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads")
BLOCKS = number(10_000, low=5, high=1 << 24, text="blocks in all threads' buffers together")
LARGEST = size_setting(1_000, low=2, high=1 << 28, text="all sizes are below this, bytes")
TURN = number(100, low=1, high=1 << 28, text="events before the next thread runs")

#: Parts of a buffer, of which one is kept.
_PARTS = 5
#: (bound, n): a size below the bound is repeated n times; other sizes occur once.
_REPEATS = ((100, 250), (1_000, 50), (10_000, 10))


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless each part of a thread's buffer has a block."""
    if s.blocks // s.threads < _PARTS:
        raise ValueError(f"blocks={s.blocks}: must be at least {_PARTS * s.threads}, 5 per thread")


def size_sequence(largest: int) -> np.ndarray:
    """Return the sizes of one pass, in order, int64."""
    sizes, base = [], 1
    while base < largest:
        size = base
        while size:
            sizes += [size] * next((n for below, n in _REPEATS if size < below), 1)
            size //= 2
        base = base * 3 // 2 + 1
    return np.array(sizes)


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate one thread's events cycle by cycle; every thread does the same."""
    n = s.blocks // s.threads
    fifth = n // _PARTS
    wanted = s.operations // s.threads + s.turn
    number_of = np.full(n, -1)  # number of the block in each place of the buffer, -1: empty
    born, died, now, births = [], [], 0, 0
    for cycle in range(2 + wanted // (2 * (n - fifth))):
        fills = np.flatnonzero(number_of < 0)
        number_of[fills] = births + np.arange(len(fills))
        born.append(now + np.arange(len(fills)))
        died.append(np.full(len(fills), NEVER))
        now += len(fills)
        births += len(fills)
        begin = cycle % _PARTS * fifth
        end = n if cycle % _PARTS == _PARTS - 1 else begin + fifth
        goes = np.concatenate([np.arange(begin), np.arange(n - 1, end - 1, -1)])
        died.append(np.stack([number_of[goes], now + np.arange(len(goes))]))
        number_of[goes] = -1
        now += len(goes)
    born = np.concatenate(born)
    ends = np.concatenate([column for column in died if column.ndim == 1])
    for column in died:
        if column.ndim == 2:
            ends[column[0]] = column[1]
    pattern = size_sequence(s.largest)
    size = np.resize(pattern, births)
    thread = np.repeat(np.arange(s.threads), births)
    born, ends = np.tile(born, s.threads), np.tile(ends, s.threads)
    dies = ends < NEVER
    died = np.where(dies, moment(thread, np.where(dies, ends, 0), s.threads, s.turn), NEVER)
    return lives(
        moment(thread, born, s.threads, s.turn),
        died,
        np.tile(size, s.threads),
        threads=(thread, thread),
        operations=s.operations,
    )
