"""scale: write the same program with more objects, or with larger ones.

    --copies N   every event N times, each for separate objects and threads: N copies of the program
                 run in lockstep in one heap.  Live bytes and objects are always N times the
                 original's; the distribution of sizes does not change.
    --sizes F    every size times F, rounded; a size above 0 becomes 1 or more.  Live bytes are F
                 times the original's; order and number of events do not change.  Touched ranges
                 scale with their object.  Alignments stay, since the program chooses them, not its
                 data.

With a larger input, most programs allocate more objects of the same sizes (--copies); with larger
records, buffers or strings, the objects get larger (--sizes).  Both options may be combined.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from allocators.base.contract import MAX_REQUEST
from benchmarks.events.events import TOUCH_READ, TOUCH_WRITE, Events
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.tools import derive
from kernel.engine.foreign import quoted

HELP = "write a trace with more objects (--copies), or with larger ones (--sizes)"

#: Upper bound on the number of copies.
_MOST = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    derive.add_input(parser)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument(
        "--copies",
        type=derive.count,
        default=1,
        metavar="N",
        help="repeat every event N times for separate objects and threads: N programs in lockstep",
    )
    parser.add_argument(
        "--sizes", type=_factor, default=1.0, metavar="F", help="multiply every size by F, rounded"
    )


def _factor(text: str) -> float:
    """Parse a positive number from the command line."""
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {quoted(text)}")
    return factor


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Scale; return a function that prints the name of the output."""
    if given.copies == given.sizes == 1:
        raise TraceError("scale takes --copies N, --sizes F, or both")
    if not 1 <= given.copies <= _MOST:
        raise TraceError(f"--copies {given.copies}: must be 1 to {_MOST}")
    with (
        derive.opened(given.file, given.lenient, progress) as (reader, groups),
        derive.written(given, [given.file]) as writer,
    ):
        first = 0
        for events in derive.with_progress(groups, reader.events, progress, "scaling"):
            if given.sizes != 1:
                events = _enlarged(events, given.sizes, f"{given.file}: event", first)
            first += len(events.op)
            writer.add(copied(events, given.copies))
        writer.provenance["parents"] = [derive.parent(given.file, reader)]
    return lambda: print(given.output)


def copied(events: Events, copies: int) -> Events:
    """Return (n · copies,) events: each of (n,) ``events`` ``copies`` times in a row."""
    if copies == 1:
        return events
    for name in ("slot", "thread"):
        highest = int(getattr(events, name).max(initial=0))
        if highest >= (1 << 31) // copies - 1:
            raise TraceError(
                f"--copies {copies}: {name} {highest} times the copies exceeds 2**31; "
                "use fewer copies"
            )
    copy = np.tile(np.arange(copies, dtype="i4"), len(events.op))
    columns = {name: np.repeat(c, copies) for name, c in events._asdict().items()}
    thread = columns["thread"] if len(events.thread) else np.zeros(len(copy), "i4")
    columns["thread"] = thread * copies + copy
    slot = columns["slot"]
    columns["slot"] = np.where(slot >= 0, slot * copies + copy, slot)
    return Events(**columns)


def _enlarged(events: Events, factor: float, place: str, first: int) -> Events:
    """Return ``events`` with all sizes times ``factor``.

    ``place`` and ``first``, the number of the first event, are for error messages.
    """
    touches = (events.op == TOUCH_READ) | (events.op == TOUCH_WRITE)
    too_large = ~touches & (events.size * factor > MAX_REQUEST)
    if too_large.any():
        i = int(np.argmax(too_large))
        raise TraceError(
            f"{place} {first + i}: {events.size[i]} bytes times {factor:g} "
            f"exceeds {MAX_REQUEST} bytes"
        )
    if not len(events.offset):
        return events._replace(size=_times(events.size, factor))
    # Scale both ends of a touched range like an object's size, so that it stays in the object.
    begin = np.where(touches, _times(events.offset, factor), events.offset)
    end = _times(events.offset + events.size, factor)
    size = np.where(touches, end - begin, _times(events.size, factor))
    return events._replace(size=size, offset=begin)


def _times(bytes_: np.ndarray, factor: float) -> np.ndarray:
    """Return ``bytes_`` times ``factor``, rounded, at least 1 if it was not 0; non-decreasing."""
    return np.where(bytes_ > 0, np.maximum(np.rint(bytes_ * factor), 1), 0).astype("i8")
