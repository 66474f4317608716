"""Track the objects of a workload through its events: the content of each slot at every event.

Vectorised and incremental, so that a trace larger than memory can be processed by row group.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.events.events import ALLOCATOR_OPS, FREE, REALLOC, Events, column


class Followed(NamedTuple):
    """State of the objects at each of ``n`` events.

    ``before`` and ``after`` (n,) int64: bytes of the event's object before and after it, -1 if
    there is none.  ``foreign`` (n,) bool: frees by a thread other than the allocating one.
    ``birth``: for each column that the ledger keeps, (n,) int64 with its value at the allocation of
    the event's object; undefined if there is no object.
    """

    before: np.ndarray
    after: np.ndarray
    foreign: np.ndarray
    birth: dict[str, np.ndarray]


class Objects(NamedTuple):
    """Live objects: slot, bytes, and the columns of their allocation that the ledger keeps."""

    slot: np.ndarray
    bytes: np.ndarray
    birth: dict[str, np.ndarray]


class Ledger:
    """Objects that are live after the pieces seen so far.

    ``keeps``: columns of the allocating event to store with each object, in addition to "thread".
    "number" is the number of allocator events before that event in the trace.
    """

    def __init__(self, *keeps: str) -> None:
        self._bytes = np.empty(0, "i8")
        self._birth = {name: np.empty(0, "i8") for name in ("thread", *keeps)}
        #: Allocator events so far.
        self.operations = 0

    def follow(self, events: Events) -> Followed:
        """Process the next piece.  Impossible events are not detected but applied as they are."""
        n = len(events.op)
        birth = {name: np.full(n, -1) for name in self._birth}
        followed = Followed(np.full(n, -1), np.full(n, -1), np.zeros(n, bool), birth)
        columns = {name: self._column(events, name) for name in self._birth}
        self.operations += int(np.count_nonzero(events.op < ALLOCATOR_OPS))
        named = np.flatnonzero(events.slot >= 0)
        if not len(named):
            return followed
        self._grow(int(events.slot.max()) + 1)

        # Sort by slot, then time: an event sees the state that the last change before it left.
        order = named[np.argsort(events.slot[named], kind="stable")]
        op, slot, size = events.op[order], events.slot[order], events.size[order]
        place = np.arange(len(order))
        opens = np.concatenate([[True], slot[1:] != slot[:-1]])
        begin = np.maximum.accumulate(np.where(opens, place, 0))
        changes = op < ALLOCATOR_OPS
        change = _latest(changes, place, begin)
        left = np.where(op == FREE, -1, size)
        for i in np.flatnonzero((op == REALLOC) & (size == 0)):
            # realloc(p, 0) frees, realloc(NULL, 0) allocates: this depends on the previous change.
            found = self._bytes[slot[i]] if change[i] < 0 else left[change[i]]
            left[i] = -1 if found >= 0 else 0
        before = np.where(change < 0, self._bytes[slot], left[change])
        after = np.where(changes, left, before)
        followed.before[order] = before
        followed.after[order] = after

        births = changes & (op != FREE) & (before < 0)
        last = _latest(births, place, begin)
        ends = np.flatnonzero(np.concatenate([opens[1:], [True]]))
        for name, column_ in columns.items():
            here = column_[order]
            found = np.where(last < 0, self._birth[name][slot], here[last])
            birth[name][order] = found
            self._birth[name][slot[ends]] = np.where(births, here, found)[ends]
        self._bytes[slot[ends]] = after[ends]
        thread, owner = columns["thread"][order], birth["thread"][order]
        followed.foreign[order] = (op == FREE) & (before >= 0) & (owner != thread)
        return followed

    def live(self) -> Objects:
        """Return the live objects, sorted by "number" (oldest first) if kept, else by slot."""
        slot = np.flatnonzero(self._bytes >= 0)
        if "number" in self._birth:
            slot = slot[np.argsort(self._birth["number"][slot], kind="stable")]
        return Objects(
            slot, self._bytes[slot], {name: kept[slot] for name, kept in self._birth.items()}
        )

    def _column(self, events: Events, name: str) -> np.ndarray:
        if name != "number":
            return column(events, name)
        changes = events.op < ALLOCATOR_OPS
        return self.operations + np.cumsum(changes) - changes

    def _grow(self, slots: int) -> None:
        more = slots - len(self._bytes)
        if more > 0:
            self._bytes = np.concatenate([self._bytes, np.full(more, -1)])
            for name, kept in self._birth.items():
                self._birth[name] = np.concatenate([kept, np.zeros(more, "i8")])


def _latest(marks: np.ndarray, place: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Return the index of the last mark in [``begin``, row) for each row, -1 if there is none."""
    latest = np.maximum.accumulate(np.where(marks, place, -1))
    above = np.concatenate([[-1], latest[:-1]])
    return np.where(above >= begin, above, -1)
