"""Run programs on both sides in worker processes and shrink those that show a difference."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from kernel.differential.pool import Lost, TaskProgress, run_tasks
from kernel.differential.shrink import shrink
from kernel.differential.subject import Outcome, Program, Sides, Subject
from kernel.differential.tally import Tally

#: Maximum number of reruns of a program when the host may have interfered.
MAX_RERUNS = 5
#: Time limit for shrinking, seconds.
SHRINK_SECONDS = 60.0
#: Last operations printed of a program that does not return.
_SHOWN_OPERATIONS = 12


class WorkerError(RuntimeError):
    """Failure or death of a worker; the message names the operation and the cause."""


@dataclass
class Finding:
    """Counterexample: the shortest program found that shows a difference."""

    setting: Any
    ops: list[Any]  # empty: the setting names a handwritten program
    lines: list[str]  # the program and both states, as text
    what: str  # the difference, in one line
    length: int  # operations before shrinking

    def describe(self) -> str:
        """Return the difference, the setting and the program's length as text."""
        program = f"a program of {self.length:,} operations"
        part = f"{len(self.ops)} operations of {program}" if self.ops else program
        return f"{self.what} ({self.setting.describe()}); {part}"


@dataclass
class Report:
    """Counts of one program, and the counterexample if it shows a difference."""

    program: Program
    tally: Tally
    finding: Finding | None = None


class Runner:
    """Runner of programs in this process."""

    def __init__(
        self,
        subject: Subject,
        sides: Sides,
        shrink_seconds: float = SHRINK_SECONDS,
        on_found: Callable[["Report"], None] = lambda report: None,
    ) -> None:
        """``on_found`` receives the report of each program that shows a difference, not shrunk."""
        self.subject = subject
        self.sides = sides
        self.shrink_seconds = shrink_seconds
        self.on_found = on_found

    def check(self, program: Program) -> Report:
        """Run a program; rerun it if the host may have caused the difference.

        The host did not cause a difference that recurs at the same operation.
        """
        seen = None
        for reruns in range(MAX_RERUNS + 1):
            outcome = self.sides.run(program)
            if not outcome.what:
                outcome.tally.reruns = reruns
                return Report(program, outcome.tally)
            difference = outcome.index, outcome.length, outcome.what
            if difference == seen or not outcome.suspect:
                break
            seen = difference
        setting, lines = program.setting, [*outcome.context, *outcome.lines]
        found = Finding(setting, outcome.ops, lines, outcome.what, outcome.length)
        self.on_found(Report(program, outcome.tally, found))
        return Report(program, outcome.tally, self.find(setting, outcome))

    def find(self, setting: Any, first: Outcome) -> Finding:
        """Shrink a program that has shown the difference ``first``."""
        if first.final:
            return Finding(setting, first.ops, first.lines, first.what, first.length)

        def reproduce(candidate: list[Any]) -> list[Any] | None:
            outcome = self.sides.repeat(setting, candidate, first)
            return outcome.ops if outcome.what else None

        ops = first.ops
        if self.shrink_seconds and (again := reproduce(ops)) is not None:
            ops = shrink(again, reproduce, self.subject.variants, self.shrink_seconds)
        last = self.sides.repeat(setting, ops, first, verbose=True)
        what, lines = last.what, last.lines
        if not what:
            what = "a difference that did not recur when the program was repeated"
            lines += first.lines
        if first.context:
            what, lines = first.what, [*first.context, *lines]
        return Finding(setting, last.ops if last.what else ops, lines, what, first.length)


@contextmanager
def _open_runner(
    subject: Subject, shrink_seconds: float, progress: TaskProgress
) -> Iterator[Callable[[Program], Report]]:
    """Set up a worker for :func:`run_programs`."""
    with subject.sides(progress) as sides:
        yield Runner(subject, sides, shrink_seconds, progress.send_interim).check


def run_programs(
    subject: Subject,
    jobs: int = 1,
    *,
    keep_going: bool = False,
    shrink_seconds: float = SHRINK_SECONDS,
    on_progress: Callable[[list[Any]], None] = lambda workers: None,
) -> Iterator[Report]:
    """Yield a report for each program, in order of completion.

    After a difference no further program is started unless ``keep_going``.  ``on_progress``: the
    callback of :func:`~kernel.differential.pool.run_tasks`.  Kills its workers when it is closed.
    Raises Mistake if a program cannot be made, WorkerError if a worker fails or dies.
    """
    stopped = False

    def wanted() -> Iterator[Program]:
        for program in subject.programs():
            if stopped:
                return
            yield program

    open_worker: Callable[[TaskProgress], AbstractContextManager] = partial(
        _open_runner, subject, shrink_seconds
    )
    reports = run_tasks(
        open_worker, wanted(), jobs, timeout=subject.operation_timeout, on_progress=on_progress
    )
    for program, report in reports:
        if isinstance(report, Lost):
            report = _report_lost(subject, program, report)
        stopped = stopped or (report.finding is not None and not keep_going)
        yield report


def _report_lost(subject: Subject, program: Program, lost: Lost) -> Report:
    """Return the report of a program that ``subject`` did not finish.

    If it has shown a difference before, shrinking it failed: report the whole program.  Otherwise
    the subject hangs in it.  Raises WorkerError if the worker process has died instead.
    """
    if lost.interim:
        lost.interim.finding.lines.append(f"not shrunk: {lost.how} while the program was repeated")
        return lost.interim
    if not lost.hung:
        place = f"{program.setting.describe()}, operation {lost.operation}"
        raise WorkerError(f"{place}: {lost.how}")
    with subject.sides() as sides:
        ops = sides.operations(program, lost.operation + 1)
    what = f"{subject.tested_name} {lost.how}"
    lines = [subject.describe(op) for op in ops[-_SHOWN_OPERATIONS:]]
    lines[-1] += f" = ? ({what})"
    tally = Tally(operations=len(ops), asked=program.max_operations, programs=1)
    return Report(program, tally, Finding(program.setting, ops, lines, what, len(ops)))
