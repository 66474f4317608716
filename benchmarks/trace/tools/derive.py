"""Shared parts of the commands that derive a trace from others: reading and writing.

FILE ──► row groups, each checked ──► renumbered ──► Writer ──► OUT, complete or not at all
                                                                (its provenance names FILE)
"""

import argparse
import hashlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.events import parquet
from benchmarks.events.events import Events
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats, shipped
from kernel.engine.foreign import quoted


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments for an input trace."""
    parser.add_argument("file", type=trace, metavar="FILE", help="a trace, or shipped:NAME")
    add_lenient(parser)


def add_lenient(parser: argparse.ArgumentParser) -> None:
    """Declare the option --lenient."""
    parser.add_argument(
        "--lenient", action="store_true", help="drop and count impossible or unreadable records"
    )


def trace(text: str) -> Path:
    """Parse a trace argument: a path, or shipped:NAME."""
    if not text.startswith(shipped.PREFIX):
        return Path(text)
    try:
        return shipped.path_of(text.removeprefix(shipped.PREFIX))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Parse a whole number, 0 or more, from the command line."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, not {quoted(text)}")
    return int(text)


@contextmanager
def opened(
    path: Path, lenient: bool, progress: formats.Progress | None = None
) -> Iterator[tuple[parquet.Reader, Iterator[Events]]]:
    """Yield a reader of a trace of any known format, and its row groups, each checked.

    Raises TraceError.
    """
    with formats.parquet_file(path, not lenient, progress) as (reader, checked):
        formats.report_dropped(path, reader.provenance)
        yield reader, reader.groups() if checked else reader.checked()


def with_progress(
    groups: Iterator[Events], total: int, progress: formats.Progress | None, what: str
) -> Iterator[Events]:
    """Yield ``groups``; call ``progress`` with the fraction of ``total`` events done."""
    seen = 0
    for events in groups:
        yield events
        seen += len(events.op)
        if progress:
            progress(min(seen / max(total, 1), 1.0), what)


@contextmanager
def written(
    given: argparse.Namespace, inputs: list[Path], **facts: Any
) -> Iterator[parquet.Writer]:
    """Yield a writer of ``given.output``; its provenance contains the command and ``facts``.

    ``inputs``: files that must not be overwritten.  Raises TraceError if OUT cannot be written.
    """
    out = given.output
    formats.check_output(out, *inputs)
    try:
        with parquet.Writer(out) as writer:
            writer.provenance = {
                "command": shlex.join(["python", "-m", "benchmarks.trace", *given.arguments]),
                "parents": [],
            } | facts
            yield writer
    except OSError as error:
        raise TraceError(f"{out}: {error.strerror or error}") from None


def parent(path: Path, reader: parquet.Reader) -> dict[str, Any]:
    """Return the provenance entry of an input trace: file name, hash and its own provenance."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "provenance": reader.provenance}
