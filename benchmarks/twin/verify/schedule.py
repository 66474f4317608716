"""Thread schedule of a random program: when threads start and end, and which one acts."""

import random

import numpy as np

from benchmarks.twin.verify.operation import (
    FREE,
    LEAVE,
    REALLOC,
    THREAD_END,
    THREAD_START,
    USABLE,
    USE,
)
from benchmarks.workloads.base.prng import Random

#: Choices for the mean number of consecutive rows of one thread.
_RUNS = (1, 4, 30, 300)
#: Kinds of operations on an existing block.
_TO_A_BLOCK = (REALLOC, FREE, USABLE, USE)


class Schedule:
    """Threads of one program with ``slots`` slots; at most ``most`` exist at a time."""

    def __init__(self, choice: random.Random, numbers: Random, most: int, slots: int) -> None:
        self._choice = choice
        self._numbers = numbers
        self._most = most
        self._alive = [0]
        self._owner = [0] * slots

    def changes(self) -> list[tuple[int, ...]]:
        """Choose rows of PROGRAM that start and end threads between two phases."""
        choice = self._choice
        rows = []
        for _ in range(choice.choice((0, 1, 1, 2))):
            by = choice.choice(self._alive)
            ends = choice.random() < 0.35
            others = [n for n in self._alive if n not in (0, by)]
            if ends and others:
                number = choice.choice(others)
                self._alive.remove(number)
                rows.append((THREAD_END, -1, number, 0, LEAVE, 0, 0, by))
            elif not ends and len(self._alive) < self._most:
                number = choice.choice([n for n in range(1, 9) if n not in self._alive])
                self._alive.append(number)
                rows.append((THREAD_START, -1, number, 0, LEAVE, 0, 0, by))
        return rows

    def assign(self, rows: np.recarray) -> None:
        """Assign a thread to each of ``rows``, (n,) PROGRAM."""
        choice, n = self._choice, len(rows)
        threads = choice.sample(self._alive, choice.randint(1, len(self._alive)))
        # Consecutive runs may belong to the same thread.
        run = np.cumsum(self._numbers.below(n, choice.choice(_RUNS)) == 0)
        who = np.array(threads)[self._numbers.below(n + 1, len(threads))[run]]
        # A block is used and freed by the current thread, or by the thread that allocated it.
        own = choice.random() < 0.5
        kinds, slots = rows["kind"].tolist(), rows["slot"].tolist()
        for i, (kind, slot) in enumerate(zip(kinds, slots, strict=True)):
            if slot < 0 or slot >= len(self._owner):
                continue
            if kind in _TO_A_BLOCK:
                if own and self._owner[slot] in self._alive:
                    who[i] = self._owner[slot]
            else:
                self._owner[slot] = int(who[i])
        rows["thread"] = who
