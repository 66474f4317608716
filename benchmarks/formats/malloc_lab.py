"""Traces of the malloc lab of computer-systems courses (.rep).

20000      weight, or a suggested heap size
100        number of ids
200        number of operations
1          weight
a 0 512    allocate: id, bytes
r 0 640    reallocate: id, bytes
f 0        free: id
"""

import re

import numpy as np

from benchmarks.events import FREE, MALLOC, REALLOC
from benchmarks.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.formats.objects import Records

NAME = "malloc-lab"
#: The header and the first operation.
PATTERN = re.compile(rb"\A\s*(\d+\s+){4}[arf]\s+\d")

#: Letters: operation and number of fields.
OPERATIONS = {"a": (MALLOC, 3), "r": (REALLOC, 3), "f": (FREE, 2)}
_HEADER_LINES = 4


class Reader:
    """Reads one trace, piece by piece."""

    def __init__(self) -> None:
        self._header = _HEADER_LINES

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``; an object's pointer is its id + 1."""
        values, kinds, fields = lines
        op = np.full(len(fields), 255, "u1")
        expected = np.zeros(len(fields), "i8")
        for letter, (number, count) in OPERATIONS.items():
            mine = (values[:, 0] == word(letter)) & (kinds[:, 0] == WORD)
            op[mine], expected[mine] = number, count
        good = (op != 255) & (fields == expected) & (kinds[:, 1] == NUMBER) & (values[:, 1] >= 0)
        good &= (fields == 2) | ((kinds[:, 2] == NUMBER) & (values[:, 2] >= 0))
        header = np.flatnonzero(fields > 0)[: self._header]
        header = header[(fields[header] == 1) & (kinds[header, 0] == NUMBER)]
        self._header -= len(header)
        bad = ~good & (fields > 0)
        bad[header] = False
        line = np.flatnonzero(good)
        op, pointer = op[line], values[line, 1] + 1
        nothing = np.zeros(len(line), "i8")
        return Records(
            line=line,
            op=op,
            pointer=pointer,
            old=np.where(op == REALLOC, pointer, 0),
            size=np.where(op == FREE, 0, values[line, 2]),
            align=nothing.astype("u1"),
            thread=nothing,
            time=np.empty(0, "i8"),
            bad=np.flatnonzero(bad),
        )

    def explain(self, fields: list[str]) -> str:
        """What is wrong with a line of these fields."""
        return f"expected 'a ID SIZE', 'r ID SIZE' or 'f ID', found {' '.join(fields)!r}"

    def spell(self, pointer: int) -> str:
        """The object as the trace names it."""
        return f"id {pointer - 1}"
