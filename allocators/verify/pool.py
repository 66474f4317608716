"""Verify several settings at a time, in processes that may die.

A plugin that indexes its state out of bounds, or loops without touching memory, takes its process
with it; the next setting gets a new one.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

from allocators.base.registry import load
from allocators.verify.suite import Failure, Suite
from kernel.engine.watchdog import PATIENCE


@dataclass(frozen=True)
class Case:
    """What one process verifies.  ``settings`` are as YAML gives them."""

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
class Outcome:
    """What came of a case, after ``seconds``.  ``last``: the process cannot take another."""

    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0
    last: bool = False


def run_case(case: Case, progress: Callable[[str], None]) -> Outcome:
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
    # What loops may do so for ever, beside everything that comes after.
    last = any(failure.check == "lockup" for failure in suite.failures)
    return Outcome(suite.failures, suite.notes, suite.operations, monotonic() - begin, last)


def serve(connection: Connection) -> None:
    """Verify the cases that come: sends the name of each scenario, then the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        outcome = run_case(case, connection.send)
        connection.send(outcome)
        if outcome.last:
            return


class _Worker:
    """A process that verifies one case at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, case: Case) -> None:
        """Let it begin ``case``."""
        self.case = case
        self.scenario = "starting"
        self.connection.send(case)

    def receive(self) -> Outcome | None:
        """The outcome if that is what it has to tell.  A process that died is a failure."""
        try:
            message = self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            place = (self.case.label, self.case.page_size, self.scenario)
            failure = Failure(*place, "crash", 0, "unknown", 0, f"the process died ({how})")
            return Outcome([failure], last=True)
        if isinstance(message, str):
            self.scenario = message
            return None
        return message


def run_cases(
    cases: list[Case], jobs: int, progress: Callable[[list[str]], None]
) -> Iterator[tuple[Case, Outcome]]:
    """Yield each case and its outcome as they end, ``jobs`` running at a time.

    ``progress`` hears what is running whenever that changes.
    """
    waiting = deque(cases)
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                worker = _Worker()
                workers[worker.connection] = worker
                worker.give(waiting.popleft())
            progress([f"{worker.case}: {worker.scenario}" for worker in workers.values()])
            for connection in wait(list(workers)):
                worker = workers[connection]
                outcome = worker.receive()
                if outcome is None:
                    continue
                case = worker.case
                if waiting and not outcome.last:
                    worker.give(waiting.popleft())
                else:
                    del workers[connection]
                    connection.close()
                yield case, outcome
    finally:
        for worker in workers.values():
            worker.process.kill()
