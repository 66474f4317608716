"""Xmalloc_test: producers allocate batches of blocks, consumers free them.

    producer ─┐                      ┌─ consumer      a batch: an array of pointers
    producer ─┼─▶ stack of batches ──┼─ consumer      and its 4096 blocks
       …      ┘    (last in first)   └─ …

No thread ever frees a block that it allocated.  In each round every thread runs with probability ½;
those that run allocate or free one batch each, in turns, so the height of the stack varies.  A
producer waits while the stack is full, a consumer while it is empty.

Source: Lever & Boreham, "malloc() performance in a multithreaded Linux environment", USENIX 2000;
the batches: Kuszmaul, "SuperMalloc", ISMM 2015, as in mimalloc-bench's xmalloc-test.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import NEVER, lives
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
WORKERS = number(4, low=1, high=512, text="producers, and the same number of consumers")
SIZE = size_setting(64, low=1, high=1 << 28, text="bytes of a block")
BATCH = number(4_096, low=1, high=1 << 20, text="blocks in a batch")
LIMIT = number(100, low=1, high=1 << 20, text="largest number of batches on the stack")
TURN = number(100, low=1, high=1 << 28, text="events before the next thread runs")

#: Bytes of a pointer; a batch's array has one per block, and one more.
_POINTER = 8


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Simulate the stack batch by batch, then place each batch's events in its round."""
    length = s.batch + 1
    rounds, made, stack, finished = 0, [], [], 0
    # Allocating or freeing a batch takes ``length`` events.  The loop ends, because some thread
    # runs in almost every round.
    while finished * length < s.operations:
        runs = random.below(2 * s.workers, 2).astype(bool).tolist()
        fresh = []
        for consumer in range(s.workers, 2 * s.workers):
            if runs[consumer] and stack:
                made[stack.pop()][2:] = rounds, consumer
                finished += 1
        for producer in range(s.workers):
            if runs[producer] and len(stack) + len(fresh) < s.limit:
                fresh.append(len(made))
                made.append([rounds, producer, -1, 0])
                finished += 1
        stack += fresh
        rounds += 1
    born_in, producer, died_in, consumer = (
        np.repeat(column, length) for column in np.array(made).T
    )
    step = np.tile(np.arange(length), len(made))
    # The array is allocated before its blocks and freed after them.
    last = np.where(step == 0, length - 1, step - 1)

    def when(round_: np.ndarray, thread: np.ndarray, step: np.ndarray) -> np.ndarray:
        lap, inside = np.divmod(step, s.turn)
        laps = (length - 1) // s.turn + 1
        return ((round_ * laps + lap) * 2 * s.workers + thread) * s.turn + inside

    died = np.where(died_in < 0, NEVER, when(died_in, consumer, last))
    size = np.where(step == 0, (s.batch + 1) * _POINTER, s.size)
    return lives(
        when(born_in, producer, step),
        died,
        size,
        threads=(producer, consumer),
        operations=s.operations,
    )
