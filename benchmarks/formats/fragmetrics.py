"""fragmetrics JSONL: one JSON object a line.

    {"ts": 0.5, "op": "alloc", "id": "a7", "size": 64, "addr": 4096}
    {"ts": 0.6, "op": "free", "id": "a7"}

``op``: a name in OPERATIONS.  ``id``: a number or a string.  ``size``: bytes; a free may have it.
``ts``: seconds where it has a fraction, else nanoseconds; ``addr`` and other keys are not used.
A realloc keeps its id.
"""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np

from benchmarks.events import CALLOC, FREE, MALLOC, REALLOC
from benchmarks.formats.objects import Records
from benchmarks.formats.packing import Source, whole_lines
from benchmarks.formats.piece import Piece, line_of

NAME = "fragmetrics JSONL"
PATTERN = re.compile(rb'\A\s*\{[^\n]*"op"\s*:')

OPERATIONS = {
    "alloc": MALLOC,
    "malloc": MALLOC,
    "calloc": CALLOC,
    "realloc": REALLOC,
    "free": FREE,
    "dealloc": FREE,
}
_KEYS = ("ts", "op", "id", "size")
_SECOND = 1_000_000_000
_LARGEST = 1 << 62


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a trace, and the fraction read."""
    reader = Reader()
    for text, fraction in whole_lines(source):

        def explain(row: int, text: bytes = text) -> str:
            return reader.explain(line_of(text, row))

        def spell(row: int, _pointer: int, text: bytes = text) -> str:
            return f"id {json.loads(line_of(text, row))['id']!r}"

        rows = text.count(b"\n") + (not text.endswith(b"\n"))
        yield Piece(reader.read(text), rows, explain, spell), fraction


class Reader:
    """Reads one trace, piece by piece."""

    def __init__(self) -> None:
        #: Strings that name objects get numbers below 0.
        self._names: dict[str, int] = {}
        self._start: int | None = None
        self._now = 0

    def read(self, text: bytes) -> Records:
        """Return the records of whole lines."""
        columns = self._at_once(text) or self._line_by_line(text)
        line, op, pointer, size, time, bad = columns
        if self._start is None and len(time):
            self._start = int(time[0])
        if len(time):
            time = np.maximum(np.maximum.accumulate(time - self._start), self._now)
            self._now = int(time[-1])
        return Records(
            line=line,
            op=op.astype("u1"),
            pointer=pointer,
            old=np.where(op == REALLOC, pointer, 0),
            size=size,
            align=np.zeros(len(op), "u1"),
            thread=np.empty(0, "i8"),
            time=time,
            bad=bad,
        )

    def _at_once(self, text: bytes) -> tuple[np.ndarray, ...] | None:
        """Columns by pyarrow's parser; None when anything about a line is out of the ordinary."""
        import pyarrow as pa
        from pyarrow import compute, json

        try:
            table = json.read_json(BytesIO(text))
        except pa.ArrowInvalid:
            return None
        n = table.num_rows
        if n != text.count(b"\n") + (not text.endswith(b"\n")) or not {"op", "id"} <= set(
            table.column_names
        ):
            return None
        ids, ops = (table.column(name) for name in ("id", "op"))
        if not pa.types.is_string(ops.type) or ops.null_count or ids.null_count:
            return None
        op = compute.index_in(ops, pa.array(OPERATIONS)).combine_chunks()
        if op.null_count:
            return None
        op = np.array(list(OPERATIONS.values()), "i8")[op.to_numpy(zero_copy_only=False)]

        if pa.types.is_string(ids.type):
            encoded = ids.combine_chunks().dictionary_encode()
            numbers = np.array([self._number(name) for name in encoded.dictionary.to_pylist()])
            pointer = numbers[encoded.indices.to_numpy(zero_copy_only=False)]
        elif pa.types.is_int64(ids.type):
            pointer = ids.to_numpy() + 1
        else:
            return None
        size = _whole(table, "size", pa.types.is_int64)
        time = _whole(table, "ts", lambda kind: pa.types.is_int64(kind) or kind == pa.float64())
        if size is None or time is None or (pointer <= 0).any() != pa.types.is_string(ids.type):
            return None
        sized = table.column("size").is_valid().to_numpy() if "size" in table.column_names else 0
        if ((size < 0) | ((op != FREE) & ~np.broadcast_to(np.bool_(sized), n))).any():
            return None
        return np.arange(n), op, pointer, size, time, np.empty(0, "i8")

    def _line_by_line(self, text: bytes) -> tuple[np.ndarray, ...]:
        """Columns of lines of which some are not as they should be, or blank."""
        rows, bad = [], []
        for i, line in enumerate(text.split(b"\n")):
            if line.strip():
                row = self._row(line)
                if isinstance(row, str):
                    bad.append(i)
                else:
                    rows.append((i, *row))
        columns = np.array(rows, "i8").reshape(-1, 5).T
        return *(np.ascontiguousarray(c) for c in columns), np.array(bad, "i8")

    def _row(self, line: bytes) -> tuple[int, int, int, int] | str:
        """Operation, pointer, size and time of a line, or what is wrong with it."""
        try:
            event = json.loads(line)
        except ValueError as error:
            return f"no JSON: {error}"
        if not isinstance(event, dict):
            return f"expected a JSON object, found {event!r}"
        ts, op, name, size = (event.get(key) for key in _KEYS)
        if not isinstance(op, str) or op not in OPERATIONS:
            return f"unknown op {op!r} (known: {', '.join(OPERATIONS)})"
        frees = OPERATIONS[op] == FREE
        number = isinstance(name, int) and not isinstance(name, bool) and 0 <= name < _LARGEST
        if not number and not isinstance(name, str):
            return f"expected a number or a string as id, found {name!r}"
        if not (frees and size is None) and not _is_size(size):
            return f"expected a number of bytes as size of {op}, found {size!r}"
        if ts is not None and (isinstance(ts, bool) or not isinstance(ts, int | float)):
            return f"expected a number as ts, found {ts!r}"
        pointer = name + 1 if number else self._number(name)
        return OPERATIONS[op], pointer, size or 0, _nanoseconds(ts)

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, -1 - len(self._names))

    def explain(self, line: bytes) -> str:
        """What is wrong with a line."""
        wrong = self._row(line)
        return wrong if isinstance(wrong, str) else "a line that cannot be read"


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _LARGEST


def _nanoseconds(ts: int | float | None) -> int:
    return round(ts * _SECOND) if isinstance(ts, float) else int(ts or 0)


def _whole(table: Any, name: str, fits: Any) -> np.ndarray | None:
    """A column of numbers as int64 with 0 for null; None when its type does not fit."""
    import pyarrow as pa

    if name not in table.column_names:
        return np.zeros(table.num_rows, "i8")
    column = table.column(name)
    if pa.types.is_null(column.type):
        return np.zeros(table.num_rows, "i8")
    if not fits(column.type):
        return None
    numbers = column.fill_null(0).to_numpy()
    return numbers if numbers.dtype == np.int64 else np.rint(numbers * _SECOND).astype("i8")
