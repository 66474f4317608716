"""Android memory_replay traces: one event per line, after the thread's number.

    186: malloc 0xb6027400 1024            malloc PTR SIZE
    186: calloc 0xb6037058 4 20            calloc PTR N SIZE
    186: memalign 0xb6003000 4096 64       memalign PTR ALIGN SIZE
    186: realloc 0xb60370a0 0xb6037058 17  realloc NEW OLD SIZE
    186: free 0xb6027400                   free PTR, 0x0 allowed
    376: thread_done 0x0

Newer recordings end each line with two times in nanoseconds, begin and end; the begin is used.
They end a thread_done with one time.
Source: AOSP, system/extras/memory_replay.
"""

import re
from collections import Counter

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.events import ALLOCATOR_OPS, Events, column
from benchmarks.trace.formats.lines import NUMBER, WORD, Lines, word
from benchmarks.trace.formats.objects import Records, address_of, count_lost
from benchmarks.trace.formats.printing import name_table, put_address, put_decimal, put_name
from kernel.engine.foreign import quoted
from kernel.engine.jit import build_once, jit

NAME = "Android memory_replay"
#: Matches a line that occurs only in this format.
PATTERN = re.compile(rb"^[ \t]*\d+:[ \t]*\w+[ \t]+0x[0-9a-fA-F]", re.MULTILINE)

#: By name: the operation, and the fields after thread and name.
OPERATIONS = {
    "malloc": (ops.MALLOC, ("PTR", "SIZE")),
    "free": (ops.FREE, ("PTR",)),
    "realloc": (ops.REALLOC, ("NEW", "OLD", "SIZE")),
    "calloc": (ops.CALLOC, ("PTR", "N", "SIZE")),
    "memalign": (ops.ALIGNED, ("PTR", "ALIGN", "SIZE")),
    "thread_done": (ops.THREAD_END, ("PTR",)),
}
_POWERS = 1 << np.arange(62)
#: Name of each operation, for writing.
_NAME_OF = {number: name for name, (number, _) in OPERATIONS.items()}
_NAMES = name_table([_NAME_OF.get(op, "") for op in range(len(ops.OP_NAMES))])
#: Upper bound on the length of a line, bytes.
_LONGEST_LINE = 160
_BLANK, _COLON, _NEWLINE = b" :\n"


class Reader:
    """Reader of one trace, piece by piece."""

    def __init__(self) -> None:
        self._start: int | None = None

    def read(self, lines: Lines) -> Records:
        """Return the records of ``lines``."""
        values, kinds, fields = lines
        op = np.full(len(fields), 255, "u1")
        operands = np.zeros(len(fields), "i8")
        for name, (number, names) in OPERATIONS.items():
            mine = (values[:, 1] == word(name)) & (kinds[:, 1] == WORD)
            op[mine] = number
            operands[mine] = len(names)
        timed = (fields == 2 + operands + 2) | ((op == ops.THREAD_END) & (fields == 4))
        good = (op != 255) & (timed | (fields == 2 + operands)) & (kinds[:, 0] == NUMBER)
        for i in range(2, kinds.shape[1]):
            good &= (kinds[:, i] == NUMBER) | (fields <= i)
        a, b = values[:, 3], values[:, 4]
        size = np.where(operands == 2, a, np.where(operands == 3, b, 0))
        callocs = op == ops.CALLOC
        size[callocs] = a[callocs] * b[callocs]
        good &= ~callocs | (a == 0) | ((size // np.maximum(a, 1) == b) & (a > 0))
        good &= (
            (size >= 0)
            & (values[:, 0] >= 0)
            & ((op != ops.ALIGNED) | ((a > 0) & (a & (a - 1) == 0)))
        )

        line = np.flatnonzero(good)
        op, a = op[line], a[line]
        return Records(
            line=line,
            op=op,
            pointer=values[line, 2],
            old=np.where(op == ops.REALLOC, a, 0),
            size=size[line],
            align=np.where(op == ops.ALIGNED, np.searchsorted(_POWERS, a), 0).astype("u1"),
            thread=values[line, 0],
            time=self._times(values[line], 2 + operands[line], timed[line]),
            bad=np.flatnonzero(~good & (fields > 0)),
        )

    def _times(self, values: np.ndarray, column: np.ndarray, timed: np.ndarray) -> np.ndarray:
        """Return nanoseconds since the first event; (0,) if that event has no time."""
        if self._start is None and len(values):
            self._start = int(values[0, column[0]]) if timed[0] else -1
        if self._start is None or self._start < 0:
            return np.empty(0, "i8")
        time = values[np.arange(len(values)), np.where(timed, column, 0)] - self._start
        return np.maximum.accumulate(np.where(timed, time, 0))

    def explain(self, fields: list[str]) -> str:
        """Return the reason why a line with these fields is malformed."""
        if len(fields) < 2 or not fields[0].isdecimal():
            return "expected '<thread>: <operation> <pointer> …'"
        name = fields[1]
        if name not in OPERATIONS:
            return f"unknown operation {quoted(name)} (known: {', '.join(OPERATIONS)})"
        form = " ".join(OPERATIONS[name][1])
        return f"expected '{name} {form}', found {quoted(' '.join(fields[1:]))}"

    def format_pointer(self, pointer: int) -> str:
        """Return the name that the trace has for an object."""
        return f"{pointer & (1 << 64) - 1:#x}"


@jit
def print_lines(op, pointer, old, size, align, thread, time, names, ends, text):
    """Write a line for each of n events into ``text``, uint8; return the bytes written.

    ``pointer``, ``old`` (n,): NEW and OLD of a realloc; other operations use only ``pointer``.
    ``time``: (0,) to write lines without times.
    """
    at = 0
    for i in range(op.shape[0]):
        kind = int(op[i])
        at = put_decimal(text, at, int(thread[i]) + 1)
        text[at] = _COLON
        text[at + 1] = _BLANK
        at = put_name(text, at + 2, names, ends, kind)
        text[at] = _BLANK
        at = put_address(text, at + 1, int(pointer[i]))
        if kind == ops.REALLOC:
            text[at] = _BLANK
            at = put_address(text, at + 1, int(old[i]))
        elif kind in (ops.CALLOC, ops.ALIGNED):
            text[at] = _BLANK
            at = put_decimal(text, at + 1, 1 << int(align[i]) if kind == ops.ALIGNED else 1)
        if kind not in (ops.FREE, ops.THREAD_END):
            text[at] = _BLANK
            at = put_decimal(text, at + 1, int(size[i]))
        if time.shape[0] > 0:
            for _ in range(1 if kind == ops.THREAD_END else 2):
                text[at] = _BLANK
                at = put_decimal(text, at + 1, int(time[i]))
        text[at] = _NEWLINE
        at += 1
    return at


class Writer:
    """Writer of one trace, piece by piece: calloc as N = 1, threads numbered from 1."""

    NAME = NAME

    def __init__(self) -> None:
        #: Counts of what the format cannot represent, by description.
        self.lost: Counter = Counter()

    def header(self) -> bytes:
        """Return the header, which is empty."""
        return b""

    def lines(self, events: Events, before: np.ndarray) -> bytes:
        """Return the lines of n events; ``before`` (n,): bytes of their objects, -1: none."""
        op, slot, size = events.op, events.slot, events.size
        touches = (op >= ALLOCATOR_OPS) & (op < ops.THREAD_END)
        count_lost(self.lost, "touch (left out)", touches)
        count_lost(self.lost, "malloc_trim, mallopt or sbrk (left out)", op > ops.THREAD_END)
        touches |= op > ops.THREAD_END
        count_lost(self.lost, "size of a free", (op == ops.FREE) & (size > 0))
        count_lost(self.lost, "call site", ~touches & (column(events, "site") != 0))
        address = address_of(slot)
        held = before >= 0
        gone = (op == ops.REALLOC) & held & (size == 0)
        columns = [
            op,
            np.where(gone, 0, address),
            np.where(held, address, 0),
            size,
            column(events, "align"),
            column(events, "thread"),
            events.time,
        ]
        kept = ~touches
        columns = [c[kept] if len(c) else c for c in columns]
        text = np.empty(int(kept.sum()) * _LONGEST_LINE, "u1")
        return text[: build_once(print_lines)(*columns, *_NAMES, text)].tobytes()
