"""Find an order of a space's calls in which every result of the model is the logged one.

A call may have taken effect at any time between its entry and its exit.  The search is depth-first:
it makes one call at a time, earliest exit first, and saves a choice wherever another call could
come next.  When a result differs, it backtracks to the latest choice.  A state that it has reached
before with the same calls remaining is not tried again.  If no order fits, the search reports the
difference at which the longest path stopped, applies the effect that the call had on Linux, and
continues after it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from kernel import uapi
from kernel.linux.replay import table
from kernel.linux.replay.log import NEVER
from kernel.linux.replay.model import COLUMNS, ReplayModel, SavedState, without_limits
from kernel.linux.replay.plan import PlannedCall

#: Number of calls without progress after which the search reports a difference.
MAX_CALLS_WITHOUT_PROGRESS = 50_000
#: Largest number of saved choices, and of bytes of their states; the oldest are dropped first.
MAX_CHOICES, MAX_CHOICE_BYTES = 5000, 256 << 20
#: Largest number of states tried for a fork that overlapped with other calls.
FORK_STATES = 64

#: Function that returns the first difference of a final state, or None if it agrees.
FinalCheck = Callable[[ReplayModel], object | None]


@dataclass(slots=True)
class CallDifference:
    """Call whose logged result no order of the calls produces."""

    op: PlannedCall
    got: int  # the model's result
    before: SavedState  # the model before the call
    after_model: SavedState  # after the call, as the model makes it
    after_linux: SavedState  # after the call, with the effect on Linux as far as it is known
    tried: int  # calls that the search had made so far


@dataclass
class SearchResult:
    """Result of replaying a space's calls."""

    state: SavedState  # after the last call
    order: list[int] = field(default_factory=list)  # indices of ops, in the order found
    differences: list[CallDifference] = field(default_factory=list)
    forks: dict[int, SavedState] = field(default_factory=dict)  # state copied, by index of op
    tried: int = 0  # calls made, including those undone by backtracking
    overlaps: int = 0  # points where several calls could come next
    reordered: int = 0  # calls that are not in the order of their exits
    final_difference: object | None = None  # result of the final check


@dataclass(slots=True)
class _Position:
    """Point on a path: the ops below index ``low`` are done, and above it those in ``done``."""

    low: int
    done: frozenset[int]
    length: int  # of the order


@dataclass(slots=True)
class _Choice:
    """Point where several calls could come next, with the untried ones."""

    state: SavedState
    position: _Position
    rest: list[tuple[int, int]]  # index of op, index of row


@dataclass(slots=True)
class _Failure:
    """End of the longest path so far, and the difference that stopped it there."""

    position: _Position
    fixed: int  # length of the part of the order that backtracking cannot change
    tail: list[int]  # the order after that part
    before: SavedState
    index: int  # of the op; -1: the final check
    got: int
    final_difference: object | None = None


class Search:
    """Search for an order of one space's ops, which are sorted by entry."""

    def __init__(
        self, model: ReplayModel, ops: list[PlannedCall], final_check: FinalCheck | None = None
    ) -> None:
        self.model = model
        self.all = ops
        # A call that never returned may or may not have taken effect: it is tried at the end.
        self.unreturned = [op for op in ops if op.step.exit == NEVER]
        self.original_index = [i for i, op in enumerate(ops) if op.step.exit != NEVER]
        self.ops = [ops[i] for i in self.original_index]
        self.final_check = final_check
        self.entry = [op.step.entry for op in self.ops]
        self.exit = [op.step.exit for op in self.ops]
        self.rows = np.zeros((len(self.ops), COLUMNS), "i8")
        self.run_end = self._find_run_ends()
        self.order: list[int] = []
        self.low = 0
        self.done: set[int] = set()
        self.choices: deque[_Choice] = deque()
        self.choice_bytes = 0
        self.seen: set[tuple[int, frozenset[int], bytes]] = set()
        self.failure: _Failure | None = None
        self.calls_without_progress = 0
        self.outcome = SearchResult(state=model.save())

    def _find_run_ends(self) -> list[int]:
        """Return for each op the end index of the run of non-overlapping calls that it begins.

        The run is empty (the end is the op's own index) if the op overlaps another, is not
        compared, is emulated, or has several rows.
        """
        n = len(self.ops)
        latest = -1
        alone = []
        for i in range(n):
            following = self.entry[i + 1] if i + 1 < n else NEVER
            alone.append(latest < self.entry[i] and self.exit[i] < following)
            latest = max(latest, self.exit[i])
        ends = [0] * n
        for i in reversed(range(n)):
            op = self.ops[i]
            plain = alone[i] and op.compared and op.emulate is None and len(op.rows) == 1
            if plain:
                self.rows[i, :-1] = op.rows[0]
            ends[i] = (ends[i + 1] if i + 1 < n and ends[i + 1] > i + 1 else i + 1) if plain else i
        return ends

    def run(self, state: SavedState) -> SearchResult:
        """Search from ``state`` to the end; record differences and continue after them."""
        self.model.load(state)
        while not self._explore():
            self._accept_difference()
        outcome = self.outcome
        outcome.state = self.model.save()
        outcome.order = [self.original_index[i] for i in self.order]
        exits = [self.exit[i] for i in self.order]
        outcome.reordered = sum(a > b for a, b in pairwise(exits))
        return outcome

    # --- one path --------------------------------------------------------------------------------

    def _explore(self) -> bool:
        """Search from the current state; return False if no order leads to the end."""
        while True:
            if self.low == len(self.ops):
                if self._final_state_agrees() or not self._backtrack():
                    return self.failure is None
            elif self.run_end[self.low] > self.low:
                if not self._replay_run() and not self._backtrack():
                    return False
            elif not self._try_next() and not self._backtrack():
                return False

    def _position(self) -> _Position:
        return _Position(self.low, frozenset(self.done), len(self.order))

    def _replay_run(self) -> bool:
        """Make the run of non-overlapping calls that begins here; False if a result differs."""
        first, last = self.low, self.run_end[self.low]
        before = self.model.save()
        stop = self.model.replay(self.rows, first, last)
        self.outcome.tried += stop - first
        self.order.extend(range(first, stop))
        self.low = stop
        if stop == last:
            self._note_progress()
            return True
        got = int(self.rows[stop, -1])
        self.model.load(before)
        self.model.replay(self.rows, first, stop)
        self._fail(stop, got)
        return False

    def _candidates(self) -> list[tuple[int, int]]:
        """Return the ops that may come next with each of their rows: forks first, then by exit."""
        earliest = NEVER
        found = []
        i = self.low
        while i < len(self.ops) and self.entry[i] < earliest:
            if i not in self.done:
                found.append(i)
                earliest = min(earliest, self.exit[i])
            i += 1
        found.sort(key=lambda i: (self.ops[i].step.child is None, self.exit[i]))
        return [(i, v) for i in found for v in range(max(1, len(self.ops[i].rows)))]

    def _try_next(self) -> bool:
        """Make the first call that may come next; False if it differs or was tried before."""
        candidates = self._candidates()
        if len(candidates) > 1:
            choice = _Choice(self.model.save(), self._position(), candidates[1:])
            key = (choice.position.low, choice.position.done, choice.state.key)
            if key in self.seen:
                return False
            self.seen.add(key)
            self._remember(choice)
        return self._apply(*candidates[0])

    def _remember(self, choice: _Choice) -> None:
        self.outcome.overlaps += 1
        self.choices.append(choice)
        self.choice_bytes += choice.state.vma.nbytes
        while self.choice_bytes > MAX_CHOICE_BYTES or len(self.choices) > MAX_CHOICES:
            self.choice_bytes -= self.choices.popleft().state.vma.nbytes

    def _backtrack(self) -> bool:
        """Make an untried call of the latest choice; False if none is left or progress stalls."""
        while self.choices and self.calls_without_progress < MAX_CALLS_WITHOUT_PROGRESS:
            choice = self.choices[-1]
            if not choice.rest:
                self.choices.pop()
                self.choice_bytes -= choice.state.vma.nbytes
                continue
            self.model.load(choice.state)
            self._return_to(choice.position)
            if self._apply(*choice.rest.pop(0)):
                return True
        return False

    def _return_to(self, position: _Position) -> None:
        self.low, self.done = position.low, set(position.done)
        del self.order[position.length :]

    def _apply(self, index: int, variant: int) -> bool:
        """Make one call by its row ``variant``; if the result differs, undo it, return False."""
        op = self.ops[index]
        self.outcome.tried += 1
        self.calls_without_progress += 1
        if op.step.child is not None:
            self.outcome.forks[self.original_index[index]] = self.model.save()
        elif not op.compared:
            self._apply_uncompared(op)
        else:
            before = self.model.save()
            if op.emulate is not None:
                got = op.emulate(self.model, op.call)
            else:
                got = self.model.call(op.rows[variant])
            expected = op.call.result if op.emulate is not None else op.rows[variant][7]
            if got != expected:
                self.model.load(before)
                self._fail(index, got)
                return False
        self._mark_done(index)
        return True

    def _apply_uncompared(self, op: PlannedCall) -> None:
        if op.emulate is not None:
            op.emulate(self.model, op.call)
        for row in op.rows[:1]:
            self.model.call(without_limits(row))

    def _mark_done(self, index: int) -> None:
        self.order.append(index)
        self.done.add(index)
        while self.low in self.done:
            self.done.discard(self.low)
            self.low += 1
        self._note_progress()

    def _note_progress(self) -> None:
        """Reset the count of calls without progress if this path is the longest so far."""
        if self.failure is None or len(self.order) > self.failure.position.length:
            self.failure = None
            self.calls_without_progress = 0

    def _fail(self, index: int, got: int, difference: object | None = None) -> None:
        if self.failure is None or len(self.order) > self.failure.position.length:
            before = self.model.save()
            fixed = self.choices[0].position.length if self.choices else len(self.order)
            tail = self.order[fixed:]
            self.failure = _Failure(self._position(), fixed, tail, before, index, got, difference)

    # --- the end ---------------------------------------------------------------------------------

    def _final_state_agrees(self) -> bool:
        """Return True if the final state agrees, with or without the calls that never returned."""
        if self.final_check is None:
            self.failure = None
            return True
        verdict = self.final_check(self.model)
        if verdict is not None and self.unreturned:
            before = self.model.save()
            for op in self.unreturned:
                self._apply_uncompared(op)
            if self.final_check(self.model) is None:
                verdict = None
            else:
                self.model.load(before)
        if verdict is not None:
            self._fail(-1, 0, verdict)
            return False
        self.failure = None
        self.outcome.final_difference = None
        return True

    # --- differences -----------------------------------------------------------------------------

    def _accept_difference(self) -> None:
        """Record the difference that no order avoids; apply Linux's result to continue after it."""
        failure = self.failure
        assert failure is not None
        self.failure = None
        self.choices.clear()
        self.choice_bytes = 0
        self.seen.clear()
        self.calls_without_progress = 0
        self.model.load(failure.before)
        self.order[failure.fixed :] = failure.tail
        self._return_to(failure.position)
        if failure.index < 0:
            self.outcome.final_difference = failure.final_difference
            self.final_check = None  # report it only once
            return
        op = self.ops[failure.index]
        if op.fallback_reason:
            op.reason, op.rows = op.fallback_reason, []  # a refused call has no effect
            self._mark_done(failure.index)
            return
        self._apply_as_model(op)
        after = self.model.save()
        self.model.load(failure.before)
        self._apply_as_linux(op)
        self.outcome.differences.append(
            CallDifference(
                op, failure.got, failure.before, after, self.model.save(), self.outcome.tried
            )
        )
        self._mark_done(failure.index)

    def _apply_as_model(self, op: PlannedCall) -> None:
        if op.emulate is None:
            self.model.call(op.rows[0])

    def _apply_as_linux(self, op: PlannedCall) -> None:
        """Apply the effect that a call had on Linux, as its logged result shows."""
        if op.emulate is not None:
            return
        row = without_limits(op.rows[0])
        number, *args = row[:7]
        expected = row[7]
        if expected < 0:
            return
        if number == table.NUMBERS["mmap"]:
            args[0] = expected
            args[3] = args[3] & ~uapi.MAP_FIXED_NOREPLACE | uapi.MAP_FIXED
        elif number == table.NUMBERS["mremap"] and expected != args[0]:
            args[3] |= uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED
            args[4] = expected
        elif number == table.NUMBERS["brk"]:
            args[0] = expected
        self.model.call((number, *args, *row[7:]))
        if number == table.NUMBERS["brk"]:
            self.model.k.mm.brk = expected


def fork_states(
    model: ReplayModel, ops: list[PlannedCall], outcome: SearchResult, index: int
) -> list[SavedState]:
    """Return the states that the fork ``ops[index]`` may have copied, the most likely first.

    The fork may have happened after any of the calls that it overlapped with, in the order found.
    """
    state = outcome.forks[index]
    states = [state]
    place = outcome.order.index(index)
    later = [ops[i] for i in outcome.order[place + 1 :] if ops[i].step.entry < ops[index].step.exit]
    model.load(state)
    for op in later[: FORK_STATES - 1]:
        if op.step.child is None and op.emulate is None:
            for row in op.rows[:1]:
                model.call(row)
            states.append(model.save())
    return states
