"""Totals of a trace's events, computed piece by piece, and a check that the events are consistent.

    events ──┬──► Audit         consistency; number of slots and operations, peak live bytes
             └──► Fingerprint   sha256 over all columns
                                    └──► Facts, stored in the file's metadata
                                    (benchmarks.events.parquet)

If the facts are known in advance, a trace can be replayed while it is still being read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from allocators.base import operation as ops
from allocators.base.contract import MAX_REQUEST
from benchmarks.events.events import (
    ALLOCATOR_OPS,
    COLUMNS,
    Events,
    operation_count,
    read_only,
    slot_count,
)
from kernel.engine.jit import build_once, jit

_REQUIRED = ("op", "slot", "size")
#: Most bytes that a trace may request in total: its sums fit into 64 bits.
MAX_REQUESTED = 1 << 62
#: Slots that any trace may have.
_SPARSE = 1 << 20
_MAX_ALIGN = MAX_REQUEST.bit_length() - 1


def most_slots(events: int) -> int:
    """Return the number of slots that a trace of ``events`` events may have.

    Slots are dense, so that a table of them is no larger than the events; a short trace may have
    gaps.
    """
    return max(events, _SPARSE)


@dataclass(frozen=True)
class Facts:
    """Totals of a trace: number of events, allocator operations and slots; peaks; fingerprint.

    ``peak_live`` (bytes) and ``peak_live_objects`` hold for a replay in which no request fails.
    """

    events: int
    operations: int
    slots: int
    peak_live: int
    peak_live_objects: int
    fingerprint: str

    @classmethod
    def parse(cls, given: Any, events: int) -> "Facts | None":
        """Return the facts stored in a file; None if they cannot be true of ``events`` events."""
        if not isinstance(given, Mapping):
            return None
        try:
            facts = cls(**given)
        except TypeError:
            return None
        numbers = [value for name, value in vars(facts).items() if name != "fingerprint"]
        whole = all(type(n) is int and n >= 0 for n in numbers)
        if not whole or not isinstance(facts.fingerprint, str) or facts.events != events:
            return None
        possible = max(facts.operations, facts.peak_live_objects) <= events
        possible = possible and facts.slots <= most_slots(events)
        return facts if possible and facts.peak_live <= MAX_REQUESTED else None


class Fingerprint:
    """SHA-256 over the names, types and contents of all columns that carry information.

    An optional column that holds only its default counts as absent.
    """

    def __init__(self) -> None:
        self._hashes = {name: hashlib.sha256() for name, *_ in COLUMNS}
        self._informative = set(_REQUIRED)

    def add(self, events: Events) -> None:
        """Add the next piece.  All pieces have the same columns."""
        for (name, dtype, default, _), data in zip(COLUMNS, events, strict=True):
            self._hashes[name].update(np.ascontiguousarray(data, np.dtype(dtype).newbyteorder("<")))
            if name not in self._informative and (data != default).any():
                self._informative.add(name)

    def hexdigest(self) -> str:
        """Return the fingerprint of the pieces so far, 64 hex digits."""
        whole = hashlib.sha256()
        for name, dtype, *_ in COLUMNS:
            if name in self._informative:
                whole.update(f"{name} {dtype} {self._hashes[name].hexdigest()}\n".encode())
        return whole.hexdigest()


@jit(inline=True)
def malformed(op, slot, size, align, thread):
    """Return True for columns that no event has."""
    if op > ops.SBRK or op < 0 or size < 0 or slot < -1 or not 0 <= align <= _MAX_ALIGN:
        return True
    nameless = op == ops.FREE or op >= ops.THREAD_END
    return size > MAX_REQUEST or thread < 0 or (slot < 0 and not nameless)


@jit(inline=True)
def impossible(op, size, offset, before):
    """Return True for an event that cannot happen to an object of ``before`` bytes; -1: none."""
    if op >= ALLOCATOR_OPS:
        return before < 0 or offset < 0 or size > before - offset
    if before >= 0:
        return op != ops.FREE and op != ops.REALLOC
    return op == ops.FREE


@jit
def follow(op, slot, size, align, thread, offset, held, totals):
    """Track objects through (n,) events; return the index of the first impossible one, else -1.

    ``held`` (slots,) int64: bitwise complement of the bytes of each slot's object; 0 is no object.
    ``totals`` (5,) int64: live bytes, live objects, peak live bytes, peak live objects, requested
    bytes.  Both are updated.
    """
    live, objects, peak_live, peak_objects = totals[0], totals[1], totals[2], totals[3]
    requested = totals[4]
    found = -1
    for i in range(op.shape[0]):
        kind = int(op[i])
        s = int(slot[i])
        n = int(size[i])
        power = int(align[i]) if align.shape[0] else 0
        number = int(thread[i]) if thread.shape[0] else 0
        if malformed(kind, s, n, power, number):
            found = i
            break
        if s < 0 or kind >= ops.THREAD_END:
            continue
        before = ~int(held[s])
        if impossible(kind, n, int(offset[i]) if offset.shape[0] else 0, before):
            found = i
            break
        if kind < ALLOCATOR_OPS:
            ends = kind == ops.FREE or (kind == ops.REALLOC and n == 0 and before >= 0)
            if before >= 0:
                live -= before
                objects -= 1
            held[s] = 0
            if not ends:
                requested += n
                if requested > MAX_REQUESTED:
                    found = i
                    break
                held[s] = ~n
                live += n
                objects += 1
            peak_live = max(peak_live, live)
            peak_objects = max(peak_objects, objects)
    totals[0], totals[1], totals[2], totals[3] = live, objects, peak_live, peak_objects
    totals[4] = requested
    return found


def explain(
    op: int, slot: int, size: int, align: int, thread: int, offset: int, before: int
) -> str:
    """Return the reason why an event is :func:`malformed` or :func:`impossible`."""
    if malformed(op, slot, size, align, thread):
        if size > MAX_REQUEST or align > _MAX_ALIGN:
            what = f"{size} bytes" if align <= _MAX_ALIGN else f"alignment 2**{align}"
            return f"{what}: sizes and alignments go up to 2**{_MAX_ALIGN} bytes"
        return f"impossible columns (op {op}, slot {slot}, size {size})"
    name = ops.OP_NAMES[op]
    if before < 0 and op < ALLOCATOR_OPS and op != ops.FREE:
        return f"a trace requests at most {MAX_REQUESTED} bytes in total"
    if before < 0:
        return f"{name} of slot {slot}, which is empty"
    if op < ALLOCATOR_OPS:
        return f"{name} into slot {slot}, which is in use"
    return f"{name} of bytes {offset} to {offset + size} of an object of {before} bytes"


class Audit:
    """Consistency check and totals of a sequence of events.

    ``events``, ``operations``, ``slots``: counts over the pieces so far.  ``length``: number of
    events of the whole trace, if known, which bounds the slots (:func:`most_slots`).
    """

    def __init__(self, length: int | None = None) -> None:
        self.events = self.operations = self.slots = 0
        self._length = length
        self._held = np.zeros(1 << 10, "i8")
        self._totals = np.zeros(5, "i8")
        self._wrong: str | None = None

    def add(self, events: Events) -> str | None:
        """Add the next piece; return "event N: what is wrong" for the first bad one, else None.

        After a bad event, later pieces are ignored and the same message is returned.
        """
        if self._wrong is not None:
            return self._wrong
        slots = slot_count(events)
        if self._length is not None and slots > most_slots(self._length):
            first = int(np.argmax(events.slot >= most_slots(self._length)))
            self._wrong = (
                f"event {self.events + first}: slot {events.slot[first]} in a trace of "
                f"{self._length} events; number the slots from 0 without gaps"
            )
            return self._wrong
        self.slots = max(self.slots, slots)
        if self.slots > len(self._held):
            # np.zeros takes no memory until it is written: a huge slot number does no harm.
            held = np.zeros(max(self.slots, 2 * len(self._held)), "i8")
            held[: len(self._held)] = self._held
            self._held = held
        e = read_only(events)
        columns = (e.op, e.slot, e.size, e.align, e.thread, e.offset)
        found = build_once(follow)(*columns, self._held, self._totals)
        if found >= 0:
            self._wrong = f"event {self.events + found}: {self._explain(events, found)}"
            return self._wrong
        self.events += len(events.op)
        self.operations += operation_count(events)
        return None

    def _explain(self, events: Events, i: int) -> str:
        """Return the reason why :func:`follow` stopped at row ``i``."""
        op, slot, size = int(events.op[i]), int(events.slot[i]), int(events.size[i])
        align, thread, offset = (
            int(getattr(events, name)[i]) if len(getattr(events, name)) else 0
            for name in ("align", "thread", "offset")
        )
        before = ~int(self._held[slot]) if slot >= 0 else -1
        return explain(op, slot, size, align, thread, offset, before)

    def facts(self, fingerprint: str) -> Facts:
        """Return the facts of the pieces so far."""
        peak_live, peak_objects = (int(n) for n in self._totals[2:4])
        return Facts(self.events, self.operations, self.slots, peak_live, peak_objects, fingerprint)
