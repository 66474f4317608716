"""Traces of the malloc lab of computer systems courses (.rep).

20000      suggested heap size; not in the header of two lines (xv6 labs)
100        number of ids
200        number of operations
1          weight; not in the header of two lines
a 0 512    allocate: id, bytes
r 0 640    reallocate: id, bytes; an id that is not allocated is allocated
f 0        free: id; -1 is the null pointer

The header must agree with the operations that follow, as the course's driver demands.
Source: CS:APP malloc lab, traces/README and mdriver.c.
"""

import re
from collections import Counter

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.events import ALLOCATOR_OPS, Events, column
from benchmarks.trace.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import REALLOC_FREED, REALLOC_UNKNOWN, Records, count_lost
from benchmarks.trace.formats.printing import put_decimal
from kernel.engine.foreign import quoted
from kernel.engine.jit import build_once, jit

NAME = "malloc-lab"
#: The header and the first operation.
PATTERN = re.compile(rb"\A\s*((\d+\s+){2}){1,2}[arf]\s+-?\d")

#: Operation and number of fields by letter.
OPERATIONS = {"a": (ops.MALLOC, 3), "r": (ops.REALLOC, 3), "f": (ops.FREE, 2)}
_HEADER_LINES = 4
_NULL = word("-1")
#: Upper bound on the length of a line, bytes.
_LONGEST_LINE = 64
_ALLOCATE, _REALLOCATE, _RELEASE = b"arf"
_BLANK, _NEWLINE = b" \n"


class Reader:
    """Reader of one trace, piece by piece."""

    #: A realloc of an id that is not allocated allocates it.
    late = REALLOC_UNKNOWN | REALLOC_FREED

    def __init__(self) -> None:
        self._header: list[int] = []
        self._operations = 0

    def _announced(self) -> tuple[int, int]:
        """Return the numbers of ids and of operations in the header."""
        first = 1 if len(self._header) == _HEADER_LINES else 0
        ids, operations = [*self._header, 0, 0][first : first + 2]
        return ids, operations

    def missing(self) -> tuple[str, int, str] | None:
        """Return how the number of operations differs from the header's, None if it does not."""
        announced = self._announced()[1]
        more = self._operations - announced
        if not more:
            return None
        what = f"the header announces {announced} operations, the file has {self._operations}"
        if more > 0:
            return "operations_that_the_header_does_not_announce", more, what
        return "missing_operations", -more, f"{what}: it is cut off"

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``; an object's pointer is its id + 1."""
        values, kinds, fields = lines
        op = np.full(len(fields), 255, "u1")
        expected = np.zeros(len(fields), "i8")
        for letter, (number, count) in OPERATIONS.items():
            mine = (values[:, 0] == word(letter)) & (kinds[:, 0] == WORD)
            op[mine], expected[mine] = number, count
        bad = fields > 0
        for i in np.flatnonzero(bad)[: _HEADER_LINES - len(self._header)]:
            if self._operations or fields[i] != 1 or kinds[i, 0] != NUMBER or values[i, 0] < 0:
                break
            self._header.append(int(values[i, 0]))
            bad[i] = False
        self._operations += int(np.count_nonzero(bad))
        null = (op == ops.FREE) & (kinds[:, 1] == WORD) & (values[:, 1] == _NULL)
        good = (op != 255) & (fields == expected) & ((kinds[:, 1] == NUMBER) | null)
        good &= null | ((values[:, 1] >= 0) & (values[:, 1] < self._announced()[0]))
        good &= (fields == 2) | ((kinds[:, 2] == NUMBER) & (values[:, 2] >= 0))
        bad &= ~good
        line = np.flatnonzero(good)
        op, pointer = op[line], np.where(null, 0, values[:, 1] + 1)[line]
        nothing = np.zeros(len(line), "i8")
        return Records(
            line=line,
            op=op,
            pointer=pointer,
            old=np.where(op == ops.REALLOC, pointer, 0),
            size=np.where(op == ops.FREE, 0, values[line, 2]),
            align=nothing.astype("u1"),
            thread=nothing,
            time=np.empty(0, "i8"),
            bad=np.flatnonzero(bad),
        )

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        found = f"found {quoted(' '.join(fields))}"
        if fields[0] in OPERATIONS and len(fields) == OPERATIONS[fields[0]][1]:
            return f"expected ids below {self._announced()[0]}, as the header announces, {found}"
        return f"expected 'a ID SIZE', 'r ID SIZE' or 'f ID', {found}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return f"id {pointer - 1}"


@jit
def print_lines(letter, slot, size, text):
    """Write a line for each of n events into ``text``, uint8; return the bytes written."""
    at = 0
    for i in range(letter.shape[0]):
        text[at] = letter[i]
        text[at + 1] = _BLANK
        at = put_decimal(text, at + 2, int(slot[i]))
        if letter[i] != _RELEASE:
            text[at] = _BLANK
            at = put_decimal(text, at + 1, int(size[i]))
        text[at] = _NEWLINE
        at += 1
    return at


class Writer:
    """Writer of one trace, piece by piece, after :meth:`survey` saw all of it; ids are slots."""

    NAME = NAME

    def __init__(self) -> None:
        #: Counts of what the format cannot represent, by description.
        self.lost: Counter = Counter()
        self._ids = self._operations = 0
        self._live = self._peak = 0

    def survey(self, events: Events, before: np.ndarray, after: np.ndarray) -> None:
        """Add n events to the header's totals.

        ``before``, ``after`` (n,): bytes of each event's object before and after it, -1: none.
        """
        kept = self._kept(events)
        self._operations += int(np.count_nonzero(kept))
        if kept.any():
            self._ids = max(self._ids, int(events.slot[kept].max()) + 1)
            live = self._live + np.cumsum(np.maximum(after, 0) - np.maximum(before, 0))
            self._live, self._peak = int(live[-1]), max(self._peak, int(live.max()))

    @staticmethod
    def _kept(events: Events) -> np.ndarray:
        return (events.op < ALLOCATOR_OPS) & (events.slot >= 0)

    def header(self) -> bytes:
        """Return the four header lines; the suggested heap size is the peak of live bytes."""
        return b"%d\n%d\n%d\n1\n" % (self._peak, self._ids, self._operations)

    def lines(self, events: Events, before: np.ndarray) -> bytes:
        """Return the lines of n events; ``before`` (n,): bytes of their objects, -1: none."""
        op, size, kept = events.op, events.size, self._kept(events)
        fresh = (op == ops.REALLOC) & (before < 0)
        lost = {
            "calloc (written as a)": op == ops.CALLOC,
            "aligned allocation (written as a)": op == ops.ALIGNED,
            "realloc of NULL (written as a)": fresh,
            "free of NULL (left out)": (op == ops.FREE) & ~kept,
            "end of a thread (left out)": op == ops.THREAD_END,
            "touch (left out)": (op >= ALLOCATOR_OPS) & (op < ops.THREAD_END),
            "malloc_trim, mallopt or sbrk (left out)": op > ops.THREAD_END,
            "size of a free": (op == ops.FREE) & (size > 0),
            "thread": kept & (column(events, "thread") != 0),
            "time": kept & (column(events, "time") != 0),
            "call site": kept & (column(events, "site") != 0),
        }
        for what, where in lost.items():
            count_lost(self.lost, what, where)
        letter = np.full(len(op), _ALLOCATE, "u1")
        letter[(op == ops.REALLOC) & ~fresh] = _REALLOCATE
        letter[op == ops.FREE] = _RELEASE
        text = np.empty(int(kept.sum()) * _LONGEST_LINE, "u1")
        columns = (letter[kept], events.slot[kept], size[kept])
        return text[: build_once(print_lines)(*columns, text)].tobytes()
