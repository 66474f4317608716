"""Run programs, one real process each, in one or two workers; count, and stop at a difference.

A worker tells where it is before every operation, in memory that the parent sees: a model that
does not come back from an operation is a finding too.
"""

import multiprocessing
import queue
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kernel.linux.host.observe import pages_out, thp_counters
from kernel.linux.verify import directed
from kernel.linux.verify.compare import (
    Difference,
    File,
    Models,
    Pair,
    Setting,
    area_lines,
    files,
    region_lines,
)
from kernel.linux.verify.model import COUNTERS, State
from kernel.linux.verify.operation import Op, result_words
from kernel.linux.verify.program import Generator, permitted
from kernel.linux.verify.shrink import shrink
from kernel.linux.verify.tally import Tally
from kernel.types import SIGSYS

#: Operations of one program, in one process.
PROGRAM_LENGTH = 500
#: How often a program is run again when the host may have interfered.
MOST_RERUNS = 5
#: A model that takes longer over one operation does not come back, seconds.
PATIENCE = 20
#: Bytes in which a worker tells where it is: program, operation, operations begun in all.
_POSITION = 24
#: Counters of the host that say that huge pages came, or did not, for reasons of its own.
_INTERFERENCE = ("thp_collapse_alloc", "thp_fault_fallback", "thp_fault_fallback_charge")


@dataclass
class Finding:
    """A program that shows a difference, as short as it was found."""

    setting: Setting
    ops: list[Op]
    lines: list[str]  # the program and both states, for people
    what: str  # what differs, in one line
    length: int  # operations before it was shrunk


@dataclass
class Report:
    """What one program has come to."""

    number: int
    tally: Tally
    finding: Finding | None = None


@dataclass
class Plan:
    """What to run.  ``thp``: "on", "off" or "both"."""

    operations: int
    seed: int
    thp: str = "both"
    count_branches: bool = True
    keep_going: bool = False
    shrink_seconds: float = 60
    bindings: dict[str, Any] = field(default_factory=dict)

    @property
    def random_programs(self) -> int:
        """How many random programs it takes.  Those written by hand follow."""
        return -(-self.operations // PROGRAM_LENGTH)

    @property
    def programs(self) -> int:
        """How many programs there are in all."""
        return self.random_programs + len(directed.PROGRAMS)

    def name(self, number: int) -> str:
        """Name of the program written by hand that ``number`` is; '' for a random one."""
        names = [""] * self.random_programs + list(directed.PROGRAMS)
        return names[number]

    def length(self, number: int) -> int:
        """Operations of program ``number``; the last one is shorter."""
        return min(PROGRAM_LENGTH, self.operations - number * PROGRAM_LENGTH)

    def setting(self, number: int) -> Setting:
        """How the process of program ``number`` is set up."""
        if name := self.name(number):
            return Setting(f"directed/{name}", thp=self.thp != "off")
        seed = f"{self.seed}/{number}"
        choice = random.Random(f"setting {seed}").random()
        thp = number % 2 == 1 if self.thp == "both" else self.thp == "on"
        return Setting(
            seed,
            thp=thp,
            # Without randomisation an unlimited stack puts the mappings where the model's window
            # has the program.
            randomize=choice < 0.15,
            unlimited=0.12 <= choice < 0.15,
            legacy=0.09 <= choice < 0.12 or 0.15 <= choice < 0.24,
        )


class Runner:
    """Runs programs in this process."""

    def __init__(
        self, plan: Plan, opened: list[File], before: Callable[[int, Op], None] = lambda n, op: None
    ) -> None:
        self.plan = plan
        self.models = Models(count_branches=plan.count_branches, **plan.bindings)
        self.opened = opened
        self.before = before

    def program(self, number: int) -> Report:
        """Run program ``number``; again where the host may have interfered with a difference.

        A difference that comes again at the same operation is the model's.
        """
        seen: tuple[int, list[str]] | None = None
        for reruns in range(MOST_RERUNS + 1):
            counters = thp_counters()
            report, executed, differences = self._program(number)
            after = thp_counters()
            report.tally.reruns = reruns
            if executed is None:
                return report
            place = len(executed), [d.what for d in differences]
            collapsed = any(after.get(n, 0) != counters.get(n, 0) for n in _INTERFERENCE)
            if place == seen or not (collapsed or pages_out()):
                break
            seen = place
        if report.finding is None:
            report.finding = self.find(self.plan.setting(number), executed, differences)
        return report

    def by_hand(self, name: str) -> Report:
        """Run the program of that name in :mod:`kernel.linux.verify.directed`."""
        return self.program(self.plan.random_programs + list(directed.PROGRAMS).index(name))

    def operations(self, number: int, count: int) -> list[Op]:
        """The first ``count`` operations of program ``number``."""
        made: list[Op] = []
        setting = self.plan.setting(number)
        with Pair(setting, self.opened, self.models) as pair:
            generator = Generator(setting.seed, pair.ground)
            for _ in range(count):
                made.append(generator.next(pair.model.view()))
                if len(made) < count:
                    pair.step(made[-1])
        return made

    def _program(self, number: int) -> tuple[Report, list[Op] | None, list[Difference]]:
        """Run it; what was counted, and the operations up to a difference if there is one."""
        if name := self.plan.name(number):
            return self._directed(number, name)
        setting = self.plan.setting(number)
        tally = Tally(programs=1)
        tally.by_setting[_kind(setting)] += 1
        executed: list[Op] = []
        differences: list[Difference] = []
        with Pair(setting, self.opened, self.models) as pair:
            generator = Generator(setting.seed, pair.ground)
            for n in range(self.plan.length(number)):
                op = generator.next(pair.model.view())
                self.before(n, op)
                executed.append(op)
                result, differences = pair.step(op)
                if result.sig == SIGSYS:
                    # A random layout that the model's window cannot hold: nothing to compare.
                    differences = []
                    tally.outside += 1
                    break
                tally.count(op, result)
                if differences:
                    break
            self._count_hits(pair, tally)
        return Report(number, tally), executed if differences else None, differences

    def _directed(self, number: int, name: str) -> tuple[Report, list[Op] | None, list[Difference]]:
        """Run a program written by hand, which is short enough as it is."""
        setting = self.plan.setting(number)
        tally = Tally(programs=1)
        tally.by_setting["written by hand"] += 1
        lines: list[str] = []
        executed: list[Op] = []
        with Pair(setting, self.opened, self.models) as pair:
            for step in directed.PROGRAMS[name](pair.ground):
                ops = step.ops if isinstance(step, directed.Crowd) else [step]
                self.before(len(executed), ops[-1])
                executed += ops
                result, differences = pair.crowd(ops) if len(ops) > 1 else pair.step(ops[0])
                tally.count(ops[-1], result)  # of a crowd only the last is compared in full
                lines.append(f"{ops[-1].words()} = {result_words(*result[:4])}")
                if differences:
                    lines += [f"    {d.what}: Linux {d.real}, model {d.model}" for d in differences]
                    lines += side_by_side(*pair.both())[:100]
                    what = ", ".join(d.what for d in differences)
                    finding = Finding(setting, executed, lines, what, len(executed))
                    return Report(number, tally, finding), executed, differences
            self._count_hits(pair, tally)
        return Report(number, tally), None, []

    def _count_hits(self, pair: Pair, tally: Tally) -> None:
        """Take over the branches that the program's model has counted."""
        if self.plan.count_branches:
            hits = pair.model.k["hits"]
            tally.hits = np.array(hits[: len(pair.model.branches)])
            hits[:] = 0

    def run(self, setting: Setting, ops: list[Op]) -> tuple[list[Op], list[Difference], list[str]]:
        """Run a given program up to a difference: what was done, the difference, and in words.

        Operations that must not be done in the state that they find are left out.
        """
        lines: list[str] = []
        executed: list[Op] = []
        if self.plan.bindings:
            self.models.forget()
        with Pair(setting, self.opened, self.models) as pair:
            for op in ops:
                if not permitted(op, pair.model.view(), pair.ground):
                    continue
                self.before(len(executed), op)
                executed.append(op)
                result, differences = pair.step(op)
                if differences:
                    theirs = {d.what: d.real for d in differences}.get("result")
                    shown = result_words(*result[:4])
                    lines.append(f"{op.words()} = {theirs or shown}")
                    lines += [f"    {d.what}: Linux {d.real}, model {d.model}" for d in differences]
                    lines += side_by_side(*pair.both())
                    return executed, differences, lines
                lines.append(f"{op.words()} = {result_words(*result[:4])}")
        return executed, [], lines

    def find(self, setting: Setting, ops: list[Op], first: list[Difference]) -> Finding:
        """Shrink a program that has shown the differences ``first``."""

        def shows(candidate: list[Op]) -> list[Op] | None:
            executed, differences, _ = self.run(setting, candidate)
            return executed if differences else None

        length = len(ops)
        if shows(ops) is not None:
            ops = shrink(ops, shows, self.plan.shrink_seconds)
        executed, differences, lines = self.run(setting, ops)
        what = ", ".join(d.what for d in differences)
        if not differences:
            what = "not seen again when the program was repeated"
            lines += [f"    {d.what}: Linux {d.real}, model {d.model}" for d in first]
        return Finding(setting, executed, lines, what, length)


def _kind(setting: Setting) -> str:
    """The setting without its seed."""
    named = [n for n, v in asdict(setting).items() if v is True and n != "thp"]
    return ", ".join([f"thp {'on' if setting.thp else 'off'}", *(named or ["plain"])])


def side_by_side(real: State, model: State) -> list[str]:
    """Both states, what differs marked."""
    left = _state_lines(real)
    right = _state_lines(model)
    lines = [f"      {'Linux':<58} model"]
    rows = sorted(set(left) | set(right), key=lambda row: row[0])
    for row in rows:
        ours, theirs = right.get(row, ""), left.get(row, "")
        mark = "  " if ours == theirs else "! "
        lines.append(f"    {mark}{theirs:<58} {ours}".rstrip())
    return lines


def _state_lines(state: State) -> dict[tuple[Any, ...], str]:
    """Lines of a state by a key that brings those about the same thing together."""
    lines: dict[tuple[Any, ...], str] = {}
    for n, (name, value) in enumerate(zip(COUNTERS, state.counters, strict=True)):
        lines[(0, n)] = f"{name} {value // 1024} kB"
    for row, line in zip(state.areas.tolist(), area_lines(state.areas), strict=True):
        lines[(1, row[0])] = line
    for row, line in zip(state.regions.tolist(), region_lines(state.regions), strict=True):
        lines[(2, row[0])] = line
    return lines


def _work(
    plan: Plan,
    worker: int,
    counter: Any,
    stop: Any,
    where: Any,
    reports: Any,
) -> None:
    """Take programs until there are none left.  In a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    position = np.frombuffer(where, "i8", 3, worker * _POSITION)

    def before(n: int, op: Op) -> None:
        position[1] = n
        position[2] += 1

    try:
        with files() as opened:
            runner = Runner(plan, opened, before)
            while not stop.is_set():
                with counter.get_lock():
                    number = counter.value
                    counter.value += 1
                if number >= plan.programs:
                    break
                position[0] = number
                reports.put(runner.program(number))
        reports.put((worker, ""))
    except Exception as error:
        reports.put((worker, f"{type(error).__name__}: {error}"))
        raise


def run_programs(plan: Plan, jobs: int = 1) -> Iterator[Report]:
    """Yield a report for each program, in the order in which they end.

    After a finding no further program is begun unless ``plan.keep_going``.  Ends its workers when
    it is closed.  Raises RuntimeError when a worker fails.
    """
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    stop = context.Event()
    where = context.RawArray("b", jobs * _POSITION)
    reports = context.Queue()

    def start(worker: int) -> Any:
        arguments = (plan, worker, counter, stop, where, reports)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        return process

    workers = {n: start(n) for n in range(jobs)}
    positions = np.frombuffer(where, "i8").reshape(jobs, -1)
    seen = [(0, time.monotonic())] * jobs
    try:
        while workers:
            try:
                found = reports.get(timeout=0.5)
            except queue.Empty:
                for n, process in list(workers.items()):
                    number, done, moves = positions[n].tolist()
                    if moves != seen[n][0]:
                        seen[n] = moves, time.monotonic()
                    elif not process.is_alive():
                        raise RuntimeError(f"a worker ended with {process.exitcode}") from None
                    elif moves and time.monotonic() - seen[n][1] > PATIENCE:
                        workers.pop(n).kill()
                        yield _hung(plan, number, done)
                        if plan.keep_going:
                            positions[n] = 0
                            workers[n] = start(n)
                        else:
                            stop.set()
                continue
            if isinstance(found, tuple):
                worker, problem = found
                if problem:
                    raise RuntimeError(problem)
                workers.pop(worker)
                continue
            if found.finding and not plan.keep_going:
                stop.set()
            yield found
    finally:
        stop.set()
        for process in workers.values():
            process.kill()
            process.join()


def _hung(plan: Plan, number: int, n: int) -> Report:
    """The report of a program whose operation ``n`` does not come back from the model."""
    with files() as opened:
        ops = Runner(plan, opened).operations(number, n + 1)
    tally = Tally(operations=n + 1, programs=1)
    lines = [op.words() for op in ops[-12:]]
    lines[-1] += " = ? (the model does not come back)"
    what = "the model does not come back"
    return Report(number, tally, Finding(plan.setting(number), ops, lines, what, n + 1))
