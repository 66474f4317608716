"""fragmetrics JSONL: one JSON object per line.

    {"ts": 0, "op": "alloc", "id": 140234567890, "size": 64, "addr": 140234567890}
    {"ts": 1, "op": "free", "id": 140234567890}

``op``: alloc or free; the recorder of fragmetrics writes a realloc as a free and an alloc.
``id``: an integer, reusable after the object is freed.  ``size``: bytes, more than 0, only for an
alloc.  ``ts``: an integer that defines the order but is not a time.  Threads sometimes write lines
out of order, so events are sorted by ``ts`` if every line has one; a line that is out of place by
more than some megabytes is an error.  ``addr`` and other keys are ignored.
Source: emeryberger/fragmetrics, fragmetrics/trace.py and shim/README.md.
"""

import itertools
import re
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np

from benchmarks.events.events import FREE, MALLOC
from benchmarks.trace.formats.objects import Records
from benchmarks.trace.formats.packing import Source, whole_lines
from benchmarks.trace.formats.piece import Piece, line_of
from kernel.engine.foreign import parse_json, quoted

NAME = "fragmetrics JSONL"
PATTERN = re.compile(rb'\A\s*\{[^\n]*"op"\s*:')

OPERATIONS = {"alloc": MALLOC, "free": FREE}
#: Lines of one flat object each; for others pyarrow may read several rows, or crash ("null", or
#: deep nesting).
_FLAT = re.compile(rb"(?:\{[^][{}\n]*+\}[ \t\r]*+(?:\n|\Z))*+")
_LARGEST = 1 << 62


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a trace in the order of ``ts``, and the fraction read.

    The rows of the last read are held back, so that late lines of the next read sort into them.
    """
    held = np.empty((5, 0), "i8")
    ordered, last = True, -1
    done = rows = 0  # lines in the pieces yielded, and in the next one
    bad, explain = np.empty(0, "i8"), partial(_explain, b"", last)
    for text, fraction in itertools.chain(whole_lines(source), [(b"", 1.0)]):
        columns, wrong = _parse_with_pyarrow(text) or _parse_line_by_line(text)
        columns[0] += done + rows
        ordered = ordered and bool(np.all(columns[4] >= 0))
        late = (columns[4] < last) & ordered
        n = held.shape[1]
        held = np.hstack([held, columns[:, ~late]])
        if ordered:
            held = held[:, np.argsort(held[4], kind="stable")]
        out, held = held[:, :n], held[:, n:]
        yield Piece(_records(out, done, bad), rows, explain, _format_pointer), fraction
        done += rows
        rows = text.count(b"\n") + (not text.endswith(b"\n"))
        bad = np.sort(np.concatenate([wrong, columns[0, late] - done]))
        explain = partial(_explain, text, last)
        last = int(out[4, -1]) if n else last


def _explain(text: bytes, last: int, row: int) -> str:
    """Return the error in line ``row`` of ``text``; ``last``: the last ts already yielded."""
    wrong = _parse_line(line_of(text, row))
    if isinstance(wrong, str):
        return wrong
    return f"ts {wrong[3]} is out of order: ts {last} precedes it by some megabytes"


def _format_pointer(_row: int, pointer: int) -> str:
    return f"id {pointer - (pointer > 0)}"


def _records(columns: np.ndarray, first: int, bad: np.ndarray) -> Records:
    """Convert columns of :func:`_parse_with_pyarrow` to Records; lines count from ``first``."""
    line, op, number, size, _ = columns
    none = np.zeros(len(op), "i8")
    return Records(
        line=line - first,
        op=op.astype("u1"),
        pointer=np.where(number < 0, number, number + 1),
        old=none,
        size=np.ascontiguousarray(size),
        align=none.astype("u1"),
        thread=np.empty(0, "i8"),
        time=np.empty(0, "i8"),
        bad=bad,
    )


def _parse_with_pyarrow(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Parse ``text`` with pyarrow, the fast path; return None if any line is unusual or bad.

    Returns (5, n) int64: line, operation, id, size, ts (-1: none); and the bad lines.
    """
    import pyarrow as pa
    from pyarrow import compute, json

    if not _FLAT.fullmatch(text):
        return None
    try:
        table = json.read_json(BytesIO(text))
        names = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    n = table.num_rows
    if n != text.count(b"\n") + (not text.endswith(b"\n")):
        return None

    def whole(name: str) -> np.ndarray | None:
        """Return a column of integers >= 0, -1 where absent; None if it has other values."""
        if name not in names:
            return np.full(n, -1)
        column = table.column(name)
        if not pa.types.is_int64(column.type) or compute.any(compute.less(column, 0)).as_py():
            return None
        return column.fill_null(-1).to_numpy()

    number, size, ts = whole("id"), whole("size"), whole("ts")
    if number is None or size is None or ts is None or "op" not in names:
        return None
    index = compute.index_in(table.column("op"), pa.array(OPERATIONS)).fill_null(-1).to_numpy()
    op = np.array([*OPERATIONS.values(), -1], "i8")[index]
    good = (op >= 0) & (number >= 0) & np.where(op == FREE, size < 0, size > 0)
    good &= (number < _LARGEST) & (size < _LARGEST) & (ts < _LARGEST)
    if not good.all():
        return None
    return np.stack([np.arange(n), op, number, np.maximum(size, 0), ts]), np.empty(0, "i8")


def _parse_line_by_line(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parse ``text`` as :func:`_parse_with_pyarrow` does, but allow blank and bad lines."""
    rows, bad = [], []
    for i, line in enumerate(text.split(b"\n")):
        if line.strip():
            row = _parse_line(line)
            if isinstance(row, str):
                bad.append(i)
            else:
                rows.append((i, *row))
    return np.ascontiguousarray(np.array(rows, "i8").reshape(-1, 5).T), np.array(bad, "i8")


def _parse_line(line: bytes) -> tuple[int, int, int, int] | str:
    """Return operation, id, size and ts of a line, or a message if it is malformed."""
    try:
        event = parse_json(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(event, dict):
        return f"expected a JSON object, found {quoted(event)}"
    ts, op, number, size = (event.get(key) for key in ("ts", "op", "id", "size"))
    if not isinstance(op, str) or op not in OPERATIONS:
        return f"unknown op {quoted(op)} (known: {', '.join(OPERATIONS)})"
    if not _is_whole(number):
        return f"expected a whole number as id, found {quoted(number)}"
    if op == "free":
        if size is not None:
            return f"a free has no size, found {quoted(size)}"
    elif not _is_whole(size) or size <= 0:
        return f"expected a positive integer as size of {op}, found {quoted(size)}"
    if ts is not None and (not _is_whole(ts) or ts < 0):
        return f"expected a whole number as ts, found {quoted(ts)}"
    return OPERATIONS[op], number, size or 0, -1 if ts is None else ts


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
