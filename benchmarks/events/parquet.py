"""The project's trace format: Parquet with zstd, one row per event, the columns of Events.

    row group 0   op  slot  size  [align  thread  offset  time  site]     2**20 rows
    row group 1   …
    metadata      "malloc-bench": JSON with schema (a version), provenance and facts

Reading skips columns that hold only their default.  pandas, polars and duckdb read these files
directly; this module reads them whole, or by row group in bounded memory.  The facts
(benchmarks.events.facts) hold the totals that a replay needs before it starts.  They are None if
the events are inconsistent; files written before facts existed have none.

The files are small because BYTE_STREAM_SPLIT puts bytes of equal significance next to each other
for zstd: the high bytes are nearly all zero, and slots filled in sequence differ only in the low
bytes.  Times increase, so their differences are stored (DELTA_BINARY_PACKED).  A recorded program
takes one to three bytes per event, threads and nanoseconds included.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.events.events import COLUMNS, Events, make_events, read_only
from benchmarks.events.facts import Audit, Facts, Fingerprint
from kernel.engine.foreign import WIDTH, parse_json, printable, quoted
from kernel.engine.output import replacing

#: Version of the columns' meaning; files of any other version are refused.
SCHEMA = 1
ROW_GROUP = 1 << 20
#: First bytes of every Parquet file.
MAGIC = b"PAR1"

_METADATA = "malloc-bench"
#: Encodings and zstd level; slower settings give hardly smaller files and no faster reading.
_ENCODINGS = {name: "BYTE_STREAM_SPLIT" for name, *_ in COLUMNS} | {"time": "DELTA_BINARY_PACKED"}
_LEVEL = 9
_REQUIRED = ("op", "slot", "size")


class TraceError(ValueError):
    """Error for a trace that cannot be read; the message names the file, the line and the fault."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Writer:
    """Writer of a trace file that appears, complete, when its ``with`` block ends without error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: JSON-serialisable values; may be set until the ``with`` block ends.
        self.provenance: dict[str, Any] = {}
        self._replacing = replacing(path)
        self._temporary = path  # until the ``with`` block begins
        self._pending: list[Events] = []
        self._rows = 0
        self._names: list[str] = []
        self._audit, self._fingerprint = Audit(), Fingerprint()
        self._wrong: str | None = None
        self._file: Any = None

    def __enter__(self) -> "Writer":
        self._temporary = self._replacing.__enter__()
        return self

    def add(self, events: Events) -> None:
        """Append ``events``; the first call determines which columns the file has."""
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
        from pyarrow import parquet as pq

        columns = {}
        for name in self._names:
            pieces = [getattr(events, name) for events in self._pending]
            columns[name] = np.concatenate([*pieces, np.empty(0, dict(_dtypes())[name])])
        self._pending = [_slice(columns, rows, self._rows)]
        self._rows -= rows
        events = _slice(columns, 0, rows)
        self._fingerprint.add(events)
        self._wrong = self._audit.add(events)
        table = pa.table({name: column[:rows] for name, column in columns.items()})
        with _short_errors():
            if self._file is None:
                self._file = pq.ParquetWriter(
                    self._temporary,
                    table.schema,
                    compression="zstd",
                    compression_level=_LEVEL,
                    use_dictionary=False,
                    column_encoding={name: _ENCODINGS[name] for name in columns},
                    write_page_checksum=True,
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
                content = {"schema": SCHEMA, "provenance": self.provenance, "facts": None}
                if self._wrong is None:
                    facts = self._audit.facts(self._fingerprint.hexdigest())
                    content["facts"] = vars(facts)
                self._file.add_key_value_metadata({_METADATA: json.dumps(content)})
            if self._file is not None:
                with _short_errors():
                    self._file.close()
        except BaseException as failure:
            self._replacing.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._replacing.__exit__(kind, error, trace)


@contextmanager
def _short_errors() -> Iterator[None]:
    """Replace pyarrow's message in operating system errors by the plain one of ``strerror``."""
    try:
        yield
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, os.strerror(error.errno)) from None
        raise


def _dtypes() -> list[tuple[str, str]]:
    return [(name, dtype) for name, dtype, _, _ in COLUMNS]


def _slice(columns: Mapping[str, np.ndarray], begin: int, end: int) -> Events:
    return make_events(**{name: column[begin:end] for name, column in columns.items()})


def check_ends(path: Path) -> None:
    """Raise TraceError for a truncated Parquet file; reads only its length and last four bytes."""
    with path.open("rb") as file:
        file.seek(0, 2)
        whole = file.tell() >= 3 * len(MAGIC)
        file.seek(-len(MAGIC), 2)
        if not whole or file.read() != MAGIC:
            raise TraceError(f"{path}: truncated or damaged trace (the Parquet footer is missing)")


def write(path: Path, events: Events, provenance: Mapping[str, Any]) -> None:
    """Write a trace.  Raises OSError."""
    with Writer(path) as writer:
        writer.provenance = dict(provenance)
        writer.add(events)


class Reader:
    """An open trace: ``events`` (their number), ``provenance``, and access to the events.

    ``facts``: the stored facts, None if the file has none.  ``names``: required columns and those
    that hold more than their default.

    Raises TraceError for a file that is damaged, not a trace, or of another schema version.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet as pq

        self.path = path
        with _damage(path):
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
            metadata = self._file.metadata
            content = parse_json((metadata.metadata or {}).get(_METADATA.encode(), b"{}"))
        if not isinstance(content, dict):
            raise TraceError(f"{path}: damaged metadata: {_METADATA} is {quoted(content)}")
        if "schema" not in content:
            raise TraceError(
                f"{path}: a Parquet file, but not a trace (no {_METADATA!r} in its metadata)"
            )
        if content["schema"] != SCHEMA:
            raise TraceError(
                f"{path}: a trace of schema version {quoted(content['schema'])}; "
                f"this program reads version {SCHEMA}"
            )
        self.events: int = metadata.num_rows
        groups = range(metadata.num_row_groups)
        if self.events != sum(metadata.row_group(i).num_rows for i in groups):
            raise TraceError(f"{path}: damaged trace (the row groups do not have all the rows)")
        self.provenance: dict[str, Any] = content.get("provenance", {})
        if not _is_provenance(self.provenance):
            raise TraceError(f"{path}: damaged metadata: provenance {quoted(self.provenance)}")
        self.facts = Facts.parse(content.get("facts"), self.events)
        with _damage(path):
            self.names = self._columns()

    def _columns(self) -> list[str]:
        """Return the columns to read.  Raises TraceError for one missing or of the wrong type."""
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
                    f"{self.path}: column {name!r} is "
                    f"{printable(str(schema.field(index).type), WIDTH)}, not {dtype}"
                )
            statistics = [
                metadata.row_group(i).column(index).statistics
                for i in range(metadata.num_row_groups)
            ]
            only_default = all(
                s is not None and s.has_min_max and s.min == s.max == default for s in statistics
            )
            if name in _REQUIRED or not only_default:
                wanted.append(name)
        return wanted

    def _to_events(self, table: Any) -> Events:
        columns = {}
        for name in table.schema.names:
            if table.column(name).null_count:
                raise TraceError(f"{self.path}: column {name!r} has nulls")
            columns[name] = table.column(name).to_numpy()
        return read_only(make_events(**columns))

    def read(self) -> Events:
        """Return all events."""
        with _damage(self.path):
            return self._to_events(self._file.read(self.names))

    def groups(self, names: list[str] | None = None, threads: bool = True) -> Iterator[Events]:
        """Yield the events of each row group, in pieces of at most ROW_GROUP, of the same columns.

        ``names``: the columns to read, all if None.  ``threads``: decode on all cores.
        """
        names = self.names if names is None else names
        for i in range(self._file.num_row_groups):
            batches = self._file.iter_batches(ROW_GROUP, [i], names, use_threads=threads)
            while True:
                with _damage(self.path):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    events = self._to_events(batch)
                yield events

    def checked(self) -> Iterator[Events]:
        """Yield what :meth:`groups` does, each piece after :func:`audited` found it consistent."""
        return audited(self.path, self.groups(), Audit(self.events))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Convert the errors that pyarrow raises for a broken file into TraceError."""
    import pyarrow as pa

    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, TraceError):
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        detail = printable(str(error).partition("\n")[0], 2 * WIDTH)
        raise TraceError(f"{path}: truncated or damaged trace ({detail})") from None


def _is_provenance(given: Any) -> bool:
    """Return True for a JSON object whose entries that readers use have the right types."""
    if not isinstance(given, dict):
        return False
    dropped, problem = given.get("dropped", {}), given.get("first_problem")
    if not isinstance(dropped, dict) or not all(type(n) is int for n in dropped.values()):
        return False
    placed = isinstance(problem, list) and [type(part) for part in problem] == [int, str]
    if problem is not None and not placed:
        return False
    return all(isinstance(given.get(name, ""), str) for name in ("format", "unit", "note"))


def audited(path: Path, groups: Iterator[Events], audit: Audit | None = None) -> Iterator[Events]:
    """Yield each of ``groups`` after ``audit`` (default: a new Audit) found it consistent.

    Raises TraceError for the first impossible event: "PATH: event N: …".
    """
    audit = audit or Audit()
    for events in groups:
        wrong = audit.add(events)
        if wrong is not None:
            raise TraceError(f"{path}: {wrong}")
        yield events


def compute_facts(reader: Reader, progress: Callable[[float], None] | None = None) -> Facts:
    """Compute the facts of a trace by reading it row group by row group.

    Calls ``progress`` with the fraction done.  Raises TraceError, as :func:`audited` does.
    """
    audit, fingerprint = Audit(reader.events), Fingerprint()
    for events in audited(reader.path, reader.groups(), audit):
        fingerprint.add(events)
        if progress:
            progress(audit.events / reader.events)
    return audit.facts(fingerprint.hexdigest())
