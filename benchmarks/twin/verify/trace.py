"""Conversion of traces of real programs to programs for both sides, in pieces.

Every event is compared like any other operation.  Either all events run in one thread, or the
trace's threads run as threads of the process, in the recorded order.  A trace is processed in
pieces, so that its length is unlimited.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.events import events as ev
from benchmarks.events.events import Events
from benchmarks.events.ledger import Ledger
from benchmarks.trace import shipped
from benchmarks.twin.verify import operation as ops
from benchmarks.twin.verify.twin import BLOCK_COLUMNS
from benchmarks.workloads import WorkloadError
from benchmarks.workloads import load as load_workload
from kernel.differential.pool import Mistake
from kernel.linux.host.code import MAX_THREADS

#: Events in a piece.
PIECE = 1 << 16
#: Name used as the mode of traces.
MODE = "trace"

_EVERYTHING = 1 << 62


def to_program(events: Events, touch: str, ledger: Ledger) -> np.ndarray:
    """Convert events to rows of PROGRAM; ``touch``: how new blocks are touched (TOUCH_NAMES).

    ``ledger`` follows the events, to tell reallocs that allocate from those that change a size.
    Blocks are touched as benchmarks.replay.loop touches them.
    """
    rows = np.zeros(len(events.op), ops.PROGRAM)
    # The end of a thread becomes an operation without effect, and so does mallopt.
    performed = (events.op < ev.ALLOCATOR_OPS) | (events.op == ev.SBRK)
    performed |= (events.op == ev.TRIM) & (events.size == 0)
    rows["kind"] = np.where(performed, events.op, ops.USE)
    rows["slot"] = events.slot
    rows["request"] = events.size
    if len(events.align):
        rows["extra"] = events.align
    rows["extra"][rows["kind"] != ops.ALIGNED] = 0
    makes = events.op != ev.FREE
    makes &= events.op < ev.TOUCH_READ
    if touch != "nothing":
        rows["use"][makes] = ops.READ if touch == "read" else ops.WRITE
        rows["length"][makes] = 8 if touch == "first" else _EVERYTHING
        # Only the bytes added by realloc are new.
        rows["begin"][events.op == ev.REALLOC] = ops.GROWN
        if touch == "first":
            rows["use"][(events.op == ev.REALLOC) & (ledger.follow(events).before > 0)] = ops.LEAVE
    uses = (events.op >= ev.TOUCH_READ) & (events.op < ev.THREAD_END)
    rows["use"][events.op == ev.TOUCH_READ] = ops.READ
    rows["use"][events.op == ev.TOUCH_WRITE] = ops.WRITE
    rows["length"][uses] = events.size[uses]
    rows["request"][events.op >= ev.TOUCH_READ] = 0
    if len(events.offset):
        rows["begin"][uses] = events.offset[uses]
    rows["slot"][events.op >= ev.THREAD_END] = -1
    moves = events.op == ev.SBRK
    rows["request"][moves] = events.offset[moves] if len(events.offset) else 0
    return rows


class Threads:
    """Threads of a trace, tracked from piece to piece; the first event of a thread starts it.

    The numbers of threads that have ended are reused.
    """

    def __init__(self) -> None:
        self._numbers = {0: 0}

    def in_turn(self, rows: np.ndarray, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """Assign threads to ``rows``, one for each event, and insert rows that start threads.

        Returns the rows and the index of the event of each.  Raises Mistake if more threads exist
        at a time than a program may have.
        """
        if not len(events.thread):
            return rows, np.arange(len(rows))
        ends = events.op == ev.THREAD_END
        # Rows at which the thread changes or may change.
        change = np.flatnonzero(np.diff(events.thread, prepend=-1) | ends | np.roll(ends, 1))
        starts = []
        for i, end in zip(change, [*change[1:], len(rows)], strict=True):
            thread = int(events.thread[i])
            if thread not in self._numbers:
                unused = set(range(1, MAX_THREADS)) - set(self._numbers.values())
                if not unused:
                    raise Mistake(f"trace has more than {MAX_THREADS} threads at a time")
                self._numbers[thread] = min(unused)
                starts.append((i, self._numbers[thread]))
            rows["thread"][i:end] = self._numbers[thread]
            if ends[i] and thread:
                rows["kind"][i] = ops.THREAD_END
                rows["request"][i] = self._numbers.pop(thread)
                rows["thread"][i] = 0
        started = np.zeros(len(starts), ops.PROGRAM)
        started["kind"] = ops.THREAD_START
        started["slot"] = -1
        started["request"] = [number for _, number in starts]
        at = [i for i, _ in starts]
        return np.insert(rows, at, started), np.insert(np.arange(len(rows)), at, at)


@dataclass
class Piece:
    """Rows of PROGRAM for consecutive events; ``event``, (n,): index of the event of each row."""

    rows: np.ndarray
    event: np.ndarray
    before: int  # events of the trace before the first
    last: bool


class Pieces:
    """Iterable over the pieces of a trace.

    ``touch``: see :func:`to_program`.  ``threads``: run the trace's threads as threads.  Raises
    Mistake if the trace cannot be read or has too many threads at a time.
    """

    def __init__(self, path: str, touch: str, *, threads: bool) -> None:
        try:
            workload = load_workload({"name": "trace", "path": path})
        except WorkloadError as error:
            raise Mistake(str(error)) from None
        stream = workload.stream
        self.total = stream.facts.events if stream else len(workload.events.op)
        self._workload = workload
        self._touch = touch
        self._ledger = Ledger()
        self._threads = Threads() if threads else None

    def blocks(self) -> np.ndarray:
        """Create an empty table of blocks for the whole trace."""
        return np.zeros((max(self._workload.slots, 1), BLOCK_COLUMNS), "i8")

    def __iter__(self) -> Iterator[Piece]:
        before = 0
        try:
            for events in self._events():
                rows = to_program(events, self._touch, self._ledger)
                event = np.arange(len(rows))
                if self._threads:
                    rows, event = self._threads.in_turn(rows, events)
                after = before + len(events.op)
                yield Piece(rows, event, before, after == self.total)
                before = after
        except WorkloadError as error:
            raise Mistake(str(error)) from None

    def _events(self) -> Iterator[Events]:
        """Yield the events, at most PIECE at a time."""
        workload = self._workload
        wholes = [workload.events] if workload.stream is None else workload.stream.pieces()
        for whole in wholes:
            for start in range(0, len(whole.op), PIECE):
                yield ev.rows(whole, start, start + PIECE)


def paths(files: Iterable[str]) -> Iterator[str]:
    """Yield the traces in ``files``, replacing ``shipped:`` with all shipped traces.

    Raises Mistake for a missing trace.
    """
    for file in files:
        name = file.removeprefix(shipped.PREFIX)
        if file == shipped.PREFIX:
            yield from (shipped.PREFIX + name for name in shipped.names())
            continue
        try:
            if not (Path(file) if name == file else shipped.path_of(name)).is_file():
                raise Mistake(f"{file}: no such file")
        except ValueError as error:
            raise Mistake(str(error)) from None
        yield file
