"""The native trace format: Parquet with zstd, the columns of benchmarks.events, one row an event.

    row group 0   op  slot  size  [align  thread  offset  time  site]     2**20 rows
    row group 1   …
    metadata      "malloc-bench": JSON with schema (a version) and provenance

Columns at their default throughout are left out when reading.  pandas, polars and duckdb read the
files as they are; here they are read whole or by row group, in bounded memory.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.events import (
    ALLOCATOR_OPS,
    COLUMNS,
    FREE,
    OP_NAMES,
    THREAD_END,
    Events,
    make_events,
)
from benchmarks.ledger import Ledger

#: Version of the columns' meaning; files of another are refused.
SCHEMA = 1
ROW_GROUP = 1 << 20
#: First bytes of every Parquet file.
MAGIC = b"PAR1"

_METADATA = "malloc-bench"
_REQUIRED = ("op", "slot", "size")


class TraceError(ValueError):
    """A trace that cannot be read; the message names the file, the line and what is wrong."""


class Writer:
    """Writes events to a file that appears, whole, when the ``with`` block ends without error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Plain values for JSON; may be set until the end.
        self.provenance: dict[str, Any] = {}
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        self._pending: list[Events] = []
        self._rows = 0
        self._names: list[str] = []
        self._file: Any = None

    def __enter__(self) -> "Writer":
        return self

    def add(self, events: Events) -> None:
        """Append ``events``; the first ones decide which columns there are."""
        if not len(events.op):
            return
        if not self._names:
            self._names = [n for n in Events._fields if len(getattr(events, n))]
        self._pending.append(events)
        self._rows += len(events.op)
        if self._rows >= ROW_GROUP:
            self._flush(self._rows - self._rows % ROW_GROUP)

    def _flush(self, rows: int) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {}
        for name in self._names:
            pieces = [getattr(events, name) for events in self._pending]
            columns[name] = np.concatenate([*pieces, np.empty(0, dict(_dtypes())[name])])
        self._pending = [_slice(columns, rows, self._rows)]
        self._rows -= rows
        table = pa.table({name: column[:rows] for name, column in columns.items()})
        if self._file is None:
            self._file = parquet.ParquetWriter(
                self._temporary, table.schema, compression="zstd", write_page_checksum=True
            )
        self._file.write_table(table, row_group_size=ROW_GROUP)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if not self._names:
                    self._names = list(_REQUIRED)
                if self._rows or self._file is None:
                    self._flush(self._rows)
                content = {"schema": SCHEMA, "provenance": self.provenance}
                self._file.add_key_value_metadata({_METADATA: json.dumps(content)})
            if self._file is not None:
                self._file.close()
            if error is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _dtypes() -> list[tuple[str, str]]:
    return [(name, dtype) for name, dtype, _, _ in COLUMNS]


def _slice(columns: Mapping[str, np.ndarray], begin: int, end: int) -> Events:
    return make_events(**{name: column[begin:end] for name, column in columns.items()})


def check_ends(path: Path) -> None:
    """Raise TraceError for a Parquet file that was cut off; reads eight bytes."""
    with path.open("rb") as file:
        file.seek(0, 2)
        whole = file.tell() >= 3 * len(MAGIC)
        file.seek(-len(MAGIC), 2)
        if not whole or file.read() != MAGIC:
            raise TraceError(f"{path}: truncated or damaged trace (a Parquet file without its end)")


def write(path: Path, events: Events, provenance: Mapping[str, Any]) -> None:
    """Write a trace.  Raises OSError."""
    with Writer(path) as writer:
        writer.provenance = dict(provenance)
        writer.add(events)


class Reader:
    """An open trace: ``events`` (their number), ``provenance``, and the events themselves.

    Raises TraceError for a file that is damaged, no trace, or of another schema.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        with _damage(path):
            self._file = parquet.ParquetFile(path, page_checksum_verification=True)
            metadata = self._file.metadata
            content = json.loads((metadata.metadata or {}).get(_METADATA.encode(), b"{}"))
        if "schema" not in content:
            raise TraceError(
                f"{path}: a Parquet file, but not a trace ({_METADATA!r} is not in its metadata)"
            )
        if content["schema"] != SCHEMA:
            raise TraceError(
                f"{path}: a trace of schema {content['schema']}; this program reads {SCHEMA}"
            )
        self.events: int = metadata.num_rows
        self.provenance: dict[str, Any] = content.get("provenance", {})
        with _damage(path):
            self._names = self._columns()

    def _columns(self) -> list[str]:
        """The columns to read.  Raises TraceError for one missing or of the wrong type."""
        import pyarrow as pa

        schema, metadata = self._file.schema_arrow, self._file.metadata
        wanted = []
        for name, dtype, default, _ in COLUMNS:
            index = schema.get_field_index(name)
            if index < 0:
                if name in _REQUIRED:
                    raise TraceError(f"{self.path}: the column {name!r} is missing")
                continue
            if schema.field(index).type != pa.from_numpy_dtype(np.dtype(dtype)):
                raise TraceError(
                    f"{self.path}: column {name!r} is {schema.field(index).type}, not {dtype}"
                )
            statistics = [
                metadata.row_group(i).column(index).statistics
                for i in range(metadata.num_row_groups)
            ]
            says_nothing = all(
                s is not None and s.has_min_max and s.min == s.max == default for s in statistics
            )
            if name in _REQUIRED or not says_nothing:
                wanted.append(name)
        return wanted

    def _to_events(self, table: Any) -> Events:
        columns = {}
        for name in self._names:
            if table.column(name).null_count:
                raise TraceError(f"{self.path}: column {name!r} has nulls")
            columns[name] = table.column(name).to_numpy()
        return make_events(**columns)

    def read(self) -> Events:
        """All events."""
        with _damage(self.path):
            return self._to_events(self._file.read(self._names))

    def groups(self) -> Iterator[Events]:
        """The events of one row group after the other, all with the same columns."""
        for i in range(self._file.num_row_groups):
            with _damage(self.path):
                events = self._to_events(self._file.read_row_group(i, self._names))
            yield events

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a broken file into a TraceError."""
    import pyarrow as pa

    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, TraceError):
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        detail = str(error).partition("\n")[0]
        raise TraceError(f"{path}: truncated or damaged trace ({detail})") from None


def verify(path: Path, groups: Iterator[Events]) -> Iterator[Events]:
    """Pass ``groups`` on, each after it was checked.

    Raises TraceError for the first event that cannot be: "PATH: event N: …".
    """
    ledger = Ledger()
    first = 0
    for events in groups:
        wrong = _impossible(events, ledger)
        if wrong is not None:
            i, what = wrong
            raise TraceError(f"{path}: event {first + i}: {what}")
        first += len(events.op)
        yield events


def _impossible(events: Events, ledger: Ledger) -> tuple[int, str] | None:
    """The first event that is malformed or contradicts what came before it, and why."""
    op, slot, size = events.op, events.slot, events.size
    nameless = (op == FREE) | (op == THREAD_END)
    malformed = (op >= len(OP_NAMES)) | (slot < -1) | (size < 0) | ((slot < 0) & ~nameless)
    if len(events.align):
        malformed |= events.align > 62
    if len(events.thread):
        malformed |= events.thread < 0
    if malformed.any():
        i = int(np.argmax(malformed))
        return i, f"impossible columns (op {op[i]}, slot {slot[i]}, size {size[i]})"
    before = ledger.follow(events).before
    offset = events.offset if len(events.offset) else np.zeros(len(op), "i8")
    empty = before < 0
    starts = (op < ALLOCATOR_OPS) & (op != FREE) & (OP_NAMES.index("realloc") != op)
    touches = (op >= ALLOCATOR_OPS) & (op != THREAD_END)
    outside = touches & ~empty & ((offset < 0) | (offset + size > before))
    wrong = (starts & ~empty) | ((op == FREE) & empty & (slot >= 0)) | (touches & empty) | outside
    if not wrong.any():
        return None
    i = int(np.argmax(wrong))
    name = OP_NAMES[op[i]]
    if starts[i]:
        return i, f"{name} into slot {slot[i]}, which is in use"
    if outside[i]:
        return (
            i,
            f"{name} of bytes {offset[i]} to {offset[i] + size[i]} of an object of {before[i]}",
        )
    return i, f"{name} of slot {slot[i]}, which is empty"
