"""Execution of programs on the C library and the twin, for the engine of differential testing."""

from typing import Any

import numpy as np

from allocators.base.operation import ALLOCATING
from benchmarks.twin.verify import directed, trace
from benchmarks.twin.verify.compare import (
    LOCKED,
    HeapPair,
    HeapSetting,
    Played,
    Twins,
    empty_blocks,
    row_lines,
)
from benchmarks.twin.verify.modes import MODES, TABLE, Generator
from benchmarks.twin.verify.operation import NAMES, Row, to_ops, to_rows
from kernel.differential.pool import TaskProgress
from kernel.differential.subject import Outcome, Program
from kernel.differential.tally import Tally

#: Maximum number of rows shown before the one that differs, in a program and in a trace.
_SHOWN, _SHOWN_OF_TRACE = 40, 12
#: A difference within this many events of a trace is reduced to a shorter program.
_SHRINKABLE = 60_000
#: Timeout of the twin for one operation while programs are shrunk, in seconds.
_PATIENCE = 5.0


class HeapSides:
    """Both sides, in one worker process.

    ``touch`` and ``threads``: how a trace's new blocks are touched, and whether its threads run as
    threads (:mod:`benchmarks.twin.verify.trace`).
    """

    def __init__(
        self, twins: Twins, progress: TaskProgress, *, touch: str = "all", threads: bool = False
    ) -> None:
        self.twins = twins
        self._progress = progress
        self._touch = touch
        self._threads = threads

    def run(self, program: Program) -> Outcome:
        """Run a program, after generating all of its operations."""
        setting = program.setting
        if setting.mode == trace.MODE:
            return self._trace(setting)
        rows = self._rows(program)
        tally = Tally(programs=1, asked=len(rows))
        found = self._compared(setting, rows, tally)
        _count(tally, setting.mode, rows, found)
        return self._outcome(tally, rows, found)

    def _rows(self, program: Program) -> np.ndarray:
        setting = program.setting
        if setting.mode == directed.MODE:
            return to_rows(directed.PROGRAMS[setting.seed].ops)
        return Generator(MODES[setting.mode], setting.seed).program(program.max_operations)

    def operations(self, program: Program, count: int) -> list[Row]:
        """Return the first ``count`` operations of a program."""
        return to_ops(self._rows(program)[:count])

    def _compared(
        self, setting: HeapSetting, rows: np.ndarray, tally: Tally | None = None, **how: Any
    ) -> Played:
        """Run ``rows`` on both sides; add the branch counts to ``tally``."""
        with self._pair(setting) as pair:
            found = pair.run(rows, empty_blocks(rows, TABLE), **how)
            self._take_hits(pair, tally)
        if found.row >= 0 and "careful" not in how and found.what.startswith("libc:"):
            return self._compared(setting, rows, careful=found.done, **how)
        return found

    def _pair(self, setting: HeapSetting) -> HeapPair:
        if self.twins.bindings:
            self.twins.models.forget()
        return HeapPair(self.twins, setting)

    def _take_hits(self, pair: HeapPair, tally: Tally | None) -> None:
        hits = pair.k["hits"]
        if tally is not None and pair.twin.branches:
            tally.add_hits(np.array(hits[: len(pair.twin.branches)]))
        hits[:] = 0

    def _outcome(self, tally: Tally, rows: np.ndarray, found: Played) -> Outcome:
        if not found.what:
            return Outcome(tally)
        self._progress.replace_worker = self._progress.replace_worker or found.what == LOCKED
        length = len(rows) if found.row < 0 else found.row + 1
        return Outcome(
            tally,
            to_ops(rows[:length]),
            found.what,
            found.row,
            length,
            [f"  {found.what}"],
            # The host may have reclaimed a page of the C library: such a difference is not stable.
            suspect="faults" in found.what,
        )

    def repeat(
        self,
        setting: HeapSetting,
        ops: list[Row],
        like: Outcome | None = None,
        *,
        verbose: bool = False,
    ) -> Outcome:
        """Run given operations; compare the final states only if ``like`` differs in them."""
        at_end = like is None or like.index < 0
        rows = to_rows(ops)
        if verbose:
            return self._described(setting, rows, ops, at_end=at_end)
        found = self._compared(setting, rows, patience=_PATIENCE, at_end=at_end)
        return self._outcome(Tally(), rows, found)

    def _described(
        self, setting: HeapSetting, rows: np.ndarray, ops: list[Row], *, at_end: bool
    ) -> Outcome:
        """Run operations and list those up to a difference, and both states."""
        with self._pair(setting) as pair:
            found = pair.run(rows, empty_blocks(rows, TABLE), careful=0, at_end=at_end)
            row = found.row
            n = row if row >= 0 else found.done
            lines = [f"  … {n - _SHOWN} operations"] if n > _SHOWN else []
            for i in range(max(n - _SHOWN, 0), n):
                lines += [f"  {line}" for line in row_lines(ops[i], found.expected[i], None)]
            ended = found.what.startswith(("libc:", "the twin"))
            if row >= 0 and ended:
                lines.append(f"  {ops[row].describe()}  = {found.what}")
            elif row >= 0:
                x, y = found.expected[row], found.actual[row]
                lines += [f"! {line}" for line in row_lines(ops[row], x, y)]
                # The states belong to this row only if no operations follow it.
                lines += pair.states() if row == len(ops) - 1 else []
            lines += found.lines
        outcome = self._outcome(Tally(), rows, found)
        outcome.lines, outcome.length = lines, len(ops)
        return outcome

    # --- traces ---------------------------------------------------------------------------------

    def _trace(self, setting: HeapSetting) -> Outcome:
        """Run a trace, piece by piece.  Raises Mistake if it cannot be run."""
        pieces = trace.Pieces(setting.seed, self._touch, threads=self._threads)
        tally = Tally(programs=1)
        outcome = Outcome(tally)
        blocks = pieces.blocks()
        kept: list[np.ndarray] = []
        with self._pair(setting) as pair:
            for piece in pieces:
                self._progress.start_operation(piece.before)
                found = pair.run(piece.rows, blocks, at_end=piece.last)
                _count(tally, setting.mode, piece.rows, found)
                if found.what:
                    whole = piece.before < _SHRINKABLE
                    outcome = self._of_trace(tally, kept if whole else None, piece, found)
                    break
                if piece.before < _SHRINKABLE:
                    kept.append(piece.rows)
            self._take_hits(pair, tally)
        tally.asked = pieces.total
        tally.tables["traces"][setting.seed] = tally.operations
        return outcome

    def _of_trace(
        self, tally: Tally, kept: list[np.ndarray] | None, piece: trace.Piece, found: Played
    ) -> Outcome:
        """Report a difference in a piece of a trace.

        ``kept``: the pieces before, from which a shorter program can be made; None if there are too
        many events, and only the operations just before the difference are listed.
        """
        row = found.row if found.row >= 0 else len(piece.rows) - 1
        event = piece.before + int(piece.event[row])
        rows = np.concatenate([*(kept or []), piece.rows[: row + 1]])
        outcome = self._outcome(tally, rows, found)
        outcome.ops, outcome.what = to_ops(rows), f"{found.what} at event {event}"
        outcome.index = len(rows) - 1 if found.row >= 0 else -1
        outcome.length = len(rows) if kept is not None else event + 1
        ops = outcome.ops[-_SHOWN_OF_TRACE - 1 :]
        first = row + 1 - len(ops)
        lines = []
        for i, op in enumerate(ops, first):
            differs = i == found.row
            lines += row_lines(op, found.expected[i], found.actual[i] if differs else None)
        context = ["  in the trace:", *(f"  {line}" for line in lines + found.lines)]
        if kept is None:
            outcome.final, outcome.ops, outcome.lines = True, ops, context[1:]
        else:
            outcome.context = [*context, "  shortened:"]
        return outcome


def _count(tally: Tally, mode: str, rows: np.ndarray, found: Played) -> None:
    """Add the counts of a program, or of a piece of a trace, to ``tally``."""
    n = found.done + (found.row >= 0)
    tally.operations += n
    tally.numbers["programs_equal"] = int(not found.what)
    tally.tables["modes"][mode] += n
    kinds = rows["kind"][:n]
    for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
        tally.tables["kinds"][NAMES[kind]] += int(count)
    x = found.expected[:n]
    tally.numbers["minor_faults"] += int(x.minflt.sum() + x.use_minflt.sum())
    tally.numbers["break_moved"] += int((np.diff(x.brk) != 0).sum())
    makes = np.isin(kinds, ALLOCATING)
    tally.numbers["refused"] += int((makes & (x.value == 0) & (x.request != 0)).sum())
