"""Follow the objects of a workload through its events: what each slot held before every event.

Vectorised and in pieces, so that a trace larger than memory can be followed by row group.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.events import ALLOCATOR_OPS, FREE, REALLOC, Events, column


class Followed(NamedTuple):
    """What happened in a piece of ``n`` events.

    ``before`` and ``after`` (n,) int64: bytes of the event's object before and after it, -1 if
    there was none.  ``foreign`` (n,) bool: frees by another thread than the one that allocated.
    """

    before: np.ndarray
    after: np.ndarray
    foreign: np.ndarray


class Ledger:
    """The objects that live after the pieces seen so far."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, "i8")
        self._owner = np.empty(0, "i4")

    def follow(self, events: Events) -> Followed:
        """Take the next piece.  Impossible events are followed as if each had done its part."""
        n = len(events.op)
        followed = Followed(np.full(n, -1), np.full(n, -1), np.zeros(n, bool))
        named = np.flatnonzero(events.slot >= 0)
        if not len(named):
            return followed
        self._grow(int(events.slot.max()) + 1)

        # Sorted by slot, then time: what an event finds is what the last change above it left.
        order = named[np.argsort(events.slot[named], kind="stable")]
        op, slot, size = events.op[order], events.slot[order], events.size[order]
        thread = column(events, "thread")[order]
        place = np.arange(len(order))
        opens = np.concatenate([[True], slot[1:] != slot[:-1]])
        begin = np.maximum.accumulate(np.where(opens, place, 0))
        changes = op < ALLOCATOR_OPS
        change = _latest(changes, place, begin)
        left = np.where(op == FREE, -1, size)
        for i in np.flatnonzero((op == REALLOC) & (size == 0)):
            # realloc(p, 0) frees, realloc(NULL, 0) allocates: only its predecessor tells.
            found = self._bytes[slot[i]] if change[i] < 0 else left[change[i]]
            left[i] = -1 if found >= 0 else 0
        before = np.where(change < 0, self._bytes[slot], left[change])
        after = np.where(changes, left, before)

        births = changes & (op != FREE) & (before < 0)
        birth = _latest(births, place, begin)
        owner = np.where(birth < 0, self._owner[slot], thread[birth])
        followed.before[order] = before
        followed.after[order] = after
        followed.foreign[order] = (op == FREE) & (before >= 0) & (owner != thread)

        ends = np.flatnonzero(np.concatenate([opens[1:], [True]]))
        self._bytes[slot[ends]] = after[ends]
        self._owner[slot[ends]] = np.where(births, thread, owner)[ends]
        return followed

    def _grow(self, slots: int) -> None:
        more = slots - len(self._bytes)
        if more > 0:
            self._bytes = np.concatenate([self._bytes, np.full(more, -1)])
            self._owner = np.concatenate([self._owner, np.zeros(more, "i4")])


def _latest(marks: np.ndarray, place: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Place of the last mark above each row and not above its ``begin``, -1 where there is none."""
    latest = np.maximum.accumulate(np.where(marks, place, -1))
    above = np.concatenate([[-1], latest[:-1]])
    return np.where(above >= begin, above, -1)
