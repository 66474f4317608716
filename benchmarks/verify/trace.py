"""Traces of real programs on both sides: every event, compared like any other operation.

The thread is held at one: all events are one thread's.  A trace goes through in pieces, so that its
length does not matter.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks import events as ev
from benchmarks import shipped
from benchmarks.events import Events
from benchmarks.launch import Progress
from benchmarks.verify.compare import Pair, Setting, row_lines
from benchmarks.verify.operation import (
    ALIGNED,
    CALLOC,
    FREE,
    GROWN,
    LEAVE,
    MALLOC,
    PROGRAM,
    READ,
    REALLOC,
    USE,
    WRITE,
    to_ops,
)
from benchmarks.verify.run import Finding, Plan, Report, Runner
from benchmarks.verify.tally import Tally
from benchmarks.verify.twin import BLOCK_COLUMNS
from benchmarks.workloads import Workload
from benchmarks.workloads import load as load_workload

#: Events that are played at a time.
PIECE = 1 << 16
#: Events up to a difference from which a shorter program is made.
_SHRINKABLE = 60_000
#: Operations before a difference that are shown.
_SHOWN = 12

#: Our kind for each of benchmarks.events; the end of a thread is nothing here.
_KINDS = np.array([MALLOC, FREE, REALLOC, CALLOC, ALIGNED, USE, USE, USE])
_EVERYTHING = 1 << 62


@dataclass
class TraceReport(Report):
    """What a trace has come to."""

    name: str = ""


def to_program(events: Events, touch: str) -> np.ndarray:
    """Events as rows of PROGRAM; ``touch``: what becomes of a new block (benchmarks.replay)."""
    rows = np.zeros(len(events.op), PROGRAM)
    rows["kind"] = _KINDS[events.op]
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


def _pieces(workload: Workload) -> Iterator[Events]:
    """The events of a trace, some at a time."""
    wholes = [workload.events] if workload.stream is None else workload.stream.pieces()
    for whole in wholes:
        for start in range(0, len(whole.op), PIECE):
            yield Events(*(column[start : start + PIECE] for column in whole))


def run_trace(
    plan: Plan, files: list[str], touch: str, progress: Progress
) -> Iterator[TraceReport]:
    """Yield a report for each trace; ``shipped:`` stands for all that are shipped.

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
        report = _run_one(runner, number, path, touch, told)
        yield report
        if report.finding and not plan.keep_going:
            return


def _run_one(runner: Runner, number: int, path: str, touch: str, progress: Progress) -> TraceReport:
    """Run one trace."""
    workload = load_workload({"name": "trace", "path": path})
    setting = Setting(path, "trace", runner.plan.tunables)
    tally = Tally()
    report = TraceReport(number, tally, name=path)
    blocks = np.zeros((max(workload.slots, 1), BLOCK_COLUMNS), "i8")
    total = workload.stream.facts.events if workload.stream else len(workload.events.op)
    before = 0
    kept: list[np.ndarray] = []
    with Pair(runner.twins, setting) as pair:
        for events in _pieces(workload):
            program = to_program(events, touch)
            last = before + len(program) == total
            outcome = pair.run(program, blocks, at_end=last)
            tally.count("trace", program, outcome)
            tally.programs = 1
            if outcome.what:
                tally.agreed = 0
                rows = [*kept, program[: outcome.row + 1 if outcome.row >= 0 else len(program)]]
                whole = np.concatenate(rows) if before < _SHRINKABLE else None
                report.finding = _finding(runner, setting, program, outcome, whole, before)
                break
            tally.agreed = 1
            if before < _SHRINKABLE:
                kept.append(program)
            before += len(program)
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
    before: int,
) -> Finding:
    """The difference, in a shorter program where the trace is not too long by then."""
    row = outcome.row if outcome.row >= 0 else len(program) - 1
    lines = []
    ops = to_ops(program[max(row - _SHOWN, 0) : row + 1])
    first = row + 1 - len(ops)
    for i, op in enumerate(ops[:-1], first):
        lines += row_lines(op, outcome.expected[i], None)
    x, y = outcome.expected[row], outcome.actual[row]
    lines += row_lines(ops[-1], x, y if outcome.row >= 0 else None) + outcome.lines
    here = f"{outcome.what} at event {before + row}"
    if whole is None:
        return Finding(setting, ops, [f"  {line}" for line in lines], here, before + row + 1)
    found = runner.find(setting, whole, _shifted(outcome, before))
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
