"""Mstress: threads allocate powers of two, keep some, and swap others through shared places.

    thread   alloc ─▶ its blocks ──┬─▶ freed at random by the thread that holds it
             retain ▶ kept to the  └─▶ swapped with the block in one of ``places`` shared places:
                      thread's end     blocks migrate, also to threads of the next round

At its end a thread frees all blocks that it holds; then a thread of the next round starts.  Thread
t (from 0) allocates (t mod 8 + 1) · 100 · ``scale`` blocks of 8 to 128 bytes, and half as many of 8
to 512 bytes that it keeps.  One block in a hundred is 100 times as large, one in a thousand 1000
times, one in ten thousand 10 000 times.  The original's arrays of pointers are omitted.

Source: Leijen, mimalloc (test/test-stress.c), as mstress in mimalloc-bench.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from benchmarks.events.events import FREE, MALLOC, THREAD_END, Events, make_events
from benchmarks.workloads.base.prng import Random
from kernel.engine.jit import build_once, jit

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads that run concurrently")
SCALE = number(25, low=1, high=1 << 20, text="blocks that thread 0 allocates, in hundreds")
PLACES = number(1_000, low=1, high=1 << 20, text="shared places through which blocks are swapped")
TURN = number(100, low=1, high=1 << 28, text="steps before the next thread runs")

#: Number of powers of two, from 8 bytes on, for blocks freed soon and for kept blocks.
_SHORT, _LONG = 5, 7
#: Probabilities in 2**-16, as in the original: 51, 67 and 26 %, and those of the large blocks.
_ALLOC, _DROP, _SWAP = 33_423, 43_909, 17_039
_TIMES_100, _TIMES_1000, _TIMES_10000 = 655, 66, 7
#: States of a thread: runs, frees its kept blocks, frees its other blocks, has ended.
_RUNS, _FREES_KEPT, _FREES, _ENDED = 0, 1, 2, 3


def quotas(s: SimpleNamespace) -> np.ndarray:
    """Return the blocks that each thread allocates and keeps in a round, (threads, 2) int64."""
    allocs = 100 * s.scale * (np.arange(s.threads) % 8 + 1)
    return np.stack([allocs, allocs // 2], axis=1)


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless slots fit into 32 bits."""
    if int(quotas(s).sum()) > 1 << 28:
        raise ValueError(f"threads={s.threads}, scale={s.scale}: more than 2**28 blocks in a round")


@jit(inline=True)
def write_event(rows, n, op, slot, size, thread):
    """Append an event; return the new number of events."""
    rows[n, 0] = op
    rows[n, 1] = slot
    rows[n, 2] = size
    rows[n, 3] = thread
    return n + 1


@jit
def block_size(word, sizes):
    """Return a block's bytes from 63 random bits: one of ``sizes`` powers of 2, rarely larger."""
    size = 8 << ((word & 0xFFFF) * sizes >> 16)
    rare = (word >> 16) & 0xFFFF
    if rare < _TIMES_10000:
        return size * 10_000
    if rare < _TIMES_1000:
        return size * 1_000
    if rare < _TIMES_100:
        return size * 100
    return size


@jit
def begin_round(quota, held, kept):
    """Start new threads, which hold no blocks."""
    for t in range(quota.shape[0]):
        held[t, 0] = 0  # column 0 is a count; quota: blocks left to allocate and keep, state
        kept[t, 0] = 0
        quota[t, 2] = quota[t, 0]
        quota[t, 3] = quota[t, 1]
        quota[t, 4] = _RUNS


@jit
def swap(held, t, common, b, c):
    """Swap a random block that thread ``t`` holds with the block in a random shared place."""
    place = 1 + ((c >> 31) * held[t, 0] >> 32)
    other = (b >> 32) * common.shape[0] >> 31
    slot = held[t, place]
    held[t, place] = common[other]
    common[other] = slot


@jit
def put_spare(spare, spares, slot):
    """Push an empty slot; return the new number of empty slots."""
    spare[spares] = slot
    return spares + 1


@jit
def play(rows, operations, quota, held, kept, common, spare, words, threads, turn):
    """Fill ``rows`` with op, slot, size, thread of each event; return the number of events.

    Ends after ``operations``.  ``quota`` (threads, 5): the columns of :func:`quotas`, what is left
    of them, and the thread's state.  ``held``, ``kept`` (threads, …): number of a thread's blocks,
    then their slots, -1 for none.  ``common``: slots of the blocks in the shared places, -1 for
    none.  ``spare``: stack of empty slots.  ``words`` (…, 3): 63 random bits each, a row per step.
    """
    n = done = step = first = 0
    spares = spare.shape[0]
    while True:
        begin_round(quota, held, kept)
        tops = threads  # threads that have not ended
        while tops:
            for t in range(threads):
                for _ in range(turn):
                    if quota[t, 4] == _ENDED:
                        break
                    if done >= operations:
                        return n
                    if quota[t, 4] == _FREES_KEPT or quota[t, 4] == _FREES:
                        mine = kept if quota[t, 4] == _FREES_KEPT else held
                        if mine[t, 0] == 0:
                            quota[t, 4] += 1
                            if quota[t, 4] == _ENDED:
                                n = write_event(rows, n, THREAD_END, -1, 0, first + t)
                                tops -= 1
                            continue
                        slot = mine[t, mine[t, 0]]
                        mine[t, 0] -= 1
                        if slot >= 0:
                            n = write_event(rows, n, FREE, slot, 0, first + t)
                            done += 1
                            spares = put_spare(spare, spares, slot)
                        continue
                    a, b, c = words[step, 0], words[step, 1], words[step, 2]
                    step += 1
                    spares -= 1
                    slot = spare[spares]
                    soon = quota[t, 3] == 0 or ((a & 0xFFFF) < _ALLOC and quota[t, 2] > 0)
                    mine = held if soon else kept
                    quota[t, 2 if soon else 3] -= 1
                    mine[t, 0] += 1
                    mine[t, mine[t, 0]] = slot
                    size = block_size(b, _SHORT if soon else _LONG)
                    n = write_event(rows, n, MALLOC, slot, size, first + t)
                    done += 1
                    if ((a >> 16) & 0xFFFF) < _DROP and held[t, 0] > 0 and done < operations:
                        place = 1 + ((c & 0x7FFFFFFF) * held[t, 0] >> 31)
                        slot = held[t, place]
                        held[t, place] = -1
                        if slot >= 0:
                            n = write_event(rows, n, FREE, slot, 0, first + t)
                            done += 1
                            spares = put_spare(spare, spares, slot)
                    if ((a >> 32) & 0xFFFF) < _SWAP and held[t, 0] > 0:
                        swap(held, t, common, b, c)
                    if quota[t, 2] == 0 and quota[t, 3] == 0:
                        quota[t, 4] = _FREES_KEPT
        first += threads


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Run :func:`play` and return its events."""
    quota = np.zeros((s.threads, 5), "i8")
    quota[:, :2] = quotas(s)
    allocs, keeps = quota[:, 0].max(), quota[:, 1].max()
    slots = int(min(quota[:, :2].sum() + s.places, s.operations))
    ends = s.threads * (s.operations // int(quota[:, 0].sum()) + 1)
    rows = np.empty((s.operations + ends, 4), "i8")
    words = (random.bits(3 * s.operations) >> np.uint64(1)).view("i8").reshape(-1, 3)
    n = build_once(play)(
        rows,
        s.operations,
        quota,
        np.empty((s.threads, allocs + 1), "i8"),
        np.empty((s.threads, keeps + 1), "i8"),
        np.full(s.places, -1),
        np.arange(slots)[::-1].copy(),
        words,
        s.threads,
        s.turn,
    )
    op, slot, size, thread = rows[:n].T
    return make_events(op, slot, size, thread=thread)
