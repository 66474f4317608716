"""wee_alloc traces: one event per line; an object is identified by the number of its Alloc.

    Alloc(552),     the first is number 0
    Free(0),

Source: rustwasm/wee_alloc, test/traces.
"""

import re

import numpy as np

from benchmarks.events.events import FREE, MALLOC
from benchmarks.trace.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import Records
from kernel.engine.foreign import quoted

NAME = "wee_alloc"
#: Matches a line that occurs only in this format.
PATTERN = re.compile(rb"^[ \t]*(Alloc|Free)\(", re.MULTILINE)


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        self._allocated = 0

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``; an object's pointer is its number + 1."""
        values, kinds, fields = lines
        allocs, frees = ((values[:, 0] == word(name)) for name in ("Alloc", "Free"))
        good = (kinds[:, 0] == WORD) & (kinds[:, 1] == NUMBER) & (fields == 2) & (allocs | frees)
        good &= values[:, 1] >= 0
        line = np.flatnonzero(good)
        allocs, argument = allocs[line], values[line, 1]
        number = self._allocated + np.cumsum(allocs)
        self._allocated += int(np.count_nonzero(allocs))
        nothing = np.zeros(len(line), "i8")
        return Records(
            line=line,
            op=np.where(allocs, MALLOC, FREE).astype("u1"),
            pointer=np.where(allocs, number, argument + 1),
            old=nothing,
            size=np.where(allocs, argument, 0),
            align=nothing.astype("u1"),
            thread=nothing,
            time=np.empty(0, "i8"),
            bad=np.flatnonzero(~good & (fields > 0)),
        )

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        return f"expected 'Alloc(SIZE),' or 'Free(NUMBER),', found {quoted(' '.join(fields))}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return f"number {pointer - 1}"
