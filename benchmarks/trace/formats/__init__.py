"""Trace files of any known format: recognise them by content, import them once, load them.

    FILE, possibly packed ──► pieces of Records ──► objects ──► Parquet trace (user's cache)
           packing             a format's reader

A format is a module.  A text format has NAME, PATTERN (a regular expression that recognises it)
and Reader: ``read(lines)`` returns Records, ``explain(fields)`` returns the error in a line, and
``format_pointer(pointer)`` names an object as the trace does.  A Reader may have ``late``,
``prepare(text)``, called before lines are split, and ``missing()``, called at the end.  Any other
format has NAME, PATTERN or ``recognises(head)``, ``pieces(source)`` (see
benchmarks.trace.formats.piece) and UNIT, the name of the unit in which positions in the file are
counted ("line" if absent).  NOTE says what a format lacks; it is printed whenever a trace is read.
To add a format, enter it in FORMATS.

Imports events/ and no other part of trace/; trace.tools, workloads and tests import it.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.events import parquet
from benchmarks.events.events import Events, make_events
from benchmarks.events.facts import Audit
from benchmarks.events.numbering import Numbering
from benchmarks.events.parquet import TraceError
from benchmarks.trace.formats import (
    aggregates,
    android,
    fragmetrics,
    heaptrack,
    heaptrack_default,
    ltrace,
    malloc_bench,
    malloc_lab,
    memray,
    mtrace,
    valgrind,
    wee_alloc,
)
from benchmarks.trace.formats.objects import (
    PROBLEM_NAMES,
    UNSEEN,
    Objects,
    Records,
    describe_problem,
)
from benchmarks.trace.formats.packing import Source, open_source, source_of, trace_errors
from benchmarks.trace.formats.piece import pieces
from kernel.engine.foreign import WIDTH, check_regular, printable
from kernel.engine.output import unwritable

#: The foreign formats.  The first one that matches the beginning of a file reads the file.
FORMATS: tuple[ModuleType, ...] = (
    malloc_bench,
    memray,
    heaptrack,
    heaptrack_default,
    fragmetrics,
    valgrind,
    mtrace,
    ltrace,
    android,
    wee_alloc,
    malloc_lab,
)
#: Version of the importers: increase it when a change makes the same file import differently.
VERSION = 5

#: Callback: called with the fraction done and a description of the current work.
Progress = Callable[[float, str], None]

_HEAD = 1 << 16


def recognise(path: Path) -> Source:
    """Determine the packing and format of a trace from its beginning.  Raises TraceError."""
    with trace_errors(path):
        check_regular(path)
        with path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise TraceError(f"{path}: the file is empty")
        if magic == parquet.MAGIC:
            parquet.check_ends(path)
            return Source(path, "parquet")
        source = source_of(path, magic)
        with open_source(source) as (stream, _):
            head = stream.read(_HEAD)
        if not head.strip():
            raise TraceError(f"{path}: the trace is empty")
        if refusal := aggregates.reason(head):
            raise TraceError(f"{path}: {refusal}")
        for module in FORMATS:
            if _matches(module, head):
                source.format = module
                return source
    known = ", ".join([*(module.NAME for module in FORMATS), "Parquet"])
    raise TraceError(f"{path}: unknown trace format (known: {known})")


def _matches(module: ModuleType, head: bytes) -> bool:
    recognises = getattr(module, "recognises", None)
    return recognises(head) if recognises else module.PATTERN.search(head) is not None


def _events(source: Source, strict: bool, progress: Progress | None) -> Iterator[Events]:
    """Yield the events of a foreign trace.  Raises TraceError for the first error if ``strict``."""
    objects = Objects()
    threads = Numbering()
    for piece, fraction in pieces(source):
        if progress:
            progress(fraction, f"importing {source.path.name}")
        records = piece.records
        if strict and len(records.bad):
            records = _until(records, int(records.bad[0]))
        slot, problem = objects.rename(records, strict, piece.late)
        wrong = [(records.line[i], i) for i in np.flatnonzero(problem > UNSEEN)[:1]]
        wrong += [(row, -1) for row in records.bad[:1]]
        if wrong and (strict or source.first_problem is None):
            row, i = min(wrong)
            if i < 0:
                what = piece.explain(int(row))
            else:
                what = describe_problem(
                    records, i, problem[i], partial(piece.format_pointer, int(row))
                )
            source.first_problem = (source.lines + int(row) + 1, what)
            if strict:
                raise _error(source.path, source.first_problem, unit_of(source))
        for code, count in zip(*np.unique(problem, return_counts=True), strict=True):
            if code:
                source.dropped[PROBLEM_NAMES[code]] += int(count)
        if len(records.bad):
            source.dropped[f"unreadable_{unit_of(source)}"] += len(records.bad)
        source.lines += piece.rows
        if piece.missing:
            name, number, what = piece.missing
            source.dropped[name] += number
            source.first_problem = source.first_problem or (source.lines + 1, what)
            if strict:
                raise _error(source.path, source.first_problem, unit_of(source))
        kept = problem == 0
        optional = {
            name: getattr(records, name)[kept]
            for name in ("time", "site", "thread")
            if len(getattr(records, name))
        }
        if "thread" in optional:
            optional["thread"] = threads.of(optional["thread"])
        yield make_events(
            records.op[kept], slot[kept], records.size[kept], align=records.align[kept], **optional
        )


def _until(records: Records, line: int) -> Records:
    """Return the records before ``line``, with that line as the only bad one."""
    above = {
        name: column[records.line < line] if len(column) else column
        for name, column in records._asdict().items()
        if name != "bad"
    }
    return Records(**above, bad=records.bad[:1])


def unit_of(source: Source) -> str:
    """Return the unit in which positions in a trace are counted, such as "line"."""
    return getattr(source.format, "UNIT", "line")


def _error(path: Path, problem: tuple[int, str], unit: str) -> TraceError:
    place, what = problem
    where = f":{place}: " if unit == "line" else f": {unit} {place}: "
    return TraceError(f"{path}{where}{what}")


def check_output(out: Path, *inputs: Path) -> None:
    """Raise TraceError if ``out`` cannot be written as a file or is one of the ``inputs``.

    A complete output replaces an existing file at ``out``, so ``out`` must not be a device.
    """
    if reason := unwritable(out):
        raise TraceError(f"{out}: {reason}")
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise TraceError(f"{out}: would overwrite an input trace; choose another name")


def convert(
    path: Path, out: Path, strict: bool, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the trace ``path`` as a Parquet trace to ``out``; return its provenance.

    ``out`` appears complete or not at all.  Raises TraceError.
    """
    source = recognise(path)
    check_output(out, path)
    try:
        with parquet.Writer(out) as writer:
            if source.format is None:
                with parquet.Reader(path) as reader:
                    for events in reader.checked():
                        writer.add(events)
                    writer.provenance = reader.provenance
            else:
                for events in _events(source, strict, progress):
                    writer.add(events)
                writer.provenance = _provenance(source)
            return writer.provenance
    except OSError as error:
        raise TraceError(f"{out}: {error.strerror or error}") from None


def _provenance(source: Source) -> dict[str, Any]:
    """Return the origin of an imported trace and its import counts; call it after the import."""
    return {
        "file": source.path.name,
        "sha256": _content_hash(source.path),
        "format": source.format.NAME,
        "unit": unit_of(source),
        "importer": VERSION,
        "lines": source.lines,
        "dropped": dict(source.dropped),
        "first_problem": list(source.first_problem) if source.first_problem else None,
    } | ({"note": source.format.NOTE} if hasattr(source.format, "NOTE") else {})


def _content_hash(path: Path) -> str:
    with trace_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Return the directory of imported traces."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "malloc-bench" / "traces"


@contextmanager
def parquet_file(
    path: Path, strict: bool, progress: Progress | None = None
) -> Iterator[tuple[parquet.Reader, bool]]:
    """Yield a reader of ``path`` as a Parquet trace, and True if its import found it consistent.

    A foreign trace is imported once and cached under the hash of its content; if the cache is not
    writable, it is imported into a temporary directory.  Raises TraceError.
    """
    source = recognise(path)
    if source.format is None:
        with trace_errors(path):
            reader = parquet.Reader(path)
        with reader:
            yield reader, False
        return
    name = f"{_content_hash(path)[:32]}-{VERSION}-{parquet.SCHEMA}.parquet"
    with tempfile.TemporaryDirectory() as temporary:
        cached = _writable(cache_directory(), Path(temporary)) / name
        reader = _reader_of(cached)
        if reader is None:
            convert(path, cached, strict, progress)
            reader = parquet.Reader(cached)
        problem = reader.provenance["first_problem"]
        if strict and problem:
            raise _error(path, tuple(problem), unit_of(source))
        try:
            with reader:
                yield reader, reader.facts is not None
        except TraceError:
            cached.unlink(missing_ok=True)  # damaged: the next run imports the trace anew
            raise


def _writable(directory: Path, otherwise: Path) -> Path:
    """Return ``directory``, created if needed, or ``otherwise`` if it is not writable."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return directory if os.access(directory, os.W_OK) else otherwise


def _reader_of(cached: Path) -> parquet.Reader | None:
    """Return a reader of a cached file; None if it is missing or damaged."""
    try:
        return parquet.Reader(cached)
    except (TraceError, OSError):
        return None


def load(
    path: Path, strict: bool = True, progress: Progress | None = None
) -> tuple[Events, dict[str, Any]]:
    """Return the events of a trace of any known format, and their provenance.

    If not ``strict``, impossible and unreadable records are dropped, and their number is printed
    on standard error.  Raises TraceError.
    """
    with parquet_file(path, strict, progress) as (reader, checked):
        events = reader.read()
        if not checked:
            for _ in parquet.audited(path, iter([events]), Audit(reader.events)):
                pass
        report_dropped(path, reader.provenance)
        return events, reader.provenance


def report_dropped(path: Path, provenance: dict[str, Any]) -> None:
    """Print on standard error how many records an import dropped, and what the format lacks."""
    if "note" in provenance:
        print(printable(f"{path}: note: {provenance['note']}", 4 * WIDTH), file=sys.stderr)
    dropped = provenance.get("dropped")
    if not dropped:
        return
    counts = ", ".join(f"{count} × {name.replace('_', ' ')}" for name, count in dropped.items())
    problem = provenance.get("first_problem")
    unit = provenance.get("unit", "line")
    first = f"; first problem: {unit} {problem[0]}: {problem[1]}" if problem else ""
    what = printable(f"dropped {counts}{first}", 4 * WIDTH)
    print(f"{printable(str(path))}: {what}", file=sys.stderr)
