"""Map pointers to slots: the objects of a recorded program get dense numbers, reused after a free.

Every reader of a foreign format produces :class:`Records`; this module finds the object of each
record, and the records that are impossible.  Its memory grows with the number of different
pointers, not with the length of the trace.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from allocators.base import operation as ops
from allocators.base.contract import MAX_REQUEST
from kernel.engine.jit import build_once, jit


class Records(NamedTuple):
    """Events of a piece of a trace, as recorded: columns of ``n`` rows, and malformed lines.

    ``line`` int64: number of the line within the piece, from 0.  ``op`` uint8.  ``pointer`` int64:
    the pointer returned or freed, 0 for NULL.  ``old`` int64: realloc's argument.  ``size`` int64:
    bytes.  ``align`` uint8: log2.  ``thread`` int64: thread number as recorded.  ``time`` int64:
    ns since the start.  ``bad`` int64: numbers of malformed lines.  ``site`` int64: number of the
    call site.  ``thread``, ``time`` and ``site`` are (0,) if the format has none.
    """

    line: np.ndarray
    op: np.ndarray
    pointer: np.ndarray
    old: np.ndarray
    size: np.ndarray
    align: np.ndarray
    thread: np.ndarray
    time: np.ndarray
    bad: np.ndarray
    site: np.ndarray = np.empty(0, "i8")


def no_records() -> Records:
    """Return the Records of a piece without any."""
    columns = {name: np.empty(0, "i8") for name in Records._fields}
    return Records(**columns | {name: np.empty(0, "u1") for name in ("op", "align")})


#: Problems of a record.  FAILED is not an error: the recorded program itself got NULL.  Neither is
#: UNSEEN: the free of an object that was allocated before the recording started.
FINE, FAILED, UNSEEN, LIVE, UNKNOWN, DEAD, TOO_LARGE = range(7)
#: What a format lets a record do to an object that is not allocated, for :meth:`Objects.rename`: a
#: free is dropped and counted as UNSEEN, a realloc becomes an allocation.  LATE: the recording
#: starts when the program is already running, or misses calls.
FREE_UNKNOWN, FREE_FREED, REALLOC_UNKNOWN, REALLOC_FREED = 1, 2, 4, 8
LATE = FREE_UNKNOWN | FREE_FREED | REALLOC_UNKNOWN | REALLOC_FREED

#: Names under which dropped records are counted and stored.
PROBLEM_NAMES = (
    "fine",
    "failed_request",
    "free_of_an_object_not_seen_allocated",
    "live_pointer",
    "unknown_pointer",
    "freed_pointer",
    "too_large",
)
_MAX_ALIGN = MAX_REQUEST.bit_length() - 1

#: Values in the table's ``slots`` for a key without a slot.
_FREED, _NULL, _NO_KEY = -1, -2, -3
_HASH = 0x9E3779B97F4A7C15 >> 1


@jit
def find(keys, slots, pointer):
    """Return the index of ``pointer`` in the table, or of the empty entry to insert it at."""
    mask = keys.shape[0] - 1
    i = (((pointer >> 4) ^ pointer) * _HASH >> 20) & mask
    while slots[i] != _NO_KEY and keys[i] != pointer:
        i = (i + 1) & mask
    return i


@jit
def move_table(keys, slots, new_keys, new_slots):
    """Insert all entries of one table into another, empty one."""
    for i in range(keys.shape[0]):
        if slots[i] != _NO_KEY:
            pointer = int(keys[i])
            j = find(new_keys, new_slots, pointer)
            new_keys[j] = pointer
            new_slots[j] = slots[i]


@jit
def enter(keys, slots, counts, pointer, slot):
    """Map ``pointer`` to ``slot`` (or _FREED, _NULL)."""
    i = find(keys, slots, pointer)
    if slots[i] == _NO_KEY:
        keys[i] = pointer
        counts[2] += 1
    slots[i] = slot


@jit
def needed(held, frees):
    """Return what a format must let a record do to an object with ``held`` in the table, or 0."""
    if held == _NO_KEY:
        return FREE_UNKNOWN if frees else REALLOC_UNKNOWN
    if held == _FREED:
        return FREE_FREED if frees else REALLOC_FREED
    return 0


@jit
def rename(keys, slots, spare, counts, op, pointer, old, size, align, slot, problem, strict, late):
    """Fill ``slot`` and ``problem`` (n,) for the records in order.

    ``keys``, ``slots``: hash table from pointer to slot.  ``spare``: stack of slots to reuse.
    ``counts``: height of that stack, slots ever used, keys in the table.  ``strict``: stop at the
    first error.  ``late``: the sum of what the format lets a record do to an object that is not
    allocated.
    """
    for i in range(op.shape[0]):
        kind = op[i]
        slot[i] = -1
        if kind >= ops.THREAD_END:
            continue
        new = int(pointer[i])
        argument = new if kind == ops.FREE else int(old[i])
        held = _NULL
        if argument != 0:
            held = int(slots[find(keys, slots, argument)])
        unseen = late & needed(held, kind == ops.FREE) != 0
        if unseen and kind == ops.REALLOC:
            argument = 0
            held = _NULL
            unseen = False
        releases = kind == ops.FREE or (kind == ops.REALLOC and size[i] == 0 and held >= 0)
        if unseen:
            problem[i] = UNSEEN
        elif held == _NO_KEY:
            problem[i] = UNKNOWN
        elif held == _FREED:
            problem[i] = DEAD
        elif not releases and new == 0:
            problem[i] = FAILED
        elif size[i] > MAX_REQUEST or align[i] > _MAX_ALIGN:
            problem[i] = TOO_LARGE
        elif not releases and new != argument and slots[find(keys, slots, new)] >= 0:
            problem[i] = LIVE
        if problem[i] != FINE:
            if strict and problem[i] > UNSEEN:
                return
        elif releases:
            if held >= 0:
                slot[i] = held
                spare[counts[0]] = held
                counts[0] += 1
            if argument != 0:
                enter(keys, slots, counts, argument, _FREED)
            if kind == ops.REALLOC and new != 0:
                # Some libraries return a non-NULL pointer from realloc(p, 0): treat it as NULL.
                enter(keys, slots, counts, new, _NULL)
        else:
            if held >= 0:
                enter(keys, slots, counts, argument, _FREED)
            elif counts[0] > 0:
                counts[0] -= 1
                held = int(spare[counts[0]])
            else:
                held = int(counts[1])
                counts[1] += 1
            enter(keys, slots, counts, new, held)
            slot[i] = held


class Objects:
    """Mapping from the pointers of one trace to slots, over successive Records."""

    def __init__(self) -> None:
        self._keys = np.zeros(1 << 12, "i8")
        self._slots = np.full(1 << 12, _NO_KEY, "i4")
        self._spare = np.zeros(1 << 10, "i4")
        self._counts = np.zeros(3, "i8")

    def rename(
        self, records: Records, strict: bool, late: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return slot (n,) int32 and problem (n,) uint8 of ``records``.

        Slot -1 is free(NULL), an operation of no object, or a record with a problem.  If
        ``strict``, records after the first error are not processed.  ``late``: the sum of what the
        format lets a record do to an object that is not allocated, such as LATE.
        """
        n = len(records.op)
        self._make_room(n)
        slot, problem = np.full(n, -1, "i4"), np.zeros(n, "u1")
        table = (self._keys, self._slots, self._spare, self._counts)
        columns = (records.op, records.pointer, records.old, records.size, records.align)
        build_once(rename)(*table, *columns, slot, problem, strict, late)
        return slot, problem

    def _make_room(self, n: int) -> None:
        """Grow the table and the stack for ``n`` more records; half of the table stays empty."""
        used = int(self._counts[1])
        if len(self._spare) < used + n:
            self._spare = np.concatenate([self._spare, np.zeros(used + n, "i4")])
        need = 2 * (int(self._counts[2]) + 2 * n)
        if len(self._keys) < need:
            length = 1 << (need - 1).bit_length()
            keys, slots = np.zeros(length, "i8"), np.full(length, _NO_KEY, "i4")
            build_once(move_table)(self._keys, self._slots, keys, slots)
            self._keys, self._slots = keys, slots


def describe_problem(
    records: Records, i: int, problem: int, format_pointer: Callable[[int], str]
) -> str:
    """Return the reason why record ``i`` is impossible; ``format_pointer`` names a pointer."""
    free = records.op[i] == ops.FREE
    name = ops.OP_NAMES[records.op[i]]
    argument = records.pointer[i] if free or problem == LIVE else records.old[i]
    if problem == TOO_LARGE:
        what = f"{name} of {records.size[i]} bytes with alignment 2**{records.align[i]}"
        return f"{what}: sizes and alignments go up to 2**{_MAX_ALIGN} bytes"
    which = format_pointer(int(argument))
    if problem == LIVE:
        return f"{name} returned {which}, which is still allocated"
    if problem == UNKNOWN:
        return f"{name} of {which}, which was never allocated"
    return f"{'double free' if free else name} of {which}, which was freed before"


#: Bytes between the addresses of adjacent slots.
_STEP = 16


def address_of(slot: np.ndarray) -> np.ndarray:
    """Return a distinct pointer for each slot, 0 for slot -1.

    A slot can serve as an address because it holds one object at a time.
    """
    return (slot.astype("i8") + 1) * _STEP


def count_lost(lost: Counter, what: str, where: np.ndarray) -> None:
    """Add to ``lost[what]`` the number of events in ``where``, (n,) bool."""
    if n := int(np.count_nonzero(where)):
        lost[what] += n
