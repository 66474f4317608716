"""Logs of glibc's mtrace(3), or of libc_malloc_debug.so with MALLOC_TRACE.

    = Start
    @ ./prog:[0x11e0] + 0x5595a36b02a0 0xa      + POINTER SIZE: malloc, calloc, aligned allocation
    @ ./prog:[0x125a] < 0x5595a36b02a0          realloc: the old block
    @ ./prog:[0x125a] > 0x5595a36b0610 0x3e8    and the new one, on the next line
    @ ./prog:[0x12d3] ! 0x5595a36b0610 0x40000  a realloc that failed
    @ ./prog:[0x1358] - 0x5595a36b0610          free
    = End

The log may begin in the middle of a program's life, which frees and reallocates blocks of before: a
realloc of such a block is read as an allocation, a free of one is counted and left out.

The log does not distinguish calloc and aligned allocations from malloc, nor threads.  It does not
contain free(NULL).  The caller's path may contain blanks, so fields are counted from the end of the
line.
Source: mtrace(3), and own recordings.
"""

import re

import numpy as np

from benchmarks.events.events import FREE, MALLOC, REALLOC
from benchmarks.trace.formats.lines import NUMBER, WIDTH, WORD, Lines, word
from benchmarks.trace.formats.objects import FREE_UNKNOWN, REALLOC_UNKNOWN, Records
from benchmarks.trace.formats.piece import format_address
from kernel.engine.foreign import quoted

NAME = "glibc mtrace"
PATTERN = re.compile(rb"\A\s*= Start\s*$|^@ .*[-+<>!] (0x[0-9a-f]+|\(nil\))", re.MULTILINE)
SPLIT = {"tail": True}

_START, _OLD, _NEW, _NULL = word("="), word("<"), word(">"), word("nil")


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        #: Old block of a realloc whose second line is in the next piece.
        self._old: int | None = None
        self._begun = False
        self.late = FREE_UNKNOWN | REALLOC_UNKNOWN

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        values, kinds, fields = lines
        rows, end = np.arange(len(fields)), np.minimum(fields, WIDTH)
        sign, last = end - 2, end - 1
        sized = self._sign(lines, end - 3, ("+", ">", "!"))
        sign = np.where(sized, end - 3, sign)
        good = sized | self._sign(lines, sign, ("-", "<"))
        sign = np.where(good, sign, 0)
        what = np.where(good, values[rows, sign], 0)
        place = np.where(good, sign + 1, 0)
        null = (kinds[rows, place] == WORD) & (values[rows, place] == _NULL)
        pointer = np.where(null, 0, values[rows, place])
        good &= null | (kinds[rows, place] == NUMBER)
        size = np.where(sized, values[rows, last], 0)
        good &= ~sized | ((kinds[rows, last] == NUMBER) & (size >= 0))
        notes = (fields > 0) & (values[:, 0] == _START) & (kinds[:, 0] == WORD) & ~good

        # Join the two lines of a realloc; the first may be the last line of the previous piece.
        events = np.flatnonzero(good)
        olds, news = what[events] == _OLD, what[events] == _NEW
        carried = self._old is not None
        opened = np.concatenate([[carried], olds[:-1]]) if len(events) else olds
        if len(events) and not self._begun:
            # The first line of a log that is cut may be the second one of a realloc.
            opened[0], self._begun = news[0], True
        old = np.concatenate([[self._old or 0], pointer[events][:-1]]) if len(events) else events
        if len(events):
            self._old = int(pointer[events[-1]]) if olds[-1] else None
        bad = ~good & ~notes & (fields > 0)
        bad[events[opened != news]] = True

        kept = ~olds & (opened | ~news)
        line, old = events[kept], old[kept]
        what, pointer = what[line], pointer[line]
        failed = what == word("!")
        realloc = failed | (what == _NEW)
        return Records(
            line=line,
            op=np.where(realloc, REALLOC, np.where(what == word("-"), FREE, MALLOC)).astype("u1"),
            pointer=np.where(failed, 0, pointer),
            old=np.where(failed, pointer, np.where(realloc, old, 0)),
            size=size[line],
            align=np.zeros(len(line), "u1"),
            thread=np.empty(0, "i8"),
            time=np.empty(0, "i8"),
            bad=np.flatnonzero(bad),
        )

    @staticmethod
    def _sign(lines: Lines, column: np.ndarray, signs: tuple[str, ...]) -> np.ndarray:
        """Return a mask (n,) of the lines whose field in ``column`` (n,) is one of ``signs``."""
        rows, there = np.arange(len(column)), np.maximum(column, 0)
        found = np.isin(lines.values[rows, there], [word(sign) for sign in signs])
        return found & (lines.kinds[rows, there] == WORD) & (column >= 0)

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        shown = quoted(" ".join(fields[-8:]))
        if ">" in fields[-3:-2]:
            return f"'> POINTER SIZE' without '< OLD' on the line before, found {shown}"
        if any(sign in fields[-3:] for sign in "+-<!"):
            return f"expected '+ POINTER SIZE', '- POINTER' or '>' after '<', found {shown}"
        return f"expected '@ WHERE' and '+ POINTER SIZE', '- POINTER', '<' or '>', found {shown}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return format_address(pointer)
