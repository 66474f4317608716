"""Find an order of a space's calls in which every answer is the one that the log shows.

A call may have taken effect at any moment between its entry and its exit.  The search goes ahead
one call at a time, earliest exit first, and remembers where others might have come before; an
answer that does not fit sends it back to the latest such place.  States that were met before, with
the same calls still to come, are not tried again.  Where no order fits, the path that got furthest
tells the difference; the call's real effect is put in place and the search goes on behind it.
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

#: Calls that may be made in vain before the search gives a difference up as real.
PATIENCE = 50_000
#: Places where another order was possible that are kept, and bytes of their states: the oldest go
#: first.
PLACES, MEMORY = 5000, 256 << 20
#: States tried for a fork that overlapped with other calls.
FORK_STATES = 64

#: The first thing that a final state has against it, or None.
FinalCheck = Callable[[ReplayModel], object | None]


@dataclass(slots=True)
class Unexplained:
    """An answer that no order explains."""

    op: PlannedCall
    got: int
    before: SavedState  # the model's, when it was asked
    after: SavedState  # the model's own, having answered
    adopted: SavedState  # as Linux has answered, where that could be imitated
    orders: int  # orders that were tried


@dataclass
class SearchResult:
    """What came of a space's calls."""

    state: SavedState
    order: list[int] = field(default_factory=list)  # indices of ops
    differences: list[Unexplained] = field(default_factory=list)
    forks: dict[int, SavedState] = field(default_factory=dict)  # by index of op
    tried: int = 0  # calls made, in vain or not
    overlaps: int = 0  # places where several orders were possible
    reordered: int = 0  # calls whose order is not that of their exits
    final: object | None = None  # what the final check said


@dataclass(slots=True)
class _Place:
    """How far a path has come: all below ``low`` is done, and ``done`` beyond it."""

    low: int
    done: frozenset[int]
    length: int  # of the order


@dataclass(slots=True)
class _Choice:
    """A place where several calls may come next, and those not tried yet."""

    state: SavedState
    place: _Place
    rest: list[tuple[int, int]]


@dataclass(slots=True)
class _Failure:
    """The furthest that any path has come, and what stopped it there."""

    place: _Place
    fixed: int  # so much of the order no path can change any more
    tail: list[int]  # the order from there on
    before: SavedState
    index: int  # of the op; -1: the final check
    got: int
    final: object | None = None


class Search:
    """The search through one space's ops, which are sorted by entry."""

    def __init__(
        self, model: ReplayModel, ops: list[PlannedCall], final: FinalCheck | None = None
    ) -> None:
        self.model = model
        self.all = ops
        # What never returned may or may not have happened: it is tried at the very end.
        self.loose = [op for op in ops if op.step.exit == NEVER]
        self.numbers = [i for i, op in enumerate(ops) if op.step.exit != NEVER]
        self.ops = [ops[i] for i in self.numbers]
        self.final = final
        self.entry = [op.step.entry for op in self.ops]
        self.exit = [op.step.exit for op in self.ops]
        self.rows = np.zeros((len(self.ops), COLUMNS), "i8")
        self.run_end = self._runs()
        self.order: list[int] = []
        self.low = 0
        self.done: set[int] = set()
        self.choices: deque[_Choice] = deque()
        self.bytes = 0
        self.seen: set[tuple[int, frozenset[int], bytes]] = set()
        self.failure: _Failure | None = None
        self.vain = 0
        self.outcome = SearchResult(state=model.save())

    def _runs(self) -> list[int]:
        """For each op, where the calls end that follow from it one by one, overlapping nothing."""
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
            plain = alone[i] and op.compared and op.check is None and len(op.rows) == 1
            if plain:
                self.rows[i, :-1] = op.rows[0]
            ends[i] = (ends[i + 1] if i + 1 < n and ends[i + 1] > i + 1 else i + 1) if plain else i
        return ends

    def run(self, state: SavedState) -> SearchResult:
        """Search from ``state`` on to the end, over differences where there are some."""
        self.model.load(state)
        while not self._explore():
            self._give_up()
        outcome = self.outcome
        outcome.state = self.model.save()
        outcome.order = [self.numbers[i] for i in self.order]
        exits = [self.exit[i] for i in self.order]
        outcome.reordered = sum(a > b for a, b in pairwise(exits))
        return outcome

    # --- one path --------------------------------------------------------------------------------

    def _explore(self) -> bool:
        """Go on from the present state; False when no order leads to the end."""
        while True:
            if self.low == len(self.ops):
                if self._finish() or not self._back():
                    return self.failure is None
            elif self.run_end[self.low] > self.low:
                if not self._run() and not self._back():
                    return False
            elif not self._step() and not self._back():
                return False

    def _place(self) -> _Place:
        return _Place(self.low, frozenset(self.done), len(self.order))

    def _run(self) -> bool:
        """Make the calls that overlap nothing, up to the next that does; False if one differs."""
        first, last = self.low, self.run_end[self.low]
        before = self.model.save()
        stop = self.model.replay(self.rows, first, last)
        self.outcome.tried += stop - first
        self.order.extend(range(first, stop))
        self.low = stop
        if stop == last:
            self._progress()
            return True
        got = int(self.rows[stop, -1])
        self.model.load(before)
        self.model.replay(self.rows, first, stop)
        self._fail(stop, got)
        return False

    def _candidates(self) -> list[tuple[int, int]]:
        """Ops that may come next, each with each of its meanings: forks, then by exit."""
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

    def _step(self) -> bool:
        """Make one call of those that may come next; False when it differs or was tried before."""
        candidates = self._candidates()
        if len(candidates) > 1:
            choice = _Choice(self.model.save(), self._place(), candidates[1:])
            key = (choice.place.low, choice.place.done, choice.state.key)
            if key in self.seen:
                return False
            self.seen.add(key)
            self._remember(choice)
        return self._apply(*candidates[0])

    def _remember(self, choice: _Choice) -> None:
        self.outcome.overlaps += 1
        self.choices.append(choice)
        self.bytes += choice.state.vma.nbytes
        while self.bytes > MEMORY or len(self.choices) > PLACES:
            self.bytes -= self.choices.popleft().state.vma.nbytes

    def _back(self) -> bool:
        """Go back to the latest place with something untried, and try it; False if none is left."""
        while self.choices and self.vain < PATIENCE:
            choice = self.choices[-1]
            if not choice.rest:
                self.choices.pop()
                self.bytes -= choice.state.vma.nbytes
                continue
            self.model.load(choice.state)
            self._return_to(choice.place)
            if self._apply(*choice.rest.pop(0)):
                return True
        return False

    def _return_to(self, place: _Place) -> None:
        self.low, self.done = place.low, set(place.done)
        del self.order[place.length :]

    def _apply(self, index: int, meaning: int) -> bool:
        """Make one call; False when its answer differs, the state being as before."""
        op = self.ops[index]
        self.outcome.tried += 1
        self.vain += 1
        if op.step.child is not None:
            self.outcome.forks[self.numbers[index]] = self.model.save()
        elif not op.compared:
            self._imitate(op)
        else:
            before = self.model.save()
            if op.check is not None:
                got = op.check(self.model, op.call)
            else:
                got = self.model.call(op.rows[meaning])
            expected = op.call.result if op.check is not None else op.rows[meaning][7]
            if got != expected:
                self.model.load(before)
                self._fail(index, got)
                return False
        self._done(index)
        return True

    def _imitate(self, op: PlannedCall) -> None:
        if op.check is not None:
            op.check(self.model, op.call)
        for row in op.rows[:1]:
            self.model.call(without_limits(row))

    def _done(self, index: int) -> None:
        self.order.append(index)
        self.done.add(index)
        while self.low in self.done:
            self.done.discard(self.low)
            self.low += 1
        self._progress()

    def _progress(self) -> None:
        """Nothing is in vain that leads further than any path before."""
        if self.failure is None or len(self.order) > self.failure.place.length:
            self.failure = None
            self.vain = 0

    def _fail(self, index: int, got: int, final: object | None = None) -> None:
        if self.failure is None or len(self.order) > self.failure.place.length:
            before = self.model.save()
            fixed = self.choices[0].place.length if self.choices else len(self.order)
            tail = self.order[fixed:]
            self.failure = _Failure(self._place(), fixed, tail, before, index, got, final)

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self) -> bool:
        """Whether the final state is right, with or without the calls that never returned."""
        if self.final is None:
            self.failure = None
            return True
        verdict = self.final(self.model)
        if verdict is not None and self.loose:
            before = self.model.save()
            for op in self.loose:
                self._imitate(op)
            if self.final(self.model) is None:
                verdict = None
            else:
                self.model.load(before)
        if verdict is not None:
            self._fail(-1, 0, verdict)
            return False
        self.failure = None
        self.outcome.final = None
        return True

    # --- differences -----------------------------------------------------------------------------

    def _give_up(self) -> None:
        """No order fits: note why, make the real answer true, and go on behind it."""
        failure = self.failure
        assert failure is not None
        self.failure = None
        self.choices.clear()
        self.bytes = 0
        self.seen.clear()
        self.vain = 0
        self.model.load(failure.before)
        self.order[failure.fixed :] = failure.tail
        self._return_to(failure.place)
        if failure.index < 0:
            self.outcome.final = failure.final
            self.final = None  # said once is enough
            return
        op = self.ops[failure.index]
        if op.excuse:
            op.reason, op.rows = op.excuse, []  # what was refused has no effect
            self._done(failure.index)
            return
        self._answer(op)
        after = self.model.save()
        self.model.load(failure.before)
        self._adopt(op)
        self.outcome.differences.append(
            Unexplained(
                op, failure.got, failure.before, after, self.model.save(), self.outcome.tried
            )
        )
        self._done(failure.index)

    def _answer(self, op: PlannedCall) -> None:
        if op.check is None:
            self.model.call(op.rows[0])

    def _adopt(self, op: PlannedCall) -> None:
        """Give a call the effect that its real answer says it had."""
        if op.check is not None:
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
    """The states that a fork (``ops[index]``) may have copied, the most likely first.

    It may have happened after any of the calls that it overlapped with, in the order found.
    """
    state = outcome.forks[index]
    states = [state]
    place = outcome.order.index(index)
    later = [ops[i] for i in outcome.order[place + 1 :] if ops[i].step.entry < ops[index].step.exit]
    model.load(state)
    for op in later[: FORK_STATES - 1]:
        if op.step.child is None and op.check is None:
            for row in op.rows[:1]:
                model.call(row)
            states.append(model.save())
    return states
