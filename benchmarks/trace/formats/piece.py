"""What a format's reader hands on: pieces of a trace, with their records and what explains them.

A text format leaves the cutting into lines and fields to this module; a format of another kind has
a ``pieces(source)`` of its own that yields the same.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.trace.formats.lines import fields_of, split_lines
from benchmarks.trace.formats.objects import Records
from benchmarks.trace.formats.packing import Source, whole_lines


class Piece(NamedTuple):
    """Some records of a trace.

    ``records``; ``rows``: lines (or messages) that they were read from; ``explain(row)``: what is
    wrong with a row of ``records.bad``; ``spell(row, pointer)``: the object as the trace names it;
    ``late``: the recording began in mid-program.
    """

    records: Records
    rows: int
    explain: Callable[[int], str]
    spell: Callable[[int, int], str]
    late: bool = False


def pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    """Yield the pieces of a trace of any format, and the fraction read.  Raises TraceError."""
    own = getattr(source.format, "pieces", None)
    yield from own(source) if own else _text_pieces(source)


def _text_pieces(source: Source) -> Iterator[tuple[Piece, float]]:
    reader = source.format.Reader()
    settings = getattr(source.format, "SPLIT", {})
    for text, fraction in whole_lines(source):
        lines = split_lines(text, **settings)
        records = reader.read(lines)

        def explain(row: int, text: bytes = text) -> str:
            return reader.explain(fields_of(line_of(text, row)))

        def spell(_row: int, pointer: int) -> str:
            return reader.spell(pointer)

        late = getattr(reader, "late", False)
        yield Piece(records, len(lines.fields), explain, spell, late), fraction


def line_of(text: bytes, row: int) -> bytes:
    """The line number ``row`` of ``text``, from 0."""
    return text.split(b"\n", row + 1)[row]


def spell_address(pointer: int) -> str:
    """A pointer that is an address, as traces write it."""
    return f"{pointer & (1 << 64) - 1:#x}"
