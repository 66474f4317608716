"""Replay a whole log, one address space after the other, and collect the results."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kernel.linux.replay import areas, origin
from kernel.linux.replay.log import Area, Log, LogError, Snapshot, parse_areas
from kernel.linux.replay.model import ReplayModel, SavedState
from kernel.linux.replay.plan import PlannedCall, Planner
from kernel.linux.replay.recording import is_recording, open_text, read_recording
from kernel.linux.replay.search import Search, SearchResult, fork_states
from kernel.linux.replay.spaces import Space, follow
from kernel.linux.replay.strace import read_strace
from kernel.uapi import MAP_FIXED

#: Reason for not comparing a call whose result shows, without maps, where mappings or the heap
#: begin.
ANCHOR = "taken as given: its result shows where mappings or the heap begin"


@dataclass
class SpaceResult:
    """Result of replaying one address space."""

    space: Space
    ops: list[PlannedCall]
    outcome: SearchResult
    names: areas.Names
    start_stack: int
    compared: int = 0  # including the calls that differ
    anchors: int = 0  # calls taken as given
    skipped: Counter[str] = field(default_factory=Counter)  # calls not comparable, by reason
    comparison: areas.Comparison | None = None  # of the last snapshot
    no_comparison: str = ""  # why there is no comparison
    notes: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Number of memory calls."""
        return sum(op.step.child is None for op in self.ops)

    @property
    def not_comparable(self) -> int:
        """Number of calls that are not compared, without the anchors."""
        return self.skipped.total()

    @property
    def differ(self) -> int:
        """Number of calls whose result differs."""
        return len(self.outcome.differences)

    @property
    def snapshot_differs(self) -> bool:
        """True if the last snapshot differs."""
        return self.comparison is not None and self.comparison.difference is not None


#: Hint for a log that begins in the middle of a program's life, or does not show its stack.
_HINT = (
    "some calls act on memory from before the log; a copy of /proc/PID/maps from the time at which "
    "it begins makes them comparable: --maps FILE"
)


@dataclass
class LogResult:
    """Result of replaying a log."""

    log: Log
    spaces: list[SpaceResult] = field(default_factory=list)

    def total(self, count: Callable[[SpaceResult], int]) -> int:
        """Return the sum of ``count`` over all spaces."""
        return sum(count(space) for space in self.spaces)

    @property
    def differ(self) -> bool:
        """True if any call or snapshot differs."""
        return any(space.differ or space.snapshot_differs for space in self.spaces)


def read_log(path: Path) -> Log:
    """Read a recording or an strace log.  Raises LogError for a file that is neither."""
    with open_text(path) as file:
        try:
            first = file.readline()
        except (OSError, EOFError) as error:
            raise LogError(f"{path}: damaged: {error}") from None
    if not first:
        raise LogError(f"{path}: the file is empty; expected a recording or an strace log")
    return read_recording(path) if is_recording(first) else read_strace(path)


def read_maps(path: Path) -> list[Area]:
    """Read a copy of /proc/PID/maps or smaps.  Raises LogError, with the line, if it is wrong."""
    try:
        with open_text(path) as file:
            found = parse_areas(file.read())
    except ValueError as error:
        raise LogError(f"{path}: line {error}") from None
    if not found:
        raise LogError(f"{path}: no areas; expected a copy of /proc/PID/maps")
    return found


class Replayer:
    """Replayer of the spaces of one log, parents before their copies."""

    def __init__(self, log: Log, maps: list[Area] | None = None) -> None:
        self.log = log
        self.maps = maps
        self.model = ReplayModel()
        self.planner = Planner(log.machine, limits_unknown=log.kind != "recording")
        self.unknown: dict[int, origin.UnknownProgram] = {}  # by number of the space
        self.results: dict[int, SpaceResult] = {}

    def run(self, progress: Callable[[int, int], None] | None = None) -> LogResult:
        """Replay all spaces; call ``progress`` with the spaces done and their total.

        Raises LogError if the processes of the log cannot be followed.
        """
        spaces = follow(self.log)
        if self.maps is not None and any(s.exec and s.exec.snapshot for s in spaces):
            raise LogError(f"{self.log.path}: a recording contains its maps; omit --maps")
        result = LogResult(self.log)
        for done, space in enumerate(spaces):
            if progress is not None:
                progress(done, len(spaces))
            found = self._copy(space) if space.parent else self._fresh(space)
            self._count(found)
            self.results[space.number] = found
            result.spaces.append(found)
        return result

    def _fresh(self, space: Space) -> SpaceResult:
        ops, foreign = self.planner.plan(space), False
        maps, self.maps = self.maps, None
        try:
            begin = origin.begin(self.log, space.exec, ops, maps)
        except ValueError as error:
            line = f"line {space.exec.line}: " if space.exec else ""
            raise LogError(f"{self.log.path}: {line}{error}") from None
        for op in begin.anchors:
            self._anchor(op)
        if begin.unknown is not None:
            self.unknown[space.number] = begin.unknown
            begin.unknown.allow_for(ops)
            foreign = begin.unknown.exempt_foreign(ops)
        snapshot = space.exec.snapshot if space.exec else None
        given = snapshot.areas if snapshot else maps or []
        initial = {
            int(row["vm_file"]): area
            for row, area in zip(begin.state.vma, given, strict=False)
            if row["vm_file"]
        }
        image = space.exec.image if space.exec else None
        names = areas.Names(self.planner.files, initial, self.planner.labels)
        start_stack = image.start_stack if image else 0
        result = self._search(space, ops, [begin.state], names, start_stack)
        if snapshot is not None:
            self._check_origin(result, snapshot, begin.state)
        if foreign:
            result.notes.append(_HINT)
        return result

    def _anchor(self, op: PlannedCall) -> None:
        """Take a call's result as given: place a mapping where Linux placed it."""
        op.reason = ANCHOR
        if op.call.name == "mmap" and op.rows:
            row = list(op.rows[0])
            row[1] = row[7]
            row[4] |= MAP_FIXED
            op.rows = [tuple(row)]

    def _copy(self, space: Space) -> SpaceResult:
        assert space.parent is not None
        ops = self.planner.plan(space)
        parent = self.results[space.parent.number]
        unknown = self.unknown.get(space.parent.number)
        if unknown is not None:
            self.unknown[space.number] = unknown
            unknown.allow_for(ops)
        index = next(i for i, op in enumerate(parent.ops) if op.step.child is space)
        if index in parent.outcome.forks:
            states = fork_states(self.model, parent.ops, parent.outcome, index)
        else:
            states = [parent.outcome.state]
        states = [origin.fork(state) for state in states]
        foreign = unknown is not None and unknown.with_areas(states[0]).exempt_foreign(ops)
        result = self._search(space, ops, states, parent.names, parent.start_stack)
        if foreign:
            result.notes.append(_HINT)
        return result

    def _search(
        self,
        space: Space,
        ops: list[PlannedCall],
        states: list[SavedState],
        names: areas.Names,
        start_stack: int,
    ) -> SpaceResult:
        """Replay the space from each state in which it may have begun; return the best result."""
        best: SpaceResult | None = None
        for state in states:
            self.model.load(state)
            found = self._search_from(space, ops, state, names, start_stack)
            if best is None or _badness(found) < _badness(best):
                best = found
            if _badness(best) == (0, 0):
                break
        assert best is not None
        return best

    def _search_from(
        self,
        space: Space,
        ops: list[PlannedCall],
        state: SavedState,
        names: areas.Names,
        start_stack: int,
    ) -> SpaceResult:
        taints = [op.taints for op in ops if op.taints]
        comparisons: list[areas.Comparison] = []

        def check(model: ReplayModel) -> areas.SnapshotDifference | None:
            assert space.final is not None
            comparison = areas.compare(
                space.final,
                model.save(),
                names,
                start_stack,
                space.final_line,
                tainted=bool(taints),
            )
            comparisons.append(comparison)
            return comparison.difference

        bits = space.image.bits if space.image else 64
        comparable = space.final is not None and bits == 64
        search = Search(self.model, ops, check if comparable else None)
        outcome = search.run(state)
        result = SpaceResult(space, ops, outcome, names, start_stack)
        if search.unreturned and outcome.final_difference is not None:
            result.no_comparison = "a thread was ended inside a call that may have been half done"
        elif comparisons:
            result.comparison = comparisons[-1]
            if outcome.final_difference is not None:
                matching = [c for c in comparisons if c.difference is outcome.final_difference]
                result.comparison = matching[0]
        else:
            result.no_comparison = self._why_no_comparison(space, bits)
        if taints:
            result.notes.append(f"areas at the end are not compared: {taints[0]}")
        return result

    def _why_no_comparison(self, space: Space, bits: int) -> str:
        if bits == 32:
            return "a 32-bit program"
        if self.log.kind != "recording":
            return "an strace log has no maps"
        if not self.log.complete:
            return "the recording was cut short"
        if space.ended:
            return "another process still used the memory, or the process was killed"
        return "the process had not ended"

    def _check_origin(self, result: SpaceResult, snapshot: Snapshot, state: SavedState) -> None:
        """Compare the state at exec, before any call, with the snapshot; record a difference."""
        line = result.space.exec.line if result.space.exec else 0
        comparison = areas.compare(
            snapshot, state, result.names, result.start_stack, line, tainted=False
        )
        if comparison.difference is not None and not result.snapshot_differs:
            result.comparison = comparison

    def _count(self, result: SpaceResult) -> None:
        for op in result.ops:
            if op.step.child is not None:
                continue
            if op.reason == ANCHOR:
                result.anchors += 1
            elif op.reason:
                result.skipped[op.reason] += 1
            else:
                result.compared += 1


def _badness(result: SpaceResult) -> tuple[int, int]:
    return result.differ, int(result.snapshot_differs)


def replay(path: Path, maps: Path | None = None) -> LogResult:
    """Replay the log ``path``.  Raises LogError if it cannot be read or followed."""
    return Replayer(read_log(path), read_maps(maps) if maps else None).run()
