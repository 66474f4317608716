"""Verification of several cases in parallel, in worker processes that may die.

A plugin that indexes its state out of bounds or loops without touching memory kills its worker
process; the next case gets a new one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from allocators.base.registry import load
from allocators.verify.suite import Failure, Suite
from kernel.differential.pool import Lost, TaskProgress, run_tasks
from kernel.engine.progress import with_compiler
from kernel.engine.watchdog import PATIENCE


@dataclass(frozen=True)
class Case:
    """Task of one worker process.  ``settings``: as parsed from YAML."""

    name: str
    label: str
    settings: dict[str, Any]
    page_size: int
    as_timed: bool
    operations: int
    seed: int
    only: tuple[str, ...] = ()
    patience: float = PATIENCE

    def __str__(self) -> str:
        return f"{self.label}, {self.page_size >> 10} KiB pages"


@dataclass
class Verdict:
    """Outcome of a case.  ``seconds``: how long it took."""

    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0


def run_case(case: Case, progress: Callable[[str], None]) -> Verdict:
    """Verify ``case`` in this process."""
    suite = Suite(
        load(case.name, case.settings),
        operations=case.operations,
        seed=case.seed,
        page_size=case.page_size,
        patience=case.patience,
    )
    begin = monotonic()
    suite.run(as_timed=case.as_timed, only=case.only, progress=progress)
    return Verdict(suite.failures, suite.notes, suite.operations, monotonic() - begin)


@contextmanager
def opened(progress: TaskProgress) -> Iterator[Callable[[Case], Verdict]]:
    """Yield the function that a worker process runs on each case.

    After a lockup the process takes no further case: the loop may still be running.
    """

    def work(case: Case) -> Verdict:
        with with_compiler(lambda _, part: progress.start_part(part)) as report:
            outcome = run_case(case, lambda scenario: report(0.0, scenario))
        progress.replace_worker = any(failure.check == "lockup" for failure in outcome.failures)
        return outcome

    yield work


def run_cases(
    cases: Iterable[Case], jobs: int, progress: Callable[[list[str]], None]
) -> Iterator[tuple[Case, Verdict]]:
    """Yield each case and its outcome as soon as it ends, with ``jobs`` cases in parallel.

    ``progress`` is called with the running cases whenever they change.  The death of a worker
    process is a failure of its case.
    """

    def report(workers: list[Any]) -> None:
        progress([f"{worker.task}: {worker.part}" for worker in workers])

    for case, outcome in run_tasks(opened, cases, jobs, method="spawn", on_progress=report):
        if isinstance(outcome, Lost):
            place = (case.label, case.page_size, outcome.part)
            outcome = Verdict([Failure(*place, "crash", 0, "unknown", 0, outcome.how)])
        yield case, outcome
