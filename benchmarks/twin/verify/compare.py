"""Two sides under one program: the real process, and the twin on a kernel that is like its own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from allocators.base import registry
from benchmarks.twin.verify.libc import Libc
from benchmarks.twin.verify.operation import Row
from benchmarks.twin.verify.threads import THREADS
from benchmarks.twin.verify.twin import BLOCK_COLUMNS, EXPECTED, Twin
from kernel.config import KernelConfig
from kernel.engine.branches import Branch
from kernel.engine.memory import windows
from kernel.engine.record import record
from kernel.engine.watchdog import SoftLockup, watched
from kernel.linux.host.process import HostError
from kernel.linux.state import (
    WINDOW_BITS,
    Models,
    ModelSide,
    RealSide,
    State,
    align,
    differences,
    side_by_side,
)
from kernel.task import reason
from kernel.types import SimulatedSignal

#: Tunables whose setting, whatever the value, fixes the thresholds.
FIXING = ("mmap_threshold", "trim_threshold", "top_pad", "mmap_max")
#: Seconds that the twin may take over one operation.
PATIENCE = 20.0
#: What differs where its loop still runs in this process.
LOCKED = "the twin does not come back"
#: Lines of the chunks that are shown, at most.
_MOST_CHUNKS = 60


@dataclass(frozen=True)
class HeapSetting:
    """The circumstances of a program.  ``seed`` makes the program in its ``mode``."""

    seed: str
    mode: str
    tunables: Mapping[str, int] = field(default_factory=dict)

    def words(self) -> str:
        """The setting in a few words."""
        named = [f"{name}={value}" for name, value in self.tunables.items()]
        return ", ".join([f"seed {self.seed}", f"mode {self.mode}", *named])

    def name(self) -> str:
        """The mode and the seed for the name of a file."""
        return f"{self.mode}-{self.seed}".replace("/", "-")


@dataclass
class Played:
    """The end of a program, and what differs there: ``what`` is '' where nothing does.

    ``done``: rows that were compared and found equal.  ``row``: the one that differs, -1 where
    only the end does; of a process that has died, the first whose answer is lost.  ``expected``
    and ``actual``, (n,) EXPECTED: up to that row.
    """

    done: int
    expected: np.ndarray
    actual: np.ndarray
    what: str = ""
    row: int = -1
    lines: list[str] = field(default_factory=list)  # both states, for people


def plugin_for(allocator: str, tunables: Mapping[str, int]) -> registry.Plugin:
    """The plugin with the tunables as settings, those that it does not have left out."""
    settings = dict(tunables)
    declared = registry.declared_settings(registry.load(allocator).module)
    if "cores" in declared:
        settings.setdefault("cores", min(os.sysconf("SC_NPROCESSORS_ONLN"), declared["cores"].high))
    if "dynamic" in declared and any(name in tunables for name in FIXING):
        settings["dynamic"] = "off"
    return registry.load(allocator, {n: v for n, v in settings.items() if n in declared})


class Twins:
    """Compiled twins by their tunables, and models of the process.

    ``bindings`` replace functions or constants of the plugin.
    """

    def __init__(
        self,
        allocator: str,
        *,
        count_branches: bool = False,
        bindings: Mapping[str, Any] | None = None,
    ) -> None:
        self.allocator = allocator
        self.count_branches = count_branches
        self.bindings = dict(bindings or {})
        self._twins: dict[tuple, Twin] = {}
        self.models = Models(ModelSide)

    def twin(self, tunables: Mapping[str, int]) -> Twin:
        """The twin under ``tunables``, compiled."""
        key = tuple(sorted(tunables.items()))
        if key not in self._twins:
            plugin = plugin_for(self.allocator, tunables)
            config = KernelConfig(window_bits=WINDOW_BITS)
            self._twins[key] = Twin(
                plugin, config, count_branches=self.count_branches, bindings=self.bindings
            )
        return self._twins[key]

    def branches(self) -> list[Branch]:
        """Return what is counted, by number in ``k.hits``: alike under all tunables."""
        return self.twin({}).branches


class HeapPair:
    """A real process and its twin, just started.  A context manager.

    Raises HostError where the process cannot be made.
    """

    def __init__(self, twins: Twins, setting: HeapSetting) -> None:
        self.twins = twins
        self.twin = twins.twin(setting.tunables)
        self.libc = Libc(setting.tunables)
        try:
            self.real = RealSide(self.libc.host)
            self.model: ModelSide = twins.models.model(self.libc.host)
            self.k = self.model.k
            align(self.real, self.model)
            self._warm()
            self.a = self.twin.plugin.state()
            self.threads = record(THREADS)
            self.threads["alive"][0] = 1
            self.twin.init(self.k, self.a)
        except BaseException:
            self.libc.close()
            raise
        self._start = int(self.k.mm.brk)

    def __enter__(self) -> "HeapPair":
        return self

    def __exit__(self, *error: object) -> None:
        self.real.close()
        self.libc.close()

    def _warm(self) -> None:
        """Let the model know that the process has written to its own memory."""
        mm = self.k.mm
        written = dict(self.libc.writable())
        for v in self.k.vma[: mm.map_count]:
            if int(v.vm_start) in written:
                mm.anon_vmas += 1
                v.anon_vma = mm.anon_vmas

    # --- running a program ----------------------------------------------------------------------

    def run(
        self,
        program: np.ndarray,
        blocks: np.ndarray,
        *,
        patience: float = PATIENCE,
        careful: int | None = None,
        at_end: bool = True,
    ) -> Played:
        """Run ``program``, (n,) PROGRAM, on both sides, up to a difference.

        ``blocks``: the table of blocks, which goes on from one part of a program to the next.
        ``careful``: from this row on the process does one operation at a time, so that one that
        ends it is known.  ``at_end``: compare areas and pages after the last row.

        The twin plays all before the process begins, and the process does a batch before it is
        looked at: after a difference neither is where the difference was.
        """
        n = len(program)
        rows = program.view(np.recarray)
        expected = np.zeros(n, EXPECTED).view(np.recarray)
        actual = np.zeros(n, EXPECTED).view(np.recarray)
        ours, died = self._play(rows, expected, blocks, patience)
        careful = ours if careful is None else min(careful, ours)
        outcome = Played(0, expected, actual)
        try:
            row = self.libc.run(rows, expected, actual, 0, careful)
            if row < 0:
                row = self.libc.run(rows, expected, actual, careful, ours, single=True)
        except HostError as error:
            outcome.done = self.libc.done
            outcome.row = self.libc.done
            outcome.what = f"libc: {error}"
            return outcome
        if row >= 0:
            outcome.done = outcome.row = row
            outcome.what = what_differs(expected[row], actual[row])
        elif died and self._dies_too(rows, expected, actual, ours, died):
            outcome.done = ours + 1
        elif died:
            outcome.done = outcome.row = ours
            outcome.what = died
        else:
            outcome.done = n
            if at_end:
                self._compare_end(outcome)
        return outcome

    def _play(
        self, rows: np.recarray, expected: np.recarray, blocks: np.ndarray, patience: float
    ) -> tuple[int, str]:
        """Let the twin play; how many rows are expected, and why no more."""
        k, n = self.k, len(rows)
        state = (k, self.a, rows, expected, blocks, self.threads)
        self.twin.play(*state, 0, 0)  # the watchdog waits for no compiler
        try:
            watched(k, self.twin.play, *state, 0, n, patience=patience)
        except SimulatedSignal:
            why = reason(k)
            row = int(k.task.now)
            k.task.sig = 0
            return row, f"the twin: {why}"
        except SoftLockup as error:
            self.twins.models.forget()
            return error.event, LOCKED
        return n, ""

    def _dies_too(
        self, rows: np.recarray, expected: np.recarray, actual: np.recarray, row: int, died: str
    ) -> bool:
        """Return whether the C library ends the process in the row in which the twin aborted."""
        if "SIGABRT" not in died:
            return False
        try:
            self.libc.run(rows, expected, actual, row, row + 1, single=True)
        except HostError as error:
            return "SIGABRT" in str(error)
        return False

    def _compare_end(self, outcome: Played) -> None:
        """Compare areas, resident pages and counters."""
        found = [difference.what for difference in differences(*self._both())]
        if found:
            outcome.what = f"at the end: {', '.join(found)}"
            outcome.lines = self._side_by_side()

    def _both(self) -> tuple[State, State]:
        """The states of the process and the model."""
        self.model.refresh()
        return self.real.state(), self.model.state()

    def _side_by_side(self) -> list[str]:
        return [line[4:] for line in side_by_side(*self._both())]

    # --- looking at the heaps -------------------------------------------------------------------

    def states(self) -> list[str]:
        """Both sides' areas and pages, and the chunks of the heap where they differ."""
        return self._side_by_side() + self._chunk_lines()

    def _chunk_lines(self) -> list[str]:
        """The chunks of the main heap by their heads, where those of the two sides differ."""
        end = int(self.k.mm.brk)
        words = max(end - self._start, 0) >> 3
        real = self.libc.words(self._start, words)
        at = (self._start & ((1 << WINDOW_BITS) - 1)) >> 3
        model = windows[int(self.k.window)][at : at + words]
        left, right = _chunks(real, self._start), _chunks(model, self._start)
        differ = sorted(set(left) ^ set(right))
        if not differ:
            return [f"  the heap's {len(left)} chunks have the same sizes on both sides"]
        both = sorted(set(left) | set(right))
        first = max(both.index(differ[0]) - 2, 0)
        lines = [f"  chunks from the first that differs on ({len(left)} and {len(right)}):"]
        for chunk in both[first : first + _MOST_CHUNKS]:
            mine, theirs = (_chunk_words(chunk) if chunk in c else "" for c in (right, left))
            mark = "  " if mine == theirs else "! "
            lines.append(f"{mark}{theirs:<58} {mine}".rstrip())
        return lines


def _chunks(words: Sequence[int], start: int) -> dict[tuple[int, int], None]:
    """(address, head) of the chunks of a heap that begins at ``start``."""
    found: dict[tuple[int, int], None] = {}
    at = 1
    while at < len(words):
        head = int(words[at])
        found[start + 8 * (at - 1), head] = None
        size = head & ~7
        if size < 32:
            break
        at += size >> 3
    return found


def _chunk_words(chunk: tuple[int, int]) -> str:
    address, head = chunk
    before = "in use" if head & 1 else "free"
    return f"{address:#x} {head & ~7:#x} ({before} before)"


def what_differs(x: np.record, y: np.record) -> str:
    """Say which observations of one operation differ; ``x`` expected, ``y`` actual."""
    names = {
        "value": "address or value",
        "brk": "break",
        "minflt": "page faults of the call",
        "use_minflt": "page faults of the use",
    }
    return ", ".join(words for name, words in names.items() if x[name] != y[name])


def row_lines(row: Row, x: np.record, y: np.record | None) -> list[str]:
    """One operation, what it gave, and both sides where they differ (``y``: the real one's)."""

    def told(z: np.record) -> str:
        value = int(z.value)
        result = "NULL" if value == 0 else hex(value) if value > 9 else str(value)
        faults = f"{int(z.minflt)}+{int(z.use_minflt)} faults"
        return f"{result}, break {int(z.brk):#x}, {faults}"

    head = row.words()
    if y is None:
        return [f"{head}  = {told(x)}"]
    return [head, f"      libc  {told(y)}", f"      twin  {told(x)}"]


def empty_blocks(program: np.ndarray, least: int = 1) -> np.ndarray:
    """A table of blocks for ``program``, all empty."""
    slots = int(program["slot"].max(initial=0)) + 1
    return np.zeros((max(slots, least), BLOCK_COLUMNS), "i8")
