"""Scenarios of the verifier, and the variations of settings that it runs them with."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allocators.base.faults import compile_error, place_of
from allocators.base.registry import Plugin, PluginError, declared_settings, load
from allocators.verify import plan as plans
from allocators.verify.driver import DOING_NAMES, EVENT_OP, EVENT_SIZE, EVENT_SLOT, OBJECT_ADDRESS
from allocators.verify.plan import Phase, Plan
from allocators.verify.process import Build, Process, Violation
from kernel.engine.watchdog import PATIENCE
from kernel.task import reason
from kernel.types import SIGABRT, SimulatedSignal

OPERATIONS = 100_000
#: Scenarios that a user can choose, described in allocators.verify.
SCENARIOS = (
    *("life", "again", "as timed", "rounds", "scarcity", "huge", "double free", "wild free"),
    "reset",
)

#: Tight limits: a field of the mm, and the bytes (max_map_count: areas) allowed beyond boot's use.
LIMITS = (
    ("rlim_as", 64 << 10),
    ("rlim_as", 5 << 18),
    ("rlim_as", 2 << 20),
    ("rlim_data", 300 << 10),
    ("memory", 1 << 20),
    ("max_map_count", 3),
)
#: Requests that are always refused, bytes.
_HUGE = ((1 << 46) + 1, 1 << 47, 1 << 62, (1 << 63) - 1)
#: Requests that are refused when RLIMIT_AS allows only _ROOM more, bytes.
_LARGE = (1 << 30, 1 << 40, 1 << 46)
_ROOM = 64 << 20


@dataclass(frozen=True)
class Failure:
    """Broken rule, with its place and message.  ``str()`` is the line that reports it.

    ``call``: the contract's function that was running, with its place in the plugin's file.
    """

    plugin: str
    page_size: int
    scenario: str
    check: str
    operation: int
    call: str
    address: int
    what: str

    def __str__(self) -> str:
        place = f" at {self.address:#x}" if self.address else ""
        return (
            f"{self.plugin}, {self.page_size >> 10} KiB pages, {self.scenario}: {self.check}: "
            f"operation {self.operation} ({self.call}){place}: {self.what}"
        )


def verify(
    plugin: Plugin,
    *,
    operations: int = OPERATIONS,
    seed: int = 1,
    page_size: int = 4096,
    as_timed: bool = True,
    patience: float = PATIENCE,
) -> list[Failure]:
    """Return the failures of ``plugin`` under its settings, at most one per scenario.

    ``operations``: minimum number in the scenario life; ``as_timed`` costs a second compilation;
    ``patience``: timeout of one operation, s.
    """
    suite = Suite(plugin, operations=operations, seed=seed, page_size=page_size, patience=patience)
    suite.run(as_timed=as_timed)
    return suite.failures


def variations(name: str, base: Mapping[str, Any] | None = None) -> Iterator[Plugin]:
    """Yield the plugin ``name`` with the settings ``base``, then with other settings.

    First, each choice takes each of its other values, one at a time; then all numbers and sizes are
    at their minimum; then all are considerably higher.  If a combination is refused, its values are
    set one at a time.
    """
    base = dict(base or {})
    default = load(name, base)
    yield default
    seen = [dict(default.values)]
    low, high = {}, {}
    for key, setting in declared_settings(default.module).items():
        if setting.choices:
            for other in setting.choices:
                yield from _variation(name, base | {key: other}, seen)
        else:
            low[key] = setting.low
            # Times 4 keeps a power of two or a multiple of the page; a count may be a logarithm.
            more = 4 * setting if setting >= 4096 else setting + setting // 4 + 1
            high[key] = min(int(more), setting.high)
    for values in (low, high):
        together = list(_variation(name, base | values, seen))
        yield from together
        if not together:
            for key, value in values.items():
                yield from _variation(name, base | {key: value}, seen)


def _variation(name: str, settings: dict[str, Any], seen: list[dict[str, int]]) -> Iterator[Plugin]:
    """Yield the plugin with ``settings`` unless they are invalid or were yielded before."""
    try:
        plugin = load(name, settings)
    except PluginError:
        return
    if dict(plugin.values) not in seen:
        seen.append(dict(plugin.values))
        yield plugin


class Suite:
    """Scenarios for one plugin and one page size, and their failures.

    ``notes``: checks that do not apply to this design; ``operations``: number performed.
    """

    def __init__(
        self,
        plugin: Plugin,
        *,
        operations: int = OPERATIONS,
        seed: int = 1,
        page_size: int = 4096,
        patience: float = PATIENCE,
    ) -> None:
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.operations = 0
        self._plugin = plugin
        self._wanted = operations
        self._seed = seed
        self._patience = patience
        self._built = Build(plugin, page_size)
        self._promises = plugin.promises()
        self._reuses = True
        self._batch = min(max(operations // 100, 100), 1000)
        self._process: Process | None = None
        self._life: Process | None = None
        if not hasattr(plugin.module, "walk"):
            self.notes.append("it has no walk: its list of blocks is not checked")

    def run(
        self,
        *,
        as_timed: bool = True,
        only: Container[str] = (),
        progress: Callable[[str], None] = lambda scenario: None,
    ) -> None:
        """Run all scenarios, or ``only`` some; ``progress`` is called with the name of each."""
        for name, scenario in self._scenarios(as_timed):
            kind = name.partition(" (")[0]
            if only and kind not in only and kind not in ("preparing", "reuse"):
                continue
            progress(name)
            try:
                scenario()
            except Violation as violation:
                self._record(name, violation)
                if violation.check in ("compile", "lockup"):
                    break  # the other scenarios would fail in the same way

    def _scenarios(self, as_timed: bool) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield each scenario with its name, those that find simple errors first."""
        yield "preparing", self._compile
        yield "reuse", self._probe_reuse
        yield "life", self._live
        if self._life:
            yield "again", self._live_again
            if as_timed:
                yield "as timed", self._live_as_timed
        yield "rounds", self._rounds
        for field, amount in LIMITS:
            yield f"scarcity ({field} + {amount})", lambda f=field, n=amount: self._scarcity(f, n)
        yield "huge", lambda: self._huge(_HUGE, {})
        yield f"huge (rlim_as + {_ROOM})", lambda: self._huge(_LARGE, {"rlim_as": _ROOM})
        misuses = {}
        if self._promises.double_free:
            misuses["double free"] = plans.double_frees()
        if self._promises.wild_free:
            misuses["wild free"] = plans.wild_frees()
        for check, cases in misuses.items():
            for what, plan in cases:
                yield f"{check} ({what})", lambda c=check, p=plan: self._misuse(c, p)
        if hasattr(self._plugin.module, "reset"):
            yield "reset", self._reset

    def _record(self, scenario: str, violation: Violation) -> None:
        """Add a violation to the failures, under ``scenario``."""
        call = "none"
        if self._process is not None:
            call = DOING_NAMES[int(self._process.events[violation.event, EVENT_OP])]
            if hasattr(self._plugin.module, call):
                call = f"{call}, {place_of(self._plugin.module, call)}"
        self.failures.append(
            Failure(
                self._plugin.label,
                self._built.page_size,
                scenario,
                violation.check,
                violation.event,
                call,
                violation.address,
                violation.what,
            )
        )

    def _start(self, plan: Plan, **how: object) -> Process:
        """Return a new process for ``plan``; later failures name the operations of this one."""
        how = {"driver": self._driver, "reuses": self._reuses} | how
        self._process = Process(self._built, plan=plan, patience=self._patience, **how)
        self.operations += len(plan.events)
        return self._process

    # --- The scenarios ----------------------------------------------------------------------------

    def _compile(self) -> None:
        self._driver = self._compiled(self._built)

    def _compiled(self, built: Build) -> Callable:
        try:
            return built.compile()
        except Exception as error:  # a plugin can make the compiler raise anything
            text = compile_error(error, self._plugin.module.__file__)
            raise Violation("compile", 0, 0, text) from None

    def _probe_reuse(self) -> None:
        """Find out if the design reuses memory; one that returns it to the kernel does."""
        if self._promises.retains is not None:
            return
        p = self._start(plans.reuse(1024, 100))
        self._reuses = False
        for begin in range(0, len(p.events), 64):
            end = min(begin + 64, len(p.events))
            p.run(begin, end, inspect=False)
            born = p.addresses[:end][p.addresses[:end] != 0]
            self._reuses = len(np.unique(born)) < len(born)
            if self._reuses:
                break
        else:
            self.notes.append("it never reuses memory: growth is not counted as a leak")

    def _live(self) -> None:
        p = self._start(plans.life(self._wanted, self._seed))
        for phase in p.phases(self._batch):
            self._check_retained(p, phase)
        self._life = p

    def _live_again(self) -> None:
        p = self._start(plans.life(self._wanted, self._seed))
        for _ in p.phases(self._batch):
            pass
        self._compare_addresses(p)
        for name, count in self._life.counters.items():
            if p.counters[name] != count:
                what = f"{name} is {count} in one run, {p.counters[name]} in another"
                raise Violation("determinism", len(p.events) - 1, 0, what)

    def _live_as_timed(self) -> None:
        driver = self._compiled(replace(self._built, as_timed=True))
        p = self._start(plans.life(self._wanted, self._seed), driver=driver)
        p.run(0, len(p.events), inspect=False)
        self._compare_addresses(p)

    def _compare_addresses(self, p: Process) -> None:
        differ = np.flatnonzero(p.addresses != self._life.addresses)
        if len(differ):
            i = int(differ[0])
            what = f"another run gets {self._life.addresses[i]:#x}"
            raise Violation("determinism", i, int(p.addresses[i]), what)

    def _rounds(self) -> None:
        """Repeat a workload and check for a leak: one step up may be chance, two are a leak."""
        count = min(max(self._wanted // 1000, 9), 100)
        operations = min(max(self._wanted // 100, 40), 400)
        p = self._start(plans.rounds(count, operations, self._seed))
        heaps = []
        for phase in p.phases(len(p.events)):
            self._check_retained(p, phase)
            if not phase.drained:
                heaps.append(p.heap)
        second, middle, last = heaps[1], heaps[count // 2], heaps[-1]
        grows = middle > 1.15 * second and last > 1.15 * middle
        if grows and not self._promises.settles:
            self.notes.append("its limits adapt to the program: growth is not counted as a leak")
        elif grows and self._reuses:
            what = f"the heap grows: {second} bytes after round 2, {middle} after round "
            what += f"{count // 2 + 1}, {last} after round {count}"
            raise Violation("leak", len(p.events) - 1, 0, what)

    def _check_retained(self, p: Process, phase: Phase) -> None:
        promised = self._promises.retains
        if phase.drained and promised is not None and p.heap > promised:
            what = f"{p.heap} bytes are mapped with no live object; promised: at most {promised}"
            raise Violation("retention", phase.end - 1, 0, what)

    def _scarcity(self, field: str, amount: int) -> None:
        p = self._start(plans.scarcity(self._seed), limits={field: amount})
        for _ in p.phases(plans.SLOTS):
            pass
        first, last = p.addresses[[1, -1]]
        if self._reuses and first and not last:
            what = "after all objects are freed, a request is refused that was granted at first"
            raise Violation("exhaustion", len(p.events) - 1, 0, what)

    def _huge(self, sizes: tuple[int, ...], limits: dict[str, int]) -> None:
        """Make requests beyond any limit; the next ordinary request must still be granted.

        The driver itself checks that no request is answered with a block that is too small.
        """
        p = self._start(plans.impossible(sizes), limits=limits)
        for _ in p.phases(1):
            pass
        if not p.addresses[-1]:
            what = "an ordinary request is refused after huge requests"
            raise Violation("huge request", len(p.events) - 1, 0, what)

    def _misuse(self, check: str, plan: Plan) -> None:
        """Perform a bad free, which must end the process: by an abort if the address is mapped."""
        p = self._start(plan)
        last = len(p.events) - 1
        p.run(0, last, inspect=False)
        slot, offset = p.events[last, [EVENT_SLOT, EVENT_SIZE]]
        address = int(p.objects[slot, OBJECT_ADDRESS] + offset)
        owned = p.owns(address)
        try:
            p.call(last, last + 1)
        except SimulatedSignal:
            if owned and p.k.task.sig != SIGABRT:
                what = f"promised to be detected, but the process died: {reason(p.k)}"
                raise Violation(check, last, address, what) from None
        else:
            raise Violation(check, last, address, "promised to be detected, but was not")

    def _reset(self) -> None:
        p = self._start(plans.emptying(self._seed))
        for phase in p.phases(self._batch):
            self._check_retained(p, phase)
