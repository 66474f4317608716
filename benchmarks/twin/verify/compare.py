"""Comparison of the real process with the twin, whose kernel model mirrors that process."""

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

#: Timeout of the twin for one operation, in seconds.
PATIENCE = 20.0
#: Difference reported if the twin's loop hangs; it still runs in this process.
LOCKED = "the twin does not return"
#: Maximum number of chunks that are shown.
_MOST_CHUNKS = 60


@dataclass(frozen=True)
class HeapSetting:
    """Setting of a program.  ``seed`` and ``mode`` determine the program."""

    seed: str
    mode: str
    tunables: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """Describe the setting in a few words."""
        named = [f"{name}={value}" for name, value in self.tunables.items()]
        return ", ".join([f"seed {self.seed}", f"mode {self.mode}", *named])

    def name(self) -> str:
        """Return mode and seed in a form fit for a file name."""
        return f"{self.mode}-{self.seed}".replace("/", "-")


@dataclass
class Played:
    """Result of a program: the difference found (``what``), or '' if both sides agree.

    ``done``: number of rows that agree.  ``row``: the first row that differs; -1 if only the final
    states differ; if the process died, the first row whose result is lost.  ``expected`` and
    ``actual``: (n,) EXPECTED, valid up to that row.
    """

    done: int
    expected: np.ndarray
    actual: np.ndarray
    what: str = ""
    row: int = -1
    lines: list[str] = field(default_factory=list)  # both states, as printed


def plugin_for(allocator: str, tunables: Mapping[str, int]) -> registry.Plugin:
    """Load the plugin with the tunables as settings; ignore tunables that it does not have."""
    settings = dict(tunables)
    declared = registry.declared_settings(registry.load(allocator).module)
    if "cores" in declared:
        settings.setdefault("cores", min(os.sysconf("SC_NPROCESSORS_ONLN"), declared["cores"].high))
    return registry.load(allocator, {n: v for n, v in settings.items() if n in declared})


class Twins:
    """Cache of twins compiled for sets of tunables, and of models of the process.

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
        """Return the compiled twin for ``tunables``."""
        key = tuple(sorted(tunables.items()))
        if key not in self._twins:
            plugin = plugin_for(self.allocator, tunables)
            config = KernelConfig(window_bits=WINDOW_BITS)
            self._twins[key] = Twin(
                plugin, config, count_branches=self.count_branches, bindings=self.bindings
            )
        return self._twins[key]

    def branches(self) -> list[Branch]:
        """Return the counted branches by their number in ``k.hits``, the same for all tunables."""
        return self.twin({}).branches


class HeapPair:
    """Real process and its twin, both new; a context manager.

    Raises HostError if the process cannot be created.
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
        """Give an anon_vma in the model to each mapping that the process has written to."""
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
        """Run ``program``, (n,) PROGRAM, on both sides up to a difference.

        ``blocks``: table of blocks, kept from one part of a program to the next.  ``careful``: from
        this row on, the process executes one operation at a time, so that the one that ends it is
        known.  ``at_end``: compare mappings and pages after the last row.

        The twin plays all rows before the process starts, and the process executes a whole batch
        before its results are compared.  After a difference, both are therefore in a later state.
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
            outcome.what = describe_difference(expected[row], actual[row])
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
        """Let the twin play.  Returns the number of rows played, and the reason if it stopped."""
        k, n = self.k, len(rows)
        state = (k, self.a, rows, expected, blocks, self.threads)
        self.twin.play(*state, 0, 0)  # compile before the watchdog starts
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
        """Return True if the C library aborts in the same row in which the twin aborted."""
        if "SIGABRT" not in died:
            return False
        try:
            self.libc.run(rows, expected, actual, row, row + 1, single=True)
        except HostError as error:
            return "SIGABRT" in str(error)
        return False

    def _compare_end(self, outcome: Played) -> None:
        """Compare mappings, resident pages and counters."""
        found = [difference.what for difference in differences(*self._both())]
        if found:
            outcome.what = f"at the end: {', '.join(found)}"
            outcome.lines = self._side_by_side()

    def _both(self) -> tuple[State, State]:
        """Return the states of the process and of the model."""
        self.model.refresh()
        return self.real.state(), self.model.state()

    def _side_by_side(self) -> list[str]:
        return [line[4:] for line in side_by_side(*self._both())]

    # --- showing the heaps ----------------------------------------------------------------------

    def states(self) -> list[str]:
        """List both sides' mappings and pages, and the chunks of the heap that differ."""
        return self._side_by_side() + self._chunk_lines()

    def _chunk_lines(self) -> list[str]:
        """List the chunks of the main heap from just before the first that differs."""
        end = int(self.k.mm.brk)
        words = max(end - self._start, 0) >> 3
        real = self.libc.words(self._start, words)
        at = (self._start & ((1 << WINDOW_BITS) - 1)) >> 3
        model = windows[int(self.k.window)][at : at + words]
        left, right = _chunks(real, self._start), _chunks(model, self._start)
        differ = sorted(set(left) ^ set(right))
        if not differ:
            return [f"  the {len(left)} chunks of the heap have the same sizes on both sides"]
        both = sorted(set(left) | set(right))
        first = max(both.index(differ[0]) - 2, 0)
        lines = [f"  chunks near the first difference (of {len(left)} and {len(right)}):"]
        for chunk in both[first : first + _MOST_CHUNKS]:
            mine, theirs = (_format_chunk(chunk) if chunk in c else "" for c in (right, left))
            mark = "  " if mine == theirs else "! "
            lines.append(f"{mark}{theirs:<58} {mine}".rstrip())
        return lines


def _chunks(words: Sequence[int], start: int) -> dict[tuple[int, int], None]:
    """Walk the chunks of a heap that begins at ``start``; return their (address, head) in order."""
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


def _format_chunk(chunk: tuple[int, int]) -> str:
    address, head = chunk
    before = "in use" if head & 1 else "free"
    return f"{address:#x} {head & ~7:#x} (previous {before})"


def describe_difference(x: np.record, y: np.record) -> str:
    """Name the results of one operation that differ; ``x`` expected, ``y`` actual."""
    names = {
        "value": "address or value",
        "brk": "break",
        "minflt": "page faults of the call",
        "use_minflt": "page faults of the use",
    }
    return ", ".join(words for name, words in names.items() if x[name] != y[name])


def row_lines(row: Row, x: np.record, y: np.record | None) -> list[str]:
    """Format an operation with its expected result ``x``, or with both results if ``y`` differs.

    ``y``: the real result, or None.
    """

    def result_of(z: np.record) -> str:
        value = int(z.value)
        result = "NULL" if value == 0 else hex(value) if value > 9 else str(value)
        faults = f"{int(z.minflt)}+{int(z.use_minflt)} faults"
        return f"{result}, break {int(z.brk):#x}, {faults}"

    head = row.describe()
    if y is None:
        return [f"{head}  = {result_of(x)}"]
    return [head, f"      libc  {result_of(y)}", f"      twin  {result_of(x)}"]


def empty_blocks(program: np.ndarray, least: int = 1) -> np.ndarray:
    """Create an empty table of blocks for ``program``, with at least ``least`` slots."""
    slots = int(program["slot"].max(initial=0)) + 1
    return np.zeros((max(slots, least), BLOCK_COLUMNS), "i8")
