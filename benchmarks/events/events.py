"""The event vocabulary, and a workload in memory: a structure of arrays, one row an event.

Objects are named by dense *slots*: an allocation fills its slot, a free empties it, a slot may be
filled again later.  In files the same columns carry the same names (benchmarks.events.parquet).
"""

from typing import NamedTuple

import numpy as np

from allocators.base.operation import (  # noqa: F401 - the vocabulary of all that has events
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    OP_NAMES,
    REALLOC,
    THREAD_END,
    TOUCH_READ,
    TOUCH_WRITE,
)

#: Operations below this one are the allocator's; touches and thread ends are not counted in ns/op.
ALLOCATOR_OPS = TOUCH_READ

#: Every column: name, dtype, value where absent, meaning.
COLUMNS = (
    ("op", "u1", 0, "operation, an index of OP_NAMES"),
    ("slot", "i4", 0, "object; -1 for free(NULL) and thread_end"),
    ("size", "i8", 0, "bytes asked for; touch: length; free: size told by a sized free, else 0"),
    ("align", "u1", 0, "log2 of the alignment of an aligned allocation, else 0"),
    ("thread", "i4", 0, "dense thread number from 0"),
    ("offset", "i8", 0, "touch: first byte within the object"),
    ("time", "i8", 0, "nanoseconds since the start of the trace"),
    ("site", "i4", 0, "call site number, 0 unknown"),
)


class Events(NamedTuple):
    """Columns of ``n`` events.  A column that a workload lacks has length 0."""

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
    """Return Events of (n,) columns, three and any optional ones, converted to their dtypes."""
    given = {"op": op, "slot": slot, "size": size} | optional
    columns = []
    for name, dtype, _, _ in COLUMNS:
        columns.append(np.ascontiguousarray(given.pop(name, np.empty(0)), dtype=dtype))
    if given:
        raise TypeError(f"unknown columns: {', '.join(given)}")
    for (name, *_), column in zip(COLUMNS, columns, strict=True):
        if len(column) not in (0, len(columns[0])):
            raise ValueError(f"column {name} has {len(column)} rows, op has {len(columns[0])}")
    return Events(*columns)


def read_only(events: Events) -> Events:
    """Views of the columns that cannot be written through: one type for compiled code."""
    views = [data.view() for data in events]
    for view in views:
        view.flags.writeable = False
    return Events(*views)


def rows(events: Events, begin: int, end: int) -> Events:
    """The events [begin, end); views."""
    return Events(*(data[begin:end] for data in events))


def column(events: Events, name: str) -> np.ndarray:
    """The column ``name``, filled with its default where the workload lacks it."""
    data = getattr(events, name)
    if len(data) == len(events.op):
        return data
    default = {n: (d, v) for n, d, v, _ in COLUMNS}[name]
    return np.full(len(events.op), default[1], default[0])


def slot_count(events: Events) -> int:
    """Number of slots that the events name."""
    return int(events.slot.max()) + 1 if len(events.slot) else 0


def operation_count(events: Events) -> int:
    """Number of events that are the allocator's (what ns/op divides by)."""
    return int(np.count_nonzero(events.op < ALLOCATOR_OPS))
