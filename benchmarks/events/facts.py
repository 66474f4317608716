"""What a trace's events tell of it, gathered in successive pieces.

    events ──┬──► Audit         can they have happened?  slots, operations, live bytes at most
             └──► Fingerprint   sha256 over all columns
                                    └──► Facts, kept in the file's metadata
                                    (benchmarks.events.parquet)

With the facts known a trace can be replayed while it is still being read.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from allocators.base import operation as ops
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
_MAX_ALIGN = 62


@dataclass(frozen=True)
class Facts:
    """Numbers of ``events``, allocator ``operations`` and ``slots``; peaks; ``fingerprint``.

    ``peak_live``: bytes, ``peak_live_objects``: objects, both as a replay without failed requests
    finds them.
    """

    events: int
    operations: int
    slots: int
    peak_live: int
    peak_live_objects: int
    fingerprint: str

    @classmethod
    def parse(cls, given: Any, events: int) -> "Facts | None":
        """Facts as a file has them; None where they are not of ``events`` events."""
        if not isinstance(given, Mapping):
            return None
        try:
            facts = cls(**given)
        except TypeError:
            return None
        numbers = [value for name, value in vars(facts).items() if name != "fingerprint"]
        whole = all(type(n) is int and n >= 0 for n in numbers)
        known = whole and isinstance(facts.fingerprint, str) and facts.events == events
        return facts if known else None


class Fingerprint:
    """sha256 over names, types and contents of all columns that say anything.

    An optional column that holds its default throughout counts as absent.
    """

    def __init__(self) -> None:
        self._hashes = {name: hashlib.sha256() for name, *_ in COLUMNS}
        self._says = set(_REQUIRED)

    def add(self, events: Events) -> None:
        """Take the next piece.  All pieces have the same columns."""
        for (name, dtype, default, _), data in zip(COLUMNS, events, strict=True):
            self._hashes[name].update(np.ascontiguousarray(data, np.dtype(dtype).newbyteorder("<")))
            if name not in self._says and (data != default).any():
                self._says.add(name)

    def hexdigest(self) -> str:
        """The fingerprint, 64 hex digits, of the pieces so far."""
        whole = hashlib.sha256()
        for name, dtype, *_ in COLUMNS:
            if name in self._says:
                whole.update(f"{name} {dtype} {self._hashes[name].hexdigest()}\n".encode())
        return whole.hexdigest()


@jit
def follow(op, slot, size, align, thread, offset, held, totals):
    """Follow the objects through (n,) events; returns the first that cannot be, -1 if all can.

    ``held`` (slots,) int64: bytes of the object in each slot, complemented, so that 0 is no object.
    ``totals`` (4,) int64: bytes and objects that live, and the most that did.
    """
    live, objects, peak_live, peak_objects = totals[0], totals[1], totals[2], totals[3]
    found = -1
    for i in range(op.shape[0]):
        kind = int(op[i])
        s = int(slot[i])
        n = int(size[i])
        wrong = kind > ops.THREAD_END or n < 0 or s < -1
        if align.shape[0] and align[i] > _MAX_ALIGN:
            wrong = True
        if thread.shape[0] and thread[i] < 0:
            wrong = True
        nameless = kind in (ops.FREE, ops.THREAD_END)
        if wrong or (s < 0 and not nameless):
            found = i
            break
        if s < 0 or kind == ops.THREAD_END:
            continue
        before = ~int(held[s])
        if kind < ALLOCATOR_OPS:
            ends = kind == ops.FREE or (kind == ops.REALLOC and n == 0 and before >= 0)
            if before >= 0:
                if not ends and kind != ops.REALLOC:
                    found = i
                    break
                live -= before
                objects -= 1
            elif ends:
                found = i
                break
            held[s] = 0
            if not ends:
                held[s] = ~n
                live += n
                objects += 1
            peak_live = max(peak_live, live)
            peak_objects = max(peak_objects, objects)
        else:
            begin = int(offset[i]) if offset.shape[0] else 0
            if before < 0 or begin < 0 or n > before - begin:
                found = i
                break
    totals[0], totals[1], totals[2], totals[3] = live, objects, peak_live, peak_objects
    return found


class Audit:
    """Whether events can have happened, and what they come to.

    ``events``, ``operations``, ``slots``: of the pieces so far.
    """

    def __init__(self) -> None:
        self.events = self.operations = self.slots = 0
        self._held = np.zeros(1 << 10, "i8")
        self._totals = np.zeros(4, "i8")
        self._wrong: str | None = None

    def add(self, events: Events) -> str | None:
        """Take the next piece; returns "event N: what is wrong" of the first that is, else None.

        After that nothing more is taken, and the answer stays the same.
        """
        if self._wrong is not None:
            return self._wrong
        self.slots = max(self.slots, slot_count(events))
        if self.slots > len(self._held):
            # Zeros cost nothing until they are used: a wild slot number does no harm.
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
        """What is wrong with row ``i``, at which :func:`follow` stopped."""
        op, slot, size = int(events.op[i]), int(events.slot[i]), int(events.size[i])
        aligned = not len(events.align) or events.align[i] <= _MAX_ALIGN
        threaded = not len(events.thread) or events.thread[i] >= 0
        named = slot >= 0 or (slot == -1 and op in (ops.FREE, ops.THREAD_END))
        if op > ops.THREAD_END or size < 0 or not (aligned and threaded and named):
            return f"impossible columns (op {op}, slot {slot}, size {size})"
        name, before = ops.OP_NAMES[op], ~int(self._held[slot])
        if before < 0:
            return f"{name} of slot {slot}, which is empty"
        if op < ALLOCATOR_OPS:
            return f"{name} into slot {slot}, which is in use"
        begin = int(events.offset[i]) if len(events.offset) else 0
        return f"{name} of bytes {begin} to {begin + size} of an object of {before}"

    def facts(self, fingerprint: str) -> Facts:
        """The facts of the pieces so far."""
        peak_live, peak_objects = (int(n) for n in self._totals[2:])
        return Facts(self.events, self.operations, self.slots, peak_live, peak_objects, fingerprint)
