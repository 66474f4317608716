"""Trace files of any known format: recognise them by content, import them once, load them.

    FILE.zip / .gz / plain text ──► lines ──► a format's Reader ──► objects ──► native file
                                                                               (in the user's cache)

A format is a module with NAME, PATTERN (bytes that show it) and Reader: ``read(lines)`` gives
Records, ``explain(fields)`` says what is wrong with a line, ``spell(pointer)`` names an object as
the trace does.  To add one, enter it in FORMATS.
"""

import gzip
import hashlib
import lzma
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from benchmarks import native
from benchmarks.events import Events, make_events
from benchmarks.formats import android, malloc_lab, wee_alloc
from benchmarks.formats.lines import fields_of, split_lines
from benchmarks.formats.objects import FAILED, PROBLEM_NAMES, Objects, Records, complaint
from benchmarks.native import TraceError

#: The text formats.  The first whose PATTERN is found in the head of a file reads it.
FORMATS: tuple[ModuleType, ...] = (android, wee_alloc, malloc_lab)
#: Version of the importers: raise it when the same file gives other events.
VERSION = 1

#: Told the fraction done and what is being done.
Progress = Callable[[float, str], None]

_HEAD = 1 << 16
_PIECE = 1 << 22
#: What unpackers raise for damaged input, beside OSError.
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error, ValueError)


@dataclass
class Source:
    """A trace file: where it is, how it is packed, and which format is inside (None: native)."""

    path: Path
    packing: str
    member: str = ""
    format: ModuleType | None = None
    #: Lines seen, and what was dropped, by name; filled while importing.
    lines: int = 0
    dropped: Counter = field(default_factory=Counter)
    first_problem: tuple[int, str] | None = None


def recognise(path: Path) -> Source:
    """Look at the beginning of a trace.  Raises TraceError with one clear line."""
    with _complaints(path):
        with path.open("rb") as file:
            magic = file.read(4)
        if not magic:
            raise TraceError(f"{path}: the file is empty")
        if magic == native.MAGIC:
            native.check_ends(path)
            return Source(path, "native")
        source = Source(path, "plain")
        if magic[:2] == b"\x1f\x8b":
            source.packing = "gzip"
        elif magic[:2] == b"PK":
            source.packing = "zip"
            source.member = _member(path)
        with _opened(source) as (stream, _):
            head = stream.read(_HEAD)
        if not head.strip():
            raise TraceError(f"{path}: the trace is empty")
        for module in FORMATS:
            if module.PATTERN.search(head):
                source.format = module
                return source
    known = ", ".join([*(module.NAME for module in FORMATS), "native (Parquet)"])
    raise TraceError(f"{path}: no trace format that is known here ({known})")


def _member(path: Path) -> str:
    """The one file in a zip archive, or the one .txt."""
    with zipfile.ZipFile(path) as archive:
        files = [info.filename for info in archive.infolist() if not info.is_dir()]
    texts = [name for name in files if name.endswith(".txt")]
    for choice in (files, texts):
        if len(choice) == 1:
            return choice[0]
    if not files:
        raise TraceError(f"{path}: the archive holds no file")
    shown = ", ".join(files[:5]) + (", …" if len(files) > 5 else "")
    raise TraceError(
        f"{path}: the archive holds {len(files)} files ({shown}); expected one, or one .txt"
    )


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Turn what the operating system and the unpackers raise into a TraceError."""
    try:
        yield
    except TraceError:
        raise
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise TraceError(f"{path}: truncated or damaged gzip file ({error})") from None
        raise TraceError(f"{path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise TraceError(f"{path}: truncated or damaged archive ({error})") from None
    except RuntimeError as error:  # a password, or an unknown way of packing
        raise TraceError(f"{path}: {error}") from None


@contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """Yield the unpacked stream, and a function that tells the fraction read."""
    with source.path.open("rb") as file:
        total = max(os.fstat(file.fileno()).st_size, 1)

        def fraction() -> float:
            return file.tell() / total

        if source.packing == "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, fraction
        elif source.packing == "zip":
            with zipfile.ZipFile(file) as archive, archive.open(source.member) as stream:
                yield stream, fraction
        else:
            yield file, fraction


def _pieces(source: Source) -> Iterator[tuple[bytes, float]]:
    """Yield whole lines, some megabytes at a time, and the fraction read."""
    with _complaints(source.path), _opened(source) as (stream, fraction):
        rest = b""
        while data := stream.read(_PIECE):
            end = data.rfind(b"\n") + 1
            if end:
                yield rest + data[:end], fraction()
                rest = data[end:]
            else:
                rest += data
            if len(rest) > _PIECE:
                raise TraceError(
                    f"{source.path}: a line of more than {_PIECE} bytes; no text trace"
                )
        if rest:
            yield rest, 1.0


def _events(source: Source, strict: bool, progress: Progress | None) -> Iterator[Events]:
    """Yield the events of a text trace.  Raises TraceError for the first error when ``strict``."""
    reader, objects = source.format.Reader(), Objects()
    threads: dict[int, int] = {}
    for text, fraction in _pieces(source):
        if progress:
            progress(fraction, f"importing {source.path.name}")
        lines = split_lines(text)
        records = reader.read(lines)
        if strict and len(records.bad):
            records = _until(records, int(records.bad[0]))
        slot, problem = objects.rename(records, strict)
        wrong = [(records.line[i], i) for i in np.flatnonzero(problem > FAILED)[:1]]
        wrong += [(row, -1) for row in records.bad[:1]]
        if wrong and (strict or source.first_problem is None):
            row, i = min(wrong)
            bad_line = text.split(b"\n", row + 1)[row]
            if i < 0:
                what = reader.explain(fields_of(bad_line))
            else:
                what = complaint(records, i, problem[i], reader.spell)
            source.first_problem = (source.lines + int(row) + 1, what)
            if strict:
                raise _error(source.path, source.first_problem)
        for code, count in zip(*np.unique(problem, return_counts=True), strict=True):
            if code:
                source.dropped[PROBLEM_NAMES[code]] += int(count)
        if len(records.bad):
            source.dropped["unreadable_line"] += len(records.bad)
        source.lines += len(lines.fields)
        kept = problem == 0
        yield make_events(
            records.op[kept],
            slot[kept],
            records.size[kept],
            align=records.align[kept],
            thread=_dense(records.thread[kept], threads),
            time=records.time[kept] if len(records.time) else records.time,
        )


def _until(records: Records, line: int) -> Records:
    """The records above ``line``, and that line as the only bad one."""
    n = int(np.searchsorted(records.line, line))
    above = [column[:n] for column in records[:-1]]
    return Records(*above, records.bad[:1])


def _dense(thread: np.ndarray, known: dict[int, int]) -> np.ndarray:
    """Number threads from 0 in the order of their first events; ``known`` is added to."""
    numbers, first, inverse = np.unique(thread, return_index=True, return_inverse=True)
    for i in np.argsort(first):
        known.setdefault(int(numbers[i]), len(known))
    return np.array([known[int(n)] for n in numbers], "i4")[inverse]


def _error(path: Path, problem: tuple[int, str]) -> TraceError:
    line, what = problem
    return TraceError(f"{path}:{line}: {what}")


def convert(
    path: Path, out: Path, strict: bool, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the trace ``path`` in the native format at ``out``; returns its provenance.

    ``out`` appears whole or not at all.  Raises TraceError.
    """
    source = recognise(path)
    if not out.parent.is_dir():
        raise TraceError(f"{out}: there is no directory {out.parent}")
    if out.exists() and out.samefile(path):
        raise TraceError(f"{out}: would overwrite the trace that is read")
    try:
        with native.Writer(out) as writer:
            if source.format is None:
                with native.Reader(path) as reader:
                    for events in native.verify(path, reader.groups()):
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
    """Where an imported trace came from; complete after the import."""
    return {
        "file": source.path.name,
        "sha256": _content_hash(source.path),
        "format": source.format.NAME,
        "importer": VERSION,
        "lines": source.lines,
        "dropped": dict(source.dropped),
        "first_problem": list(source.first_problem) if source.first_problem else None,
    }


def _content_hash(path: Path) -> str:
    with _complaints(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Where imported traces are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "malloc-bench" / "traces"


@contextmanager
def native_file(
    path: Path, strict: bool, progress: Progress | None = None
) -> Iterator[tuple[native.Reader, bool]]:
    """Yield a reader of ``path`` in native form, and whether it was checked on the way in.

    A text trace is imported once and kept under the hash of its content; where no cache can be
    written, it is imported into a temporary directory.  Raises TraceError.
    """
    source = recognise(path)
    if source.format is None:
        with _complaints(path):
            reader = native.Reader(path)
        with reader:
            yield reader, False
        return
    name = f"{_content_hash(path)[:32]}-{VERSION}-{native.SCHEMA}.parquet"
    with tempfile.TemporaryDirectory() as temporary:
        cached = _writable(cache_directory(), Path(temporary)) / name
        reader = _reader_of(cached)
        if reader is None:
            convert(path, cached, strict, progress)
            reader = native.Reader(cached)
        problem = reader.provenance["first_problem"]
        if strict and problem:
            raise _error(path, tuple(problem))
        try:
            with reader:
                yield reader, True
        except TraceError:
            cached.unlink(missing_ok=True)  # damaged: the next run imports the trace anew
            raise


def _writable(directory: Path, otherwise: Path) -> Path:
    """``directory``, made if need be, or ``otherwise`` when nothing can be written there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return otherwise
    return directory if os.access(directory, os.W_OK) else otherwise


def _reader_of(cached: Path) -> native.Reader | None:
    """A reader of a file in the cache; None when it is not there or damaged."""
    try:
        return native.Reader(cached)
    except (TraceError, OSError):
        return None


def load(
    path: Path, strict: bool = True, progress: Progress | None = None
) -> tuple[Events, dict[str, Any]]:
    """Return the events of a trace of any known format, and their provenance.

    When not ``strict``, what cannot have happened is dropped and counted on standard error.
    Raises TraceError.
    """
    with native_file(path, strict, progress) as (reader, checked):
        events = reader.read()
        if not checked:
            for _ in native.verify(path, iter([events])):
                pass
        report_dropped(path, reader.provenance)
        return events, reader.provenance


def report_dropped(path: Path, provenance: dict[str, Any]) -> None:
    """Say on standard error what a lenient import left out."""
    dropped = provenance.get("dropped")
    if not dropped:
        return
    counts = ", ".join(f"{count} × {name.replace('_', ' ')}" for name, count in dropped.items())
    problem = provenance.get("first_problem")
    first = f"; the first: line {problem[0]}: {problem[1]}" if problem else ""
    print(f"{path}: dropped {counts}{first}", file=sys.stderr)
