"""Traces of real programs on both sides: every event, compared like any other operation.

The thread is held at one, all events being one thread's, or the trace's threads are threads of the
process, which take turns as they were recorded.  A trace goes through in pieces, so that its length
does not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.events import events as ev
from benchmarks.events.events import Events
from benchmarks.events.progress import Progress
from benchmarks.trace import shipped
from benchmarks.twin.verify.compare import Pair, Setting, row_lines
from benchmarks.twin.verify.operation import (
    ALIGNED,
    GROWN,
    LEAVE,
    PROGRAM,
    READ,
    THREAD_END,
    THREAD_START,
    USE,
    WRITE,
    to_ops,
)
from benchmarks.twin.verify.run import Finding, Plan, Report, Runner
from benchmarks.twin.verify.tally import Tally
from benchmarks.twin.verify.twin import BLOCK_COLUMNS
from benchmarks.workloads import Workload
from benchmarks.workloads import load as load_workload
from kernel.linux.host.code import MAX_THREADS

#: Events that are played at a time.
PIECE = 1 << 16
#: Events up to a difference from which a shorter program is made.
_SHRINKABLE = 60_000
#: Operations before a difference that are shown.
_SHOWN = 12

_EVERYTHING = 1 << 62


@dataclass
class TraceReport(Report):
    """What a trace has come to."""

    name: str = ""


def to_program(events: Events, touch: str) -> np.ndarray:
    """Events as rows of PROGRAM; ``touch``: what becomes of a new block (TOUCH_NAMES)."""
    rows = np.zeros(len(events.op), PROGRAM)
    # The end of a thread is nothing here.
    rows["kind"] = np.where(events.op < ev.ALLOCATOR_OPS, events.op, USE)
    rows["slot"] = events.slot
    rows["request"] = events.size
    if len(events.align):
        rows["extra"] = events.align
    rows["extra"][rows["kind"] != ALIGNED] = 0
    makes = events.op != ev.FREE
    makes &= events.op < ev.TOUCH_READ
    if touch != "nothing":
        rows["use"][makes] = READ if touch == "read" else WRITE
        rows["length"][makes] = 8 if touch == "first" else _EVERYTHING
        # calloc has written its block already; realloc's is new beyond what it was.
        rows["use"][events.op == ev.CALLOC] = LEAVE
        rows["begin"][events.op == ev.REALLOC] = GROWN
        if touch == "first":
            rows["use"][events.op == ev.REALLOC] = LEAVE
    uses = events.op >= ev.TOUCH_READ
    rows["use"][events.op == ev.TOUCH_READ] = READ
    rows["use"][events.op == ev.TOUCH_WRITE] = WRITE
    rows["length"][uses] = events.size[uses]
    rows["request"][uses] = 0
    if len(events.offset):
        rows["begin"][uses] = events.offset[uses]
    rows["slot"][events.op == ev.THREAD_END] = -1
    return rows


class Threads:
    """The threads of a trace, as its pieces go by: the first event of one starts it.

    Numbers of threads that have ended are used again.
    """

    def __init__(self) -> None:
        self._numbers = {0: 0}

    def in_turn(self, rows: np.ndarray, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """``rows``, one for each event, with who does each, and with those that start threads.

        Returns them, and which event each row belongs to.  Raises ValueError for more threads at a
        time than a program may have.
        """
        if not len(events.thread):
            return rows, np.arange(len(rows))
        ends = events.op == ev.THREAD_END
        # Between these rows nothing changes.
        change = np.flatnonzero(np.diff(events.thread, prepend=-1) | ends | np.roll(ends, 1))
        starts = []
        for i, end in zip(change, [*change[1:], len(rows)], strict=True):
            thread = int(events.thread[i])
            if thread not in self._numbers:
                unused = set(range(1, MAX_THREADS)) - set(self._numbers.values())
                if not unused:
                    raise ValueError(f"more than {MAX_THREADS} threads at a time")
                self._numbers[thread] = min(unused)
                starts.append((i, self._numbers[thread]))
            rows["thread"][i:end] = self._numbers[thread]
            if ends[i] and thread:
                rows["kind"][i] = THREAD_END
                rows["request"][i] = self._numbers.pop(thread)
                rows["thread"][i] = 0
        started = np.zeros(len(starts), PROGRAM)
        started["kind"] = THREAD_START
        started["slot"] = -1
        started["request"] = [number for _, number in starts]
        at = [i for i, _ in starts]
        return np.insert(rows, at, started), np.insert(np.arange(len(rows)), at, at)


def _pieces(workload: Workload) -> Iterator[Events]:
    """The events of a trace, some at a time."""
    wholes = [workload.events] if workload.stream is None else workload.stream.pieces()
    for whole in wholes:
        for start in range(0, len(whole.op), PIECE):
            yield ev.rows(whole, start, start + PIECE)


def run_trace(
    plan: Plan, files: list[str], touch: str, progress: Progress, *, threads: bool = False
) -> Iterator[TraceReport]:
    """Yield a report for each trace; ``shipped:`` stands for all that are shipped.

    ``threads``: run its threads as threads.

    After a mismatch no further trace is begun unless ``plan.keep_going``.  Raises WorkloadError for
    a trace that cannot be read.
    """
    paths = []
    for file in files:
        every = [shipped.PREFIX + name for name in shipped.names()]
        paths += every if file == shipped.PREFIX else [file]
    runner = Runner(plan)
    for number, path in enumerate(paths):
        part = number / len(paths)

        def told(fraction: float, name: str, part: float = part) -> None:
            progress(part + fraction / len(paths), name)

        told(0.0, path)
        report = _run_one(runner, number, path, touch, told, threads=threads)
        yield report
        if report.finding and not plan.keep_going:
            return


def _run_one(
    runner: Runner, number: int, path: str, touch: str, progress: Progress, *, threads: bool
) -> TraceReport:
    """Run one trace."""
    workload = load_workload({"name": "trace", "path": path})
    setting = Setting(path, "trace", runner.plan.tunables)
    tally = Tally()
    report = TraceReport(number, tally, name=path)
    blocks = np.zeros((max(workload.slots, 1), BLOCK_COLUMNS), "i8")
    total = workload.stream.facts.events if workload.stream else len(workload.events.op)
    before = 0
    schedule = Threads() if threads else None
    kept: list[np.ndarray] = []
    with Pair(runner.twins, setting) as pair:
        for events in _pieces(workload):
            program = to_program(events, touch)
            event = np.arange(len(program))
            if schedule:
                program, event = schedule.in_turn(program, events)
            last = before + len(events.op) == total
            outcome = pair.run(program, blocks, at_end=last)
            tally.count("trace", program, outcome)
            tally.programs = 1
            if outcome.what:
                tally.agreed = 0
                rows = [*kept, program[: outcome.row + 1 if outcome.row >= 0 else len(program)]]
                whole = np.concatenate(rows) if before < _SHRINKABLE else None
                row = outcome.row if outcome.row >= 0 else len(program) - 1
                report.finding = _finding(
                    runner, setting, program, outcome, whole, before + int(event[row])
                )
                break
            tally.agreed = 1
            if before < _SHRINKABLE:
                kept.append(program)
            before += len(events.op)
            progress(before / max(total, 1), path)
        hits = pair.k["hits"]
        tally.hits = np.array(hits[: len(pair.twin.branches)]) if pair.twin.branches else None
        hits[:] = 0
    tally.asked = total
    return report


def _finding(
    runner: Runner,
    setting: Setting,
    program: np.ndarray,
    outcome: object,
    whole: np.ndarray | None,
    event: int,
) -> Finding:
    """The difference at ``event``, in a shorter program where the trace is not too long by then.

    ``whole``: the trace's rows up to there; ``program`` and ``outcome``: of the last piece.
    """
    row = outcome.row if outcome.row >= 0 else len(program) - 1
    lines = []
    ops = to_ops(program[max(row - _SHOWN, 0) : row + 1])
    first = row + 1 - len(ops)
    for i, op in enumerate(ops[:-1], first):
        lines += row_lines(op, outcome.expected[i], None)
    x, y = outcome.expected[row], outcome.actual[row]
    lines += row_lines(ops[-1], x, y if outcome.row >= 0 else None) + outcome.lines
    here = f"{outcome.what} at event {event}"
    if whole is None:
        return Finding(setting, ops, [f"  {line}" for line in lines], here, event + 1)
    found = runner.find(setting, whole, _shifted(outcome, len(whole) - 1 - row))
    found.lines = [
        "  in the trace:",
        *(f"  {line}" for line in lines),
        "  shortened:",
        *found.lines,
    ]
    found.what = here
    return found


def _shifted(outcome: object, before: int) -> object:
    """The outcome of a piece as one of the whole trace up to there."""
    from dataclasses import replace

    row = outcome.row + before if outcome.row >= 0 else -1
    return replace(outcome, done=outcome.done + before, row=row)
