"""cat: print events as text, one per line.

    NUMBER THREAD: OPERATION OBJECT BYTES …

         0 0: malloc #0 100                   object 0 has 100 bytes
         1 0: aligned #1 64 align 4096
         2 1: realloc #0 300 @1500            at 1500 ns, if the trace has times
         3 0: touch_write #1 8 at 16 site 7   bytes 16 to 24 of object 1, from call site 7
         4 1: free #0
         5 0: free NULL
         6 1: thread_end
         7 0: malloc_trim 0
         8 0: mallopt -3 1048576              parameter and value, as mallopt(3) takes them
         9 0: sbrk -4096                      the program itself moves the break

pyarrow composes the lines column by column: some millions per second.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np

from allocators.base import operation as ops
from benchmarks.events.events import Events, mallopt_arguments, rows
from benchmarks.trace import formats
from benchmarks.trace.tools import derive

HELP = "print the events as text: number, thread, operation, object, bytes"

#: Events formatted at a time.
_BLOCK = 1 << 15
#: Width to which event numbers are padded with blanks, digits.
_WIDTH = 9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    derive.add_input(parser)


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Open the trace; return a function that prints it."""
    return printing(given, None, progress)


def printing(
    given: argparse.Namespace, most: int | None, progress: formats.Progress | None
) -> Callable[[], None]:
    """Open the trace; return a function that prints its first ``most`` events, all if None.

    Raises TraceError.
    """
    with ExitStack() as stack:
        _, groups = stack.enter_context(derive.opened(given.file, given.lenient, progress))
        held = stack.pop_all()

    def print_events() -> None:
        with held:
            left, first = most, 0
            for events in groups:
                write(events, first, sys.stdout.buffer, left)
                first += len(events.op)
                if left is not None:
                    left -= len(events.op)
                    if left <= 0:
                        return

    return print_events


def write(events: Events, first: int, out: BinaryIO, most: int | None = None) -> None:
    """Write a line for each of (n,) ``events``, at most ``most``, numbered from ``first``."""
    n = len(events.op) if most is None else min(most, len(events.op))
    for begin in range(0, n, _BLOCK):
        end = min(begin + _BLOCK, n)
        out.write(_lines(rows(events, begin, end), first + begin))


def _lines(events: Events, first: int) -> memoryview:
    """Return the text of some events, UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def text(numbers: np.ndarray) -> Any:
        return pc.cast(pa.array(numbers), pa.string())

    def where(condition: np.ndarray, *parts: Any) -> Any:
        """Return the concatenated parts in rows where the condition holds, elsewhere ""."""
        return pc.if_else(pa.array(condition), pc.binary_join_element_wise(*parts, ""), "")

    n, op, slot = len(events.op), events.op, events.slot
    thread = events.thread if len(events.thread) else np.zeros(n, "i4")
    touches = (op == ops.TOUCH_READ) | (op == ops.TOUCH_WRITE)
    names = pa.array([f": {name}" for name in ops.OP_NAMES]).take(pa.array(op))
    parts = [
        pc.utf8_lpad(text(first + np.arange(n)), _WIDTH),
        " ",
        text(thread),
        names,
        where(slot >= 0, " #", text(slot)),
        where((slot < 0) & (op == ops.FREE), " NULL"),
        where(
            (op < ops.THREAD_END) & ((op != ops.FREE) | (events.size != 0)) | (op == ops.TRIM),
            " ",
            text(events.size),
        ),
    ]
    if len(events.align):
        parts.append(where(op == ops.ALIGNED, " align ", text(1 << events.align.astype("i8"))))
    if len(events.offset):
        parameter, value = mallopt_arguments(events.offset)
        parts += [
            where(touches, " at ", text(events.offset)),
            where(op == ops.MALLOPT, " ", text(parameter), " ", text(value)),
            where(op == ops.SBRK, " ", text(events.offset)),
        ]
    if len(events.time):
        parts += [" @", text(events.time)]
    if len(events.site):
        parts.append(where(events.site != 0, " site ", text(events.site)))
    lines = pc.binary_join_element_wise(*parts, "\n", "")
    # A string array stores its strings contiguously in its last buffer.
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, "i4")
    return memoryview(data)[int(ends[lines.offset]) : int(ends[lines.offset + n])]
