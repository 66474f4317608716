"""Export of traces to other tools, as malloc-lab .rep or as Android memory_replay text.

    trace ──► Parquet, by row group ──► a format's Writer ──► OUT (plain, .gz or .zip)

A format that can be written has a Writer: ``header()``, ``lines(events, before)``, ``lost``
(counts of what it cannot represent), and ``survey(events, before, after)`` if the header needs a
first pass over the events.
"""

import gzip
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from benchmarks.events import parquet
from benchmarks.events.events import Events, rows
from benchmarks.events.ledger import Ledger
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.formats import android, malloc_lab
from kernel.engine.output import replacing

#: Formats that can be written in addition to Parquet, by their value of --to.
WRITERS: dict[str, ModuleType] = {"android": android, "rep": malloc_lab}
#: Value of --to for a Parquet trace.
PARQUET = "parquet"

#: Events per write.
_ROWS = 1 << 16


def form_of(out: Path) -> str:
    """Return the format that the suffixes of ``out`` select."""
    endings = out.suffixes[-2:]
    if ".rep" in endings:
        return "rep"
    return "android" if endings[-1:] and endings[-1] in (".txt", ".gz", ".zip") else PARQUET


def export(
    path: Path, out: Path, form: str, strict: bool, progress: formats.Progress | None = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the trace ``path`` to ``out`` in a format of WRITERS.

    Returns the provenance of the trace, and counts of what the format cannot represent.  ``out``
    appears complete or not at all.  Raises TraceError.
    """
    formats.recognise(path)
    formats.check_output(out, path)
    writer = WRITERS[form].Writer()
    with formats.parquet_file(path, strict, progress) as (reader, checked):
        survey = getattr(writer, "survey", None)
        if survey:
            for events, before, after in _with_sizes(path, reader, checked, None):
                survey(events, before, after)
        checked = checked or survey is not None
        try:
            with _replacing(out) as file:
                file.write(writer.header())
                for events, before, _ in _with_sizes(path, reader, checked, progress):
                    file.write(writer.lines(events, before))
        except OSError as error:
            raise TraceError(f"{out}: {error.strerror or error}") from None
        return reader.provenance, dict(writer.lost)


def _with_sizes(
    path: Path, reader: parquet.Reader, checked: bool, progress: formats.Progress | None
) -> Iterator[tuple[Events, np.ndarray, np.ndarray]]:
    """Yield pieces of ``reader``'s events, with the bytes of each event's object before and after.

    Calls ``progress``, if any, after each piece.
    """
    ledger, seen = Ledger(), 0
    for group in reader.groups() if checked else reader.checked():
        for begin in range(0, len(group.op), _ROWS):
            events = rows(group, begin, begin + _ROWS)
            followed = ledger.follow(events)
            yield events, followed.before, followed.after
            seen += len(events.op)
            if progress:
                progress(seen / max(reader.events, 1), f"writing {path.name}")


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``out``, packed according to its suffix, if no error occurs."""
    with replacing(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream:
                yield stream
        elif out.suffix == ".zip":
            member = zipfile.ZipInfo(out.stem if Path(out.stem).suffix else f"{out.stem}.txt")
            member.compress_type = zipfile.ZIP_DEFLATED
            with (
                zipfile.ZipFile(file, "w") as archive,
                archive.open(member, "w", force_zip64=True) as stream,
            ):
                yield stream
        else:
            yield file
