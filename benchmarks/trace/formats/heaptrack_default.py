"""heaptrack's default recordings, interpreted while they are written: sizes, sites and order.

    v 10400 3                 version of heaptrack and of the format; all numbers hexadecimal
    s 4 main                  a string; i an instruction, t a node of the backtrace tree
    a 1d8 7                   allocation number 0 (1, 2, …): SIZE BACKTRACE
    + 0                       a block of allocation 0 is allocated
    - 0                       a block of allocation 0 is freed
    c 1f                      milliseconds since the start

The file has no addresses: among several live blocks of one size and backtrace, it does not say
which one is freed.  The newest is taken.  So sizes, sites, live bytes and their order are the
program's; a lifetime may be that of another block of the same allocation.  ``heaptrack --raw``
records addresses (benchmarks.trace.formats.heaptrack, also for what else heaptrack leaves out).
Source: heaptrack, src/interpret/heaptrack_interpret.cpp; own recordings.
"""

import re

import numpy as np

from benchmarks.events.events import FREE, MALLOC
from benchmarks.trace.formats.heaptrack import CLOCK, LAST_SITE, MILLISECOND
from benchmarks.trace.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import Records
from kernel.engine.foreign import quoted
from kernel.engine.jit import build_once, jit

NAME = "heaptrack"
NOTE = (
    "the file has no addresses: which of several blocks of one size and call site is freed is "
    "not known, and the newest is taken"
)
#: Raw recordings name the program's file on the second line (x); interpreted ones do not.
PATTERN = re.compile(rb"\Av [0-9a-f]+ [0-9a-f]+\r?\n[^x]")
SPLIT = {"base": 16}

#: Types of lines that are not events.
_OTHERS = [word(letter) for letter in ("v", "X", "I", "R", "m", "s", "i", "t", "S", "#")]
#: "a" and "A", which are also hexadecimal digits.
_ALLOCATION = 0xA
#: Bits of the number of live blocks of one allocation in a block's pointer.
_DEPTH_BITS = 31


@jit
def number_blocks(births, allocation, live, pointer):
    """Fill in the ``pointer`` of (n,) births and deaths of blocks of an ``allocation``.

    ``live``: number of live blocks by allocation, updated; the newest one dies.
    """
    for i in range(births.shape[0]):
        a = int(allocation[i])
        if births[i]:
            live[a] += 1
        pointer[i] = ((a + 1) << _DEPTH_BITS) + live[a]
        if not births[i] and live[a] > 0:
            live[a] -= 1


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        self._now = 0
        self._sizes, self._sites = np.empty(0, "i8"), np.empty(0, "i8")
        self._live = np.empty(0, "i8")

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``; a block's pointer has its allocation and its depth."""
        values, kinds, fields = lines
        first, words = values[:, 0], kinds[:, 0] == WORD
        numbers = (kinds[:, 1] == NUMBER) & (values[:, 1] >= 0)
        clock = ~words & (first == CLOCK) & (fields == 2) & numbers
        attached = ~words & (first == _ALLOCATION) & (fields == 1)
        new = ~words & (first == _ALLOCATION) & (fields == 3) & numbers & (kinds[:, 2] == NUMBER)
        new &= (values[:, 2] >= 0) & (values[:, 2] <= LAST_SITE)
        known = len(self._sizes) + np.cumsum(new)
        births = words & (first == word("+"))
        good = (births | (words & (first == word("-")))) & (fields == 2) & numbers
        good &= values[:, 1] < known
        self._sizes = np.concatenate([self._sizes, values[new, 1]])
        self._sites = np.concatenate([self._sites, values[new, 2]])
        self._live = np.concatenate([self._live, np.zeros(np.count_nonzero(new), "i8")])

        now = np.where(clock, values[:, 1] * MILLISECOND, 0)
        now = np.maximum(np.maximum.accumulate(now), self._now)
        self._now = int(now[-1]) if len(now) else self._now
        line = np.flatnonzero(good)
        births, allocation = births[line], values[line, 1]
        pointer = np.zeros(len(line), "i8")
        build_once(number_blocks)(births, allocation, self._live, pointer)
        others = clock | attached | new | (words & np.isin(first, _OTHERS))
        return Records(
            line=line,
            op=np.where(births, MALLOC, FREE).astype("u1"),
            pointer=pointer,
            old=np.zeros(len(line), "i8"),
            size=np.where(births, self._sizes[allocation], 0),
            align=np.zeros(len(line), "u1"),
            thread=np.empty(0, "i8"),
            time=now[line],
            bad=np.flatnonzero(~good & ~others & (fields > 0)),
            site=np.where(births, self._sites[allocation], 0),
        )

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        shown = quoted(" ".join(fields))
        if fields[0] in ("+", "-"):
            return f"expected '{fields[0]} ALLOCATION', of an earlier 'a' line, found {shown}"
        forms = {"a": "'a SIZE BACKTRACE'", "c": "'c MILLISECONDS'"}
        if fields[0] in forms:
            return f"expected {forms[fields[0]]} in hexadecimal, found {shown}"
        return f"unknown line {shown}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return f"a block of allocation {(pointer >> _DEPTH_BITS) - 1:x}"
