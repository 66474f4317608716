"""Run programs on both sides, in worker processes; shrink what differs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from kernel.differential.pool import Lost, Place, run_tasks
from kernel.differential.shrink import shrink
from kernel.differential.subject import Outcome, Program, Sides, Subject
from kernel.differential.tally import Tally

#: How often a program is run again when the host may have interfered.
MOST_RERUNS = 5
#: Seconds for shrinking.
SHRINK = 60.0
#: Operations that are told of a program that does not come back.
_SHOWN = 12


class WorkerError(RuntimeError):
    """A worker has failed or died: where, and how."""


@dataclass
class Finding:
    """A program that shows a difference, as short as it was found."""

    setting: Any
    ops: list[Any]  # none: the setting names a program written by hand
    lines: list[str]  # the program and both states, for people
    what: str  # what differs, in one line
    length: int  # operations before it was shrunk

    def words(self) -> str:
        """Say what it is, and how much of what."""
        whole = f"a program of {self.length:,} operations"
        part = f"{len(self.ops)} operations of {whole}" if self.ops else whole
        return f"{self.what} ({self.setting.words()}); {part}"


@dataclass
class Report:
    """The outcome of one program, counted, and the finding if there is one."""

    program: Program
    tally: Tally
    finding: Finding | None = None


class Runner:
    """Runs programs in this process."""

    def __init__(self, subject: Subject, sides: Sides, shrink_seconds: float = SHRINK) -> None:
        self.subject = subject
        self.sides = sides
        self.shrink_seconds = shrink_seconds

    def check(self, program: Program) -> Report:
        """Run a program; again where the host may have interfered with a difference.

        A difference that comes again at the same operation is not the host's.
        """
        seen = None
        for reruns in range(MOST_RERUNS + 1):
            outcome = self.sides.run(program)
            if not outcome.what:
                outcome.tally.reruns = reruns
                return Report(program, outcome.tally)
            place = outcome.at, outcome.length, outcome.what
            if place == seen or not outcome.suspect:
                break
            seen = place
        return Report(program, outcome.tally, self.find(program.setting, outcome))

    def find(self, setting: Any, first: Outcome) -> Finding:
        """Shorten a program that has shown the difference ``first``."""
        if first.whole:
            return Finding(setting, first.ops, first.lines, first.what, first.length)

        def shows(candidate: list[Any]) -> list[Any] | None:
            outcome = self.sides.repeat(setting, candidate, first)
            return outcome.ops if outcome.what else None

        ops = first.ops
        if self.shrink_seconds and (again := shows(ops)) is not None:
            ops = shrink(again, shows, self.subject.variants, self.shrink_seconds)
        last = self.sides.repeat(setting, ops, first, told=True)
        what, lines = last.what, last.lines
        if not what:
            what = "not seen again when the program was repeated"
            lines += first.lines
        if first.context:
            what, lines = first.what, [*first.context, *lines]
        return Finding(setting, last.ops if last.what else ops, lines, what, first.length)


@contextmanager
def _opened(
    subject: Subject, shrink_seconds: float, place: Place
) -> Iterator[Callable[[Program], Report]]:
    """Set a worker up for :func:`run_programs`."""
    with subject.sides(place) as sides:
        yield Runner(subject, sides, shrink_seconds).check


def run_programs(
    subject: Subject,
    jobs: int = 1,
    *,
    keep_going: bool = False,
    shrink_seconds: float = SHRINK,
    told: Callable[[list[Any]], None] = lambda workers: None,
) -> Iterator[Report]:
    """Yield a report for each program, in the order in which they end.

    After a finding no further program is begun unless ``keep_going``.  ``told``: see
    :func:`~kernel.differential.pool.run_tasks`.  Ends its workers when it is closed.  Raises
    Mistake for a program that cannot be, WorkerError when a worker fails or dies.
    """
    stopped = False

    def wanted() -> Iterator[Program]:
        for program in subject.programs():
            if stopped:
                return
            yield program

    opened: Callable[[Place], AbstractContextManager] = partial(_opened, subject, shrink_seconds)
    for program, report in run_tasks(opened, wanted(), jobs, patience=subject.patience, told=told):
        if isinstance(report, Lost):
            report = _lost(subject, program, report)
        stopped = stopped or (report.finding is not None and not keep_going)
        yield report


def _lost(subject: Subject, program: Program, lost: Lost) -> Report:
    """The report of a program that ``subject`` does not come back from.

    Raises WorkerError where its process has died.
    """
    if not lost.hung:
        place = f"{program.setting.words()}, operation {lost.at}"
        raise WorkerError(f"{place}: {lost.how}")
    with subject.sides() as sides:
        ops = sides.operations(program, lost.at + 1)
    what = f"{subject.whose} {lost.how}"
    lines = [subject.words(op) for op in ops[-_SHOWN:]]
    lines[-1] += f" = ? ({what})"
    tally = Tally(operations=len(ops), asked=program.most, programs=1)
    return Report(program, tally, Finding(program.setting, ops, lines, what, len(ops)))
