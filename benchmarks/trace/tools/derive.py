"""What the commands share that make a trace from other traces: reading, renumbering, writing.

FILE ──► row groups, each checked ──► renumbered ──► Writer ──► OUT, whole or not at all
                                                                (its provenance names FILE)
"""

import argparse
import hashlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.events import parquet
from benchmarks.events.events import Events
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats, shipped


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare a trace that is read, and how."""
    parser.add_argument("file", type=trace, metavar="FILE", help="a trace, or shipped:NAME")
    add_lenient(parser)


def add_lenient(parser: argparse.ArgumentParser) -> None:
    """Declare the option of lenient reading."""
    parser.add_argument(
        "--lenient", action="store_true", help="drop and count what cannot have happened"
    )


def trace(text: str) -> Path:
    """Where a trace of the command line is: a path, or shipped:NAME."""
    if not text.startswith(shipped.PREFIX):
        return Path(text)
    try:
        return shipped.path_of(text.removeprefix(shipped.PREFIX))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A whole number from 0, of the command line."""
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, not {text!r}")
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
        groups = reader.groups()
        yield reader, groups if checked else parquet.verify(path, groups)


def told(
    groups: Iterator[Events], total: int, progress: formats.Progress | None, what: str
) -> Iterator[Events]:
    """Pass ``groups`` on and tell ``progress`` how many of ``total`` events are behind them."""
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
    """Yield a writer of ``given.output``; its provenance has the command and ``facts``.

    ``inputs``: what must not be overwritten.  Raises TraceError where nothing can be written.
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
    """What the provenance says of a trace that others are made from."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "provenance": reader.provenance}


class Numbering:
    """Gives dense numbers, from ``first`` on, to the numbers it meets, in order of appearance.

    Numbers below ``first`` mean nothing in particular and stay.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._given = np.empty(0, "i4")
        self._next = [first]  # shared by those beside it

    @classmethod
    def beside(cls, n: int, first: int) -> "list[Numbering]":
        """``n`` numberings that never give the same number."""
        made = [cls(first) for _ in range(n)]
        for numbering in made:
            numbering._next = made[0]._next
        return made

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The new numbers, (n,) int32, of ``numbers``."""
        more = int(numbers.max(initial=-1)) + 1 - len(self._given)
        if more > 0:
            self._given = np.concatenate([self._given, np.full(more, -1, "i4")])
        counts = numbers >= self._first
        named = numbers[counts]
        unknown = named[self._given[named] < 0]
        if len(unknown):
            values, place = np.unique(unknown, return_index=True)
            values = values[np.argsort(place)]
            self._given[values] = self._next[0] + np.arange(len(values))
            self._next[0] += len(values)
        result = numbers.astype("i4")
        result[counts] = self._given[named]
        return result
