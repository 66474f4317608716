"""The output of a format's reader: pieces of a trace, with functions that explain bad records.

For a text format this module splits the file into lines and fields; any other format provides its
own ``pieces(source)`` that yields the same.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.trace.formats.lines import fields_of, split_lines
from benchmarks.trace.formats.objects import Records, no_records
from benchmarks.trace.formats.packing import Source, whole_lines


class Piece(NamedTuple):
    """Some records of a trace.

    ``rows``: number of lines (or messages) read; ``explain(row)``: the error in a row of
    ``records.bad``; ``format_pointer(row, pointer)``: the trace's name of an object; ``late``: what
    a record may do to an object that is not allocated (benchmarks.trace.formats.objects).
    ``missing``: for the last piece of a file that is cut off, the name under which what is missing
    is counted, its number, and the message.
    """

    records: Records
    rows: int
    explain: Callable[[int], str]
    format_pointer: Callable[[int, int], str]
    late: int = 0
    missing: tuple[str, int, str] | None = None


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a trace of any format, and the fraction read.  Raises TraceError."""
    own = getattr(source.format, "pieces", None)
    yield from own(source) if own else _text_pieces(source)


def _text_pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    reader = source.format.Reader()
    settings = getattr(source.format, "SPLIT", {})
    prepares, ends = hasattr(reader, "prepare"), hasattr(reader, "missing")
    for text, fraction in whole_lines(source):
        text = reader.prepare(text) if prepares else text
        lines = split_lines(text, **settings)
        records = reader.read(lines)

        def explain(row: int, text: bytes = text) -> str:
            return reader.explain(fields_of(line_of(text, row)))

        def format_pointer(_row: int, pointer: int) -> str:
            return reader.format_pointer(pointer)

        late = getattr(reader, "late", 0)
        yield Piece(records, len(lines.fields), explain, format_pointer, late), fraction
    if ends:
        yield end(reader.missing()), 1.0


def end(missing: tuple[str, int, str] | None) -> Piece:
    """Return a piece without records for the end of a file, which tells what is ``missing``."""
    return Piece(no_records(), 0, lambda _: "", lambda _row, p: format_address(p), missing=missing)


def line_of(text: bytes, row: int) -> bytes:
    """Return line ``row``, counted from 0, of ``text``."""
    return text.split(b"\n", row + 1)[row]


def format_address(pointer: int) -> str:
    """Return an address in the notation of traces: hexadecimal after 0x."""
    return f"{pointer & (1 << 64) - 1:#x}"
