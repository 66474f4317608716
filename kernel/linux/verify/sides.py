"""The two sides of the comparison, a real process and the model, under whole programs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernel.differential.pool import TaskProgress
from kernel.differential.subject import Outcome, Program
from kernel.differential.tally import Tally
from kernel.linux.host.observe import pages_out, thp_counters
from kernel.linux.state import Difference, Models, side_by_side
from kernel.linux.verify import directed
from kernel.linux.verify.compare import File, Pair, ProcessSetting
from kernel.linux.verify.generator import Generator, permitted
from kernel.linux.verify.model import Model, Result
from kernel.linux.verify.operation import Op, errno_name, result_words
from kernel.types import SIGSYS

#: Prefix of the seed of a handwritten program, before its name.
DIRECTED = "directed/"
#: Counters of the host that change if it collapses huge pages or fails to allocate them.
_INTERFERENCE = ("thp_collapse_alloc", "thp_fault_fallback", "thp_fault_fallback_charge")
#: Maximum number of lines of both states after a handwritten program.
_MAX_LINES = 100


class ProcessSides:
    """Both sides in one process.  ``bindings`` replace functions and constants of the model."""

    def __init__(
        self,
        opened: list[File],
        progress: TaskProgress,
        *,
        count_branches: bool = False,
        bindings: Mapping[str, Any] | None = None,
    ) -> None:
        self._opened = opened
        self._progress = progress
        self._count_branches = count_branches
        self._broken = bool(bindings)
        self._models = Models(
            lambda config: Model(config, count_branches=count_branches, **bindings or {})
        )

    def run(self, program: Program) -> Outcome:
        """Run a program; each random operation is generated from the model's current state."""
        counters = thp_counters()
        if program.setting.seed.startswith(DIRECTED):
            outcome = self._run_handwritten(program.setting)
        else:
            outcome = self._random(program)
        if outcome.what:
            after = thp_counters()
            collapsed = any(after.get(n, 0) != counters.get(n, 0) for n in _INTERFERENCE)
            outcome.suspect = collapsed or pages_out()
        return outcome

    def _random(self, program: Program) -> Outcome:
        setting = program.setting
        tally = Tally(programs=1, asked=program.max_operations)
        tally.tables["settings"][setting.kind()] += 1
        outcome = Outcome(tally)
        with self._pair(setting) as pair:
            generator = Generator(setting.seed, pair.ground)
            for n in range(program.max_operations):
                op = generator.next(pair.model.view())
                self._progress.start_operation(n)
                outcome.ops.append(op)
                result, found = pair.step(op)
                if result.sig == SIGSYS:
                    # The random layout does not fit into the model's window: nothing to compare.
                    tally.numbers["outside"] += 1
                    break
                _count(tally, op, result)
                if found:
                    _differ(outcome, found)
                    break
            self._count_hits(pair, tally)
        return outcome

    def _run_handwritten(self, setting: ProcessSetting) -> Outcome:
        """Run a handwritten program, which needs no shrinking.

        Its name identifies it and it adapts to the host, so its operations are not stored.
        """
        tally = Tally(programs=1)
        tally.tables["settings"]["written by hand"] += 1
        outcome = Outcome(tally, final=True)
        with self._pair(setting) as pair:
            for step in directed.PROGRAMS[setting.seed.removeprefix(DIRECTED)](pair.ground):
                ops = step.ops if isinstance(step, directed.Crowd) else [step]
                self._progress.start_operation(outcome.length)
                outcome.length += len(ops)
                result, found = pair.crowd(ops) if len(ops) > 1 else pair.step(ops[0])
                _count(tally, ops[-1], result)  # only the last one of a crowd is fully compared
                outcome.lines.append(f"{ops[-1].describe()} = {result_words(*result[:4])}")
                if found:
                    _differ(outcome, found)
                    outcome.lines += side_by_side(*pair.both())[:_MAX_LINES]
                    break
            self._count_hits(pair, tally)
        tally.asked = tally.operations
        return outcome

    def repeat(
        self,
        setting: ProcessSetting,
        ops: list[Op],
        like: Outcome | None = None,
        *,
        verbose: bool = False,
    ) -> Outcome:
        """Run given operations, except those that are not permitted in the state they meet."""
        if self._broken:
            self._models.forget()
        if not ops and setting.seed.startswith(DIRECTED):
            return self._run_handwritten(setting)
        outcome = Outcome(Tally(programs=1))
        with self._pair(setting) as pair:
            for op in ops:
                if not permitted(op, pair.model.view(), pair.ground):
                    continue
                self._progress.start_operation(len(outcome.ops))
                outcome.ops.append(op)
                result, found = pair.step(op)
                theirs = {d.what: d.real for d in found}.get("result")
                shown = theirs or result_words(*result[:4])
                outcome.lines.append(f"{op.describe()} = {shown}")
                if found:
                    _differ(outcome, found)
                    outcome.lines += side_by_side(*pair.both()) if verbose else []
                    break
        return outcome

    def operations(self, program: Program, count: int) -> list[Op]:
        """Return the first ``count`` operations of a program without executing the last one."""
        made: list[Op] = []
        setting = program.setting
        with self._pair(setting) as pair:
            if setting.seed.startswith(DIRECTED):
                return directed.operations(setting.seed.removeprefix(DIRECTED), pair.ground)[:count]
            generator = Generator(setting.seed, pair.ground)
            for _ in range(count):
                made.append(generator.next(pair.model.view()))
                if len(made) < count:
                    pair.step(made[-1])
        return made

    def _pair(self, setting: ProcessSetting) -> Pair:
        return Pair(setting, self._opened, self._models)

    def _count_hits(self, pair: Pair, tally: Tally) -> None:
        """Move the model's branch counts to ``tally``."""
        if self._count_branches:
            hits = pair.model.k["hits"]
            tally.hits = np.array(hits[: len(pair.model.branches)])
            hits[:] = 0


def _count(tally: Tally, op: Op, result: Result) -> None:
    """Count one operation."""
    tally.operations += 1
    if op.label == directed.LABEL:
        tally.numbers["written_by_hand"] += 1
    else:
        tally.tables["kinds"][op.label] += 1
    tally.numbers["minor_faults"] += result.minflt
    errnos = tally.tables["errnos"]
    if result.sig:
        errnos["SIGSEGV" if result.sig == 11 else f"signal {result.sig}"] += 1
    elif -4096 < result.value < 0:
        errnos[errno_name(result.value)] += 1
    else:
        errnos["ok"] += 1


def _differ(outcome: Outcome, found: list[Difference]) -> None:
    """Record that the last operation shows the differences ``found``."""
    outcome.length = outcome.length or len(outcome.ops)
    outcome.index = outcome.length - 1
    outcome.what = ", ".join(d.what for d in found)
    outcome.lines += [f"    {d.what}: Linux {d.real}, model {d.model}" for d in found]
