"""Subject for the engine of differential testing: this machine's C library and its twin."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from allocators.base import registry
from benchmarks.twin.verify import directed, libc, operation, reach, trace
from benchmarks.twin.verify.compare import HeapSetting, Twins, plugin_for
from benchmarks.twin.verify.modes import MODES, Generator
from benchmarks.twin.verify.operation import USE, Row
from benchmarks.twin.verify.sides import HeapSides
from kernel.differential.pool import Mistake, TaskProgress
from kernel.differential.reach import Rule
from kernel.differential.subject import Program, Subject
from kernel.differential.tally import Tally
from kernel.engine.branches import Branch

#: Module of the command.
COMMAND = "benchmarks.twin.verify"
#: Number of random combinations of tunables in one run; each is compiled.
COMBINATIONS = 6
#: Operations of a random program against a mutation: most are detected early.
_HUNTED = 12_000
#: The modes, those that find most mutations first.
_HUNTING = ("small", "burst", "mixed", "big", "threads")
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
#: Tunables drawn in addition for modes with threads.
_OF_THREADS = {"arena_max": (1, 2, 3, 4), "arena_test": (1, 2, 8)}


@dataclass
class Glibc(Subject):
    """Configuration of a run: directed programs, then ``operations`` of each mode; or traces.

    ``tunables``: fixed, and overriding those of the modes; with ``vary``, further ones are drawn in
    every other program.  ``traces``: files to run instead; ``touch`` and ``threads`` apply to them
    (:mod:`benchmarks.twin.verify.trace`).  ``bindings`` replace functions and constants of the
    allocator.  Raises Mistake for invalid values.
    """

    allocator: str = "ptmalloc"
    operations: int = 1
    seed: int = 1
    modes: tuple[str, ...] = tuple(MODES)
    tunables: Mapping[str, int] = field(default_factory=dict)
    vary: bool = False
    traces: tuple[str, ...] = ()
    touch: str = "all"
    threads: bool = False
    count_branches: bool = True
    bindings: Mapping[str, Any] = field(default_factory=dict)

    command = COMMAND
    setting_class = HeapSetting
    variants = staticmethod(operation.variants)
    encode = staticmethod(operation.encode)
    decode = staticmethod(operation.decode)
    #: Percent of branches to reach, over all modes.
    target = 95
    tables: ClassVar = {"modes": "operations by mode", "kinds": "operations by kind"}

    def __post_init__(self) -> None:
        self.tested_name = self.arguments = self.allocator
        self.traces = tuple(trace.paths(self.traces))
        self.total = 0 if self.traces else self.operations * len(self.modes)
        try:
            settings = plugin_for(self.allocator, self.tunables).values
        except registry.PluginError as error:
            raise Mistake(str(error)) from None
        for mode in self.modes:
            if mode not in MODES:
                raise Mistake(f"--mode {mode}: unknown; choose one of {', '.join(MODES)}")
        for name in self.tunables:
            if name not in settings:
                raise Mistake(f"--tunable {name}: {self.allocator} has no such setting")
        self.twins = Twins(
            self.allocator, count_branches=self.count_branches, bindings=self.bindings
        )

    def unavailable(self) -> str:
        """Return the reason why this host cannot run the C library's side, or ''."""
        return libc.unavailable()

    def wrong_reference(self) -> str:
        """Return a message if the C library is not the version that the twin models, or ''."""
        return libc.wrong_library()

    def scope(self) -> dict[str, Any]:
        """Return the allocator, its tunables and the ranges of the modes, for JSON."""
        return {
            "allocator": self.allocator,
            "tunables": dict(self.tunables),
            "ranges": {mode: MODES[mode].describe() for mode in self.modes},
        }

    def heading(self) -> list[str]:
        """Return the scope as lines of text."""
        names = [f"{name}={value}" for name, value in self.tunables.items()]
        names += ["drawn in every other program"] * self.vary
        lines = [f"{self.allocator} against the C library, tunables: {', '.join(names) or 'none'}"]
        if not self.traces:
            lines += [f"seed {self.seed}, {self.operations:,} operations of each mode"]
            lines += [f"  {MODES[mode].describe()}" for mode in self.modes]
        return lines

    def prepare(self) -> None:
        """Compile the twins for all programs, except those with randomly drawn tunables."""
        own = [] if self.traces else [t for mode in self.modes for t in MODES[mode].tunables]
        own += [] if self.traces else [program.tunables for program in directed.PROGRAMS.values()]
        sets = [{**tunables, **self.tunables} for tunables in own] or [dict(self.tunables)]
        with self.sides() as sides:
            for n, tunables in enumerate(sets):
                if tunables not in sets[:n]:
                    sides.repeat(HeapSetting("0/0", "small", tunables), [Row(USE)])

    # --- programs -------------------------------------------------------------------------------

    def setting(self, mode: str, number: int) -> HeapSetting:
        """Return the setting of program ``number`` of a mode."""
        own = MODES[mode].tunables
        tunables = {**own[number % len(own)], **self.tunables}
        if self.vary and number % 2:
            choice = random.Random(f"tunables {self.seed} {number // 2 % COMBINATIONS}")
            table = _TUNABLES | (_OF_THREADS if MODES[mode].threads > 1 else {})
            names = choice.sample(sorted(table), choice.randint(1, 4))
            drawn = {name: choice.choice(table[name]) for name in names}
            tunables = drawn | tunables
        return HeapSetting(f"{self.seed}/{number}", mode, tunables)

    def by_hand(self, name: str) -> Program:
        """Return the program of that name in :mod:`benchmarks.twin.verify.directed`."""
        program = directed.PROGRAMS[name]
        tunables = {**program.tunables, **self.tunables}
        return Program(HeapSetting(name, directed.MODE, tunables), len(program.ops))

    def programs(self) -> Iterator[Program]:
        """Yield the traces, or the directed and then the random programs."""
        if self.traces:
            for path in self.traces:
                yield Program(HeapSetting(path, trace.MODE, self.tunables), 0)
            return
        yield from map(self.by_hand, directed.PROGRAMS)
        for mode in self.modes:
            left, number = self.operations, 0
            while left > 0:
                setting = self.setting(mode, number)
                most = min(left, Generator(MODES[mode], setting.seed).length)
                yield Program(setting, most)
                left -= most
                number += 1

    def mutation_programs(self, programs: int) -> Iterator[Program]:
        """Yield programs for mutations: the most effective first, those with tunables last."""
        by_hand = list(map(self.by_hand, directed.PROGRAMS))
        yield from (program for program in by_hand if not program.setting.tunables)
        for number in range(programs):
            for mode in _HUNTING:
                yield Program(self.setting(mode, number), _HUNTED)
        yield from (program for program in by_hand if program.setting.tunables)

    def kind(self, program: Program) -> str:
        """Return a program's mode, or a trace's name."""
        setting = program.setting
        return setting.seed if setting.mode == trace.MODE else setting.mode

    @contextmanager
    def sides(self, progress: TaskProgress | None = None) -> Iterator[HeapSides]:
        """Create both sides, which start a new real process for each program."""
        yield HeapSides(
            self.twins, progress or TaskProgress(), touch=self.touch, threads=self.threads
        )

    def mutated(self, bindings: Mapping[str, Any]) -> "Glibc":
        """Return a subject whose twin has functions and constants replaced."""
        return replace(self, bindings=bindings, count_branches=False)

    # --- reports --------------------------------------------------------------------------------

    def branches(self) -> list[Branch]:
        """Return the branches of the allocator's file, except those compiled only by a switch."""
        own = registry.load(self.allocator).module.__name__
        return [b for b in self.twins.branches() if b.module == own and not b.under]

    def rules(self) -> tuple[Rule, ...]:
        """Return the rules for branches that no program can reach."""
        return reach.RULES

    def summary(self, tally: Tally, findings: list[Any]) -> list[str]:
        """Return lines for each trace, and counts of page faults, break moves and refusals."""
        numbers = tally.numbers
        lines = [
            f"  {name}: {found['operations']:,} operations, {found['mismatches']} mismatches"
            for name, found in self._traces(tally, findings).items()
        ]
        return [
            *lines,
            f"{numbers['minor_faults']:,} page faults, the break moved "
            f"{numbers['break_moved']:,} times, {numbers['refused']:,} requests refused",
        ]

    def summary_json(self, tally: Tally, findings: list[Any]) -> dict[str, Any]:
        """Return the counts of each trace, for JSON."""
        return {"traces": self._traces(tally, findings)}

    def _traces(self, tally: Tally, findings: list[Any]) -> dict[str, dict[str, int]]:
        differ = [finding.setting.seed for finding in findings]
        return {
            name: {"operations": count, "mismatches": differ.count(name)}
            for name, count in tally.tables["traces"].items()
        }
