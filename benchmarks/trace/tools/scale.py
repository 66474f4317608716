"""scale: the same program with more objects, or with larger ones.

    --copies N   every event N times, each for objects and threads of its own: N programs side by
                 side in one heap, in step.  Live bytes and objects are N times the original's at
                 every moment; every size stays as common as it was.
    --sizes F    every size times F, rounded, 1 at least where it was: live bytes are F times the
                 original's, the order and the number of events stay.  Touched bytes keep their
                 place in their object; alignments stay, for they are the program's, not the data's.

A larger input makes most programs allocate more objects of the same kinds (copies); a larger
record, buffer or string makes the objects larger (sizes).  Both may be given.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.events.events import TOUCH_READ, TOUCH_WRITE, Events
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.tools import derive

HELP = "write a trace with more objects (--copies), or with larger ones (--sizes)"

#: Most copies, and largest object, bytes.
_MOST = 10_000
_LARGEST = 1 << 46


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    derive.add_input(parser)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument(
        "--copies",
        type=derive.count,
        default=1,
        metavar="N",
        help="every event N times, for objects and threads of its own: N programs in step",
    )
    parser.add_argument(
        "--sizes", type=_factor, default=1.0, metavar="F", help="every size times F, rounded"
    )


def _factor(text: str) -> float:
    """A positive number, of the command line."""
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return factor


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Scale; returns what prints where it went."""
    if given.copies == given.sizes == 1:
        raise TraceError("scale takes --copies N, --sizes F, or both")
    if not 1 <= given.copies <= _MOST:
        raise TraceError(f"--copies {given.copies}: must be 1 to {_MOST}")
    with (
        derive.opened(given.file, given.lenient, progress) as (reader, groups),
        derive.written(given, [given.file]) as writer,
    ):
        first = 0
        for events in derive.told(groups, reader.events, progress, "scaling"):
            if given.sizes != 1:
                events = _enlarged(events, given.sizes, f"{given.file}: event", first)
            first += len(events.op)
            writer.add(copied(events, given.copies))
        writer.provenance["parents"] = [derive.parent(given.file, reader)]
    return lambda: print(given.output)


def copied(events: Events, copies: int) -> Events:
    """Each of (n,) ``events`` ``copies`` times, one after the other: (n · copies,) events."""
    if copies == 1:
        return events
    if int(events.slot.max(initial=0)) >= (1 << 31) // copies - 1:
        raise TraceError(f"--copies {copies}: more than 2**31 objects")
    copy = np.tile(np.arange(copies, dtype="i4"), len(events.op))
    columns = {name: np.repeat(c, copies) for name, c in events._asdict().items()}
    thread = columns["thread"] if len(events.thread) else np.zeros(len(copy), "i4")
    columns["thread"] = thread * copies + copy
    slot = columns["slot"]
    columns["slot"] = np.where(slot >= 0, slot * copies + copy, slot)
    return Events(**columns)


def _enlarged(events: Events, factor: float, place: str, first: int) -> Events:
    """``events`` with all sizes times ``factor``; ``place`` and ``first`` are for complaints."""
    touches = (events.op == TOUCH_READ) | (events.op == TOUCH_WRITE)
    too_large = ~touches & (events.size * factor > _LARGEST)
    if too_large.any():
        i = int(np.argmax(too_large))
        raise TraceError(
            f"{place} {first + i}: {events.size[i]} bytes times {factor:g} is too much"
        )
    if not len(events.offset):
        return events._replace(size=_times(events.size, factor))
    # Both ends of what is touched move as the end of an object does, so they stay within it.
    begin = np.where(touches, _times(events.offset, factor), events.offset)
    end = _times(events.offset + events.size, factor)
    size = np.where(touches, end - begin, _times(events.size, factor))
    return events._replace(size=size, offset=begin)


def _times(bytes_: np.ndarray, factor: float) -> np.ndarray:
    """``bytes_`` times ``factor``, rounded; never 0 where it was not.  Rises with ``bytes_``."""
    return np.where(bytes_ > 0, np.maximum(np.rint(bytes_ * factor), 1), 0).astype("i8")
