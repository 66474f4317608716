"""The kinds of events, and a workload in memory: a structure of arrays with one row per event.

Objects are identified by dense *slots*: an allocation fills its slot, a free empties it, and a
later allocation may fill it again.  Files use the same column names (benchmarks.events.parquet).
"""

from typing import NamedTuple

import numpy as np

from allocators.base.operation import (  # noqa: F401 - re-exported for every user of events
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    MALLOPT,
    OP_NAMES,
    REALLOC,
    SBRK,
    THREAD_END,
    TOUCH_READ,
    TOUCH_WRITE,
    TRIM,
)

#: Operations below this one are allocator calls; the others are not counted in ns/op.
ALLOCATOR_OPS = TOUCH_READ

#: All columns: name, dtype, default value if the column is absent, meaning.
COLUMNS = (
    ("op", "u1", 0, "operation, an index of OP_NAMES"),
    ("slot", "i4", 0, "object; -1 for free(NULL) and for operations from thread_end on"),
    (
        "size",
        "i8",
        0,
        "bytes requested; touch: length; sized free: size passed; malloc_trim: pad; others: 0",
    ),
    ("align", "u1", 0, "log2 of the alignment of an aligned allocation, else 0"),
    ("thread", "i4", 0, "thread number from 0"),
    (
        "offset",
        "i8",
        0,
        "touch: first byte within the object; sbrk: increment; mallopt: see mallopt_offset",
    ),
    ("time", "i8", 0, "nanoseconds since the start of the trace"),
    ("site", "i4", 0, "call site number, 0 unknown"),
)


class Events(NamedTuple):
    """Columns of ``n`` events.  A column that is absent from the workload has length 0."""

    op: np.ndarray
    slot: np.ndarray
    size: np.ndarray
    align: np.ndarray
    thread: np.ndarray
    offset: np.ndarray
    time: np.ndarray
    site: np.ndarray


def make_events(
    op: np.ndarray, slot: np.ndarray, size: np.ndarray, **optional: np.ndarray
) -> Events:
    """Return Events of three required and any optional (n,) columns, converted to their dtypes.

    Raises TypeError for an unknown column, ValueError for columns of different lengths and for a
    number that its column cannot hold.
    """
    given = {"op": op, "slot": slot, "size": size} | optional
    columns = []
    for name, dtype, _, _ in COLUMNS:
        columns.append(_exactly(name, given.pop(name, np.empty(0, dtype)), np.dtype(dtype)))
    if given:
        raise TypeError(f"unknown columns: {', '.join(given)}")
    for (name, *_), column in zip(COLUMNS, columns, strict=True):
        lengths = {len(columns[0])} if name in ("op", "slot", "size") else {0, len(columns[0])}
        if len(column) not in lengths:
            raise ValueError(f"column {name} has {len(column)} rows, op has {len(columns[0])}")
    return Events(*columns)


def _exactly(name: str, given: object, dtype: np.dtype) -> np.ndarray:
    """Return a column converted to ``dtype``.  Raises ValueError if a number would change."""
    if np.ma.is_masked(given):
        event = int(np.argmax(np.ma.getmaskarray(given)))
        raise ValueError(f"event {event}: {name} is masked: expected a whole number")
    data = np.asarray(given)
    if data.ndim != 1:
        raise ValueError(f"column {name} has {data.ndim} dimensions: expected one")
    if not np.can_cast(data.dtype, dtype) and len(data):
        limits = np.iinfo(dtype)
        if data.dtype.kind not in "iufO":
            raise ValueError(f"column {name} holds {data.dtype}: expected whole numbers")
        for event, number in enumerate(data.tolist()) if data.dtype.kind == "O" else ():
            if not isinstance(number, (int, np.integer)):
                raise ValueError(f"event {event}: {name} {number!r}: expected a whole number")
        whole = data == np.floor(data) if data.dtype.kind == "f" else True
        # A float of 2**63 would be equal to the rounded limit.
        high = limits.max if data.dtype.kind in "iuO" else np.nextafter(limits.max + 1.0, 0)
        fits = (data >= limits.min) & (data <= high) & whole
        if not fits.all():
            event = int(np.argmin(fits))
            raise ValueError(
                f"event {event}: {name} {data[event]}: expected a whole number, "
                f"{limits.min} to {limits.max}"
            )
    return np.ascontiguousarray(data, dtype=dtype)


def read_only(events: Events) -> Events:
    """Return read-only views of the columns, so that compiled code sees one array type."""
    views = [data.view() for data in events]
    for view in views:
        view.flags.writeable = False
    return Events(*views)


def rows(events: Events, begin: int, end: int) -> Events:
    """Return the events [begin, end) as views."""
    return Events(*(data[begin:end] for data in events))


def column(events: Events, name: str) -> np.ndarray:
    """Return the column ``name``; if the workload does not have it, an array of its default."""
    data = getattr(events, name)
    if len(data) == len(events.op):
        return data
    default = {n: (d, v) for n, d, v, _ in COLUMNS}[name]
    return np.full(len(events.op), default[1], default[0])


def mallopt_offset(parameter: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the offsets of mallopt events: parameter in the upper, value in the lower 32 bits."""
    return parameter << 32 | value & 0xFFFFFFFF


def mallopt_arguments(offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return parameter and value, both signed, of mallopt events with these offsets."""
    return offset >> 32, offset << 32 >> 32


def slot_count(events: Events) -> int:
    """Return the number of slots: the highest slot number in the events plus 1."""
    return int(events.slot.max()) + 1 if len(events.slot) else 0


def operation_count(events: Events) -> int:
    """Return the number of allocator calls among the events (the divisor of ns/op)."""
    return int(np.count_nonzero(events.op < ALLOCATOR_OPS))
