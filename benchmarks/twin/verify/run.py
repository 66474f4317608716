"""Run programs, each in a process of its own, in one or several workers; shrink what differs."""

import multiprocessing
import random
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allocators.base.operation import ALLOCATING
from benchmarks.twin.verify import directed
from benchmarks.twin.verify.compare import (
    Outcome,
    Pair,
    Setting,
    Twins,
    empty_blocks,
    row_lines,
)
from benchmarks.twin.verify.modes import MODES, TABLE, Generator
from benchmarks.twin.verify.operation import (
    CALLOC,
    LEAVE,
    USE,
    Op,
    dump,
    to_ops,
    to_rows,
)
from benchmarks.twin.verify.tally import Tally
from kernel.linux.verify.shrink import shrink

#: How often a program that differs is run again, when only page faults differ.
RERUNS = 3
#: Rows before the one that differs which are shown, at most.
_SHOWN = 40
#: Programs longer than this are shown but not shrunk.
_SHRINKABLE = 100_000
#: Seconds that the twin may take over one operation while programs are shrunk.
_PATIENCE = 5.0
#: Combinations of tunables that one run with ``random`` draws from: each is compiled.
COMBINATIONS = 6

_TUNABLES = {
    "tcache_count": (0, 1, 2, 3, 7, 20, 127),
    "tcache_max": (0, 24, 100, 512, 1032),
    "tcache_unsorted_limit": (0, 1, 3, 10),
    "mxfast": (0, 16, 40, 64, 128, 160),
    "mmap_threshold": (0, 4096, 65536, 100_000, 1 << 20, 32 << 20),
    "trim_threshold": (0, 4096, 65536, 1 << 20, 64 << 20),
    "top_pad": (0, 1, 4096, 65536, 1 << 20),
    "mmap_max": (0, 1, 3, 65536),
}
#: And where there are threads.
_OF_THREADS = {"arena_max": (1, 2, 3, 4), "arena_test": (1, 2, 8)}


@dataclass
class Finding:
    """A program that shows a difference, as short as it was found."""

    setting: Setting
    ops: list[Op]
    lines: list[str]  # the program and both states, for people
    what: str
    length: int  # operations before it was shrunk


def keep(path: Path, finding: Finding) -> None:
    """Store a finding's program."""
    setting = asdict(finding.setting) | {"tunables": dict(finding.setting.tunables)}
    dump(path, setting, finding.ops)


@dataclass
class Report:
    """What one program has come to."""

    number: int
    tally: Tally
    finding: Finding | None = None


@dataclass
class Plan:
    """What to run: ``operations`` of each mode.

    ``tunables``: fixed ones, before those of the modes; with ``vary`` others are drawn in every
    other program.  ``by_hand``: the directed programs come first.
    """

    allocator: str
    operations: int
    seed: int
    modes: tuple[str, ...] = tuple(MODES)
    tunables: dict[str, int] = field(default_factory=dict)
    vary: bool = False
    count_branches: bool = True
    keep_going: bool = False
    by_hand: bool = True  # the directed programs first
    shrink_seconds: float = 60
    bindings: dict[str, Any] = field(default_factory=dict)

    def setting(self, mode: str, number: int) -> Setting:
        """What program ``number`` of a mode runs under."""
        own = MODES[mode].tunables
        tunables = own[number % len(own)] | self.tunables
        if self.vary and number % 2:
            choice = random.Random(f"tunables {self.seed} {number // 2 % COMBINATIONS}")
            table = _TUNABLES | (_OF_THREADS if MODES[mode].threads > 1 else {})
            names = choice.sample(sorted(table), choice.randint(1, 4))
            drawn = {name: choice.choice(table[name]) for name in names}
            tunables = drawn | tunables
        return Setting(f"{self.seed}/{number}", mode, tunables)


class Runner:
    """Runs programs in this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.twins = Twins(
            plan.allocator, count_branches=plan.count_branches, bindings=plan.bindings
        )

    def compile(self) -> None:
        """Compile ahead what every program uses."""
        program = to_rows([Op(USE)])
        self.try_program(Setting("0/0", next(iter(MODES)), self.plan.tunables), program)

    def program(self, mode: str, number: int, most: int) -> Report:
        """Run program ``number`` of a mode, of at most ``most`` operations."""
        setting = self.plan.setting(mode, number)
        program = Generator(MODES[mode], setting.seed).program(most)
        return self.checked(setting, program, number)

    def directed(self, name: str) -> Report:
        """Run a program written by hand."""
        tunables = {**directed.PROGRAMS[name].tunables, **self.plan.tunables}
        setting = Setting(name, directed.MODE, tunables)
        return self.checked(setting, to_rows(directed.PROGRAMS[name].ops), 0)

    def checked(self, setting: Setting, program: np.ndarray, number: int) -> Report:
        """Run a program; again where the host may have interfered."""
        mode = setting.mode
        tally = Tally()
        for reruns in range(RERUNS + 1):
            outcome = self.try_program(setting, program, tally if not reruns else None)
            tally.reruns = 0 if outcome.what else reruns
            # A page of the C library may have been taken away: that does not come again.
            if not outcome.what or "faults" not in outcome.what:
                break
        tally.count(mode, program, outcome)
        finding = self.find(setting, program, outcome) if outcome.what else None
        return Report(number, tally, finding)

    def try_program(
        self,
        setting: Setting,
        program: np.ndarray,
        tally: Tally | None = None,
        **options: Any,
    ) -> Outcome:
        """Run a program; add the branches taken to ``tally``."""
        if self.plan.bindings:
            self.twins.forget()
        with Pair(self.twins, setting) as pair:
            blocks = empty_blocks(program, TABLE)
            outcome = pair.run(program, blocks, **options)
            if tally is not None and self.plan.count_branches:
                hits = pair.k["hits"]
                taken = np.array(hits[: len(pair.twin.branches)])
                tally.hits = taken if tally.hits is None else tally.hits + taken
            pair.k["hits"][:] = 0
        if outcome.row >= 0 and "careful" not in options and outcome.what.startswith("libc:"):
            return self.try_program(setting, program, careful=outcome.done, **options)
        return outcome

    def find(self, setting: Setting, program: np.ndarray, first: Outcome) -> Finding:
        """Shrink a program that has shown the difference ``first``."""
        length = len(program) if first.row < 0 else first.row + 1
        ops = to_ops(program[:length])

        def shows(candidate: list[Op]) -> list[Op] | None:
            options = {"patience": _PATIENCE, "at_end": first.row < 0}
            outcome = self.try_program(setting, to_rows(candidate), **options)
            if not outcome.what:
                return None
            return candidate if outcome.row < 0 else candidate[: outcome.row + 1]

        if length <= _SHRINKABLE and self.plan.shrink_seconds:
            if (again := shows(ops)) is not None:
                ops = shrink(again, shows, self.plan.shrink_seconds, variants)
        what, lines = self.told(setting, ops, at_end=first.row < 0)
        if not what:
            what = "not seen again when the program was repeated"
            lines.append(f"  {first.what}")
        return Finding(setting, ops, lines, what, length)

    def told(
        self, setting: Setting, ops: list[Op], *, at_end: bool = True
    ) -> tuple[str, list[str]]:
        """Run a program; what differs, and in words what was done up to it and both states."""
        if self.plan.bindings:
            self.twins.forget()
        program = to_rows(ops)
        with Pair(self.twins, setting) as pair:
            outcome = pair.run(program, empty_blocks(program, TABLE), careful=0, at_end=at_end)
            row = outcome.row
            n = row if row >= 0 else outcome.done
            lines = [f"  … {n - _SHOWN} operations"] if n > _SHOWN else []
            for i in range(max(n - _SHOWN, 0), n):
                lines += [f"  {line}" for line in row_lines(ops[i], outcome.expected[i], None)]
            if row >= 0:
                x, y = outcome.expected[row], outcome.actual[row]
                if outcome.what.startswith(("libc:", "the twin")):
                    lines.append(f"  {ops[row].words()}  = {outcome.what}")
                else:
                    lines += [f"! {line}" for line in row_lines(ops[row], x, y)]
                # Only without operations behind it is the twin where the process is.
                if row == len(ops) - 1 and not outcome.what.startswith(("libc:", "the twin")):
                    lines += pair.states()
            else:
                lines += outcome.lines
        return outcome.what, lines


def variants(op: Op) -> Iterator[Op]:
    """Simpler forms of an operation, the simplest first.  Each is strictly simpler."""
    if op.use != LEAVE and op.kind != USE:
        yield op._replace(use=LEAVE, begin=0, length=0)
    if op.use != LEAVE and op.length > 8:
        yield op._replace(length=8)
    if op.begin > 0:
        yield op._replace(begin=0)
    if op.kind == CALLOC and op.extra > 1:
        yield op._replace(extra=1)
    if op.kind in ALLOCATING:
        for size in (
            24,
            op.request // 2 // 4096 * 4096 - 8,
            (op.request // 16) * 16 - 8,
            op.request - 16,
        ):
            if 24 <= size < op.request:
                yield op._replace(request=size)


# --- Many programs --------------------------------------------------------------------------------

_runner: Runner


def _begin(plan: Plan) -> None:
    """Set a worker up."""
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _runner = Runner(plan)


def _work(mode: str, number: int, most: int) -> Report:
    return _runner.program(mode, number, most)


def run_programs(plan: Plan, jobs: int = 1) -> Iterator[Report]:
    """Yield a report for each program, until ``plan.operations`` of each mode are compared.

    After a finding no further program is begun unless ``plan.keep_going``.  Raises RuntimeError
    when a worker dies.
    """
    runner = Runner(plan)
    runner.compile()  # the workers find it in the cache
    run = runner.program
    for name in directed.PROGRAMS if plan.by_hand else ():
        report = runner.directed(name)
        yield report
        if report.finding and not plan.keep_going:
            return
    if jobs == 1:
        for mode in plan.modes:
            left, number = plan.operations, 0
            while left > 0:
                report = run(mode, number, left)
                # What comes after an end that both sides agree on is not compared.
                left -= report.tally.asked if report.finding else report.tally.operations
                number += 1
                yield report
                if report.finding and not plan.keep_going:
                    return
        return
    yield from _in_parallel(plan, jobs)


def _in_parallel(plan: Plan, jobs: int) -> Iterator[Report]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, _begin, (plan,)) as pool:
        try:
            for mode in plan.modes:
                yield from _one_mode(plan, pool, jobs, mode)
        except _Stop:
            pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Stop(Exception):
    """A finding has ended the run."""


def _one_mode(plan: Plan, pool: ProcessPoolExecutor, jobs: int, mode: str) -> Iterator[Report]:
    """The programs of a mode.  How long each is is known from its seed, before it is run."""
    left, number, waiting = plan.operations, 0, set()
    stop = False
    while left > 0 or waiting:
        while left > 0 and len(waiting) < 2 * jobs and not stop:
            length = len(Generator(MODES[mode], plan.setting(mode, number).seed).program(left))
            waiting.add(pool.submit(_work, mode, number, left))
            left -= length
            number += 1
        if not waiting:
            break
        done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            report = future.result()
            yield report
            if not report.finding:  # both sides may have ended before the program did
                left += report.tally.asked - report.tally.operations
            stop = stop or (report.finding is not None and not plan.keep_going)
    if stop:
        raise _Stop
