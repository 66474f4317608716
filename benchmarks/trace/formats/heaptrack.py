"""heaptrack's raw recordings (``heaptrack --raw``): all numbers hexadecimal, no thread numbers.

    v 10400 3                 version of heaptrack and of the format
    x 9 /bin/prog             program; X arguments, I system, R resident pages, m modules, S # notes
    t 7fb87cd8cb9f 0          a node of the backtrace tree: instruction, parent
    + 1d8 7 557dd5aa61e0      + SIZE BACKTRACE POINTER
    - 557dd5aa61e0            - POINTER
    c 1f                      milliseconds since the start
    A                         attached to a running program: earlier objects are freed too

heaptrack writes a realloc as a free and an allocation, and this module reads it as these two;
realloc(p, 0) is not written at all.  calloc and aligned allocations look like malloc.  Failed
requests, free(NULL), memalign(3), pvalloc(3) and the calls of a forked child are not written.  A
thread may get a block before the realloc that released it is written; lenient reading drops and
counts the records that are inconsistent for this reason.  The number of the backtrace becomes the
call site.
Source: heaptrack, src/track/libheaptrack.cpp and heaptrack_preload.cpp; own recordings.
"""

import re

import numpy as np

from benchmarks.events.events import FREE, MALLOC
from benchmarks.trace.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import LATE, Records
from benchmarks.trace.formats.piece import format_address
from kernel.engine.foreign import quoted

NAME = "heaptrack raw"
#: Raw recordings name the program's file on the second line; interpreted ones do not.
PATTERN = re.compile(rb"\Av [0-9a-f]+ [0-9a-f]+\r?\nx ")
SPLIT = {"base": 16}

#: Types of lines that are not events.
_OTHERS = [word(letter) for letter in ("v", "x", "X", "I", "R", "m", "t", "S", "#")]
#: Line types whose letter is also a hexadecimal digit, so that it is split as a number.
_ATTACHED, CLOCK = 0xA, 0xC
MILLISECOND = 1_000_000
#: Largest number of a call site.
LAST_SITE = (1 << 31) - 1


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        self._now = 0
        #: LATE if heaptrack was attached to a running program.
        self.late = 0

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        values, kinds, fields = lines
        first, words = values[:, 0], kinds[:, 0] == WORD
        allocations = words & (first == word("+"))
        frees = words & (first == word("-"))
        clock = ~words & (first == CLOCK) & (fields == 2) & (kinds[:, 1] == NUMBER)
        attached = ~words & (first == _ATTACHED) & (fields == 1)
        self.late = LATE if attached.any() else self.late
        good = allocations & (fields == 4) & (values[:, 1] >= 0)
        good &= (kinds[:, 2] == NUMBER) & (kinds[:, 3] == NUMBER)
        good &= (values[:, 2] >= 0) & (values[:, 2] <= LAST_SITE)
        good |= frees & (fields == 2)
        good &= kinds[:, 1] == NUMBER
        known = good | clock | attached | (words & np.isin(first, _OTHERS))

        now = np.where(clock, values[:, 1] * MILLISECOND, 0)
        now = np.maximum(np.maximum.accumulate(now), self._now)
        self._now = int(now[-1]) if len(now) else self._now
        line = np.flatnonzero(good)
        allocations = allocations[line]
        size, site, pointer = (values[line, i] for i in (1, 2, 3))
        return Records(
            line=line,
            op=np.where(allocations, MALLOC, FREE).astype("u1"),
            pointer=np.where(allocations, pointer, size),
            old=np.zeros(len(line), "i8"),
            size=np.where(allocations, size, 0),
            align=np.zeros(len(line), "u1"),
            thread=np.empty(0, "i8"),
            time=now[line],
            bad=np.flatnonzero(~known & (fields > 0)),
            site=np.where(allocations, site, 0),
        )

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        forms = {"+": "'+ SIZE BACKTRACE POINTER'", "-": "'- POINTER'", "c": "'c MILLISECONDS'"}
        if fields[0] not in forms:
            return f"unknown line {quoted(' '.join(fields[:4]))}"
        return f"expected {forms[fields[0]]} in hexadecimal, found {quoted(' '.join(fields))}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return format_address(pointer)
