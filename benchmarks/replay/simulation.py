"""One allocator under one workload on one kernel, compiled and ready to replay.

With OBSERVED switches it counts everything and answers :meth:`Simulation.metrics`; with TIMED ones
all instruments are compiled away and nothing is touched, so that its time is the allocator's own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any

import numpy as np

from allocators.base.contract import check
from allocators.base.registry import Plugin
from benchmarks.events.touch import TOUCH_NAMES, TOUCH_NOTHING
from benchmarks.replay.loop import (
    RUN,
    TIMELINE_ROWS,
    initialise,
    replay_events,
    replay_program,
    verify_frames,
)
from benchmarks.replay.measured import measured, timeline
from benchmarks.workloads import Workload, WorkloadError
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import WalkError, build, jit
from kernel.engine.record import record
from kernel.engine.watchdog import SoftLockup, watched
from kernel.task import reason
from kernel.types import SIGKILL, SimulatedSignal

#: Switches of the loop with every instrument, and with none.
OBSERVED = {"COUNT": True, "OBSERVE": True, "TIMELINE": True}
TIMED = {"COUNT": False, "OBSERVE": False, "TIMELINE": False, "TOUCH": TOUCH_NOTHING}


class AllocatorFailure(RuntimeError):
    """The allocator broke its contract during a replay; the message names the event."""


@jit
def run_check(k, a):
    """Call the plugin's checker."""
    return check(k, a)


def explain(error: Exception) -> str:
    """One line for what a plugin or its compilation raised."""
    kind = type(error).__name__
    if not type(error).__module__.startswith("numba"):
        return f"{kind}{f': {error}' if str(error) else ''}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = next((line.rstrip(":") for line in lines if line.startswith("File ")), "no place known")
    reason = next((line for line in lines if not line.startswith("Failed in")), kind)
    return f"{reason} ({place})"


class Simulation:
    """A machine, a plugin's state and a compiled replay loop.

    ``switches`` are OBSERVED, TIMED or any other bindings of the loop; TOUCH is the workload's
    where they do not say.  ``stopped_at`` is the event at which the simulated process was killed
    for lack of memory, or -1.  ``waited``: seconds of the last replay in which the loop stood still
    because the next piece of a stream was not there yet.  Raises AllocatorFailure when the plugin
    does not compile.
    """

    def __init__(
        self,
        plugin: Plugin,
        workload: Workload,
        kernel: KernelConfig,
        switches: Mapping[str, Any],
    ) -> None:
        self.plugin, self.workload = plugin, workload
        self.machine = Machine(kernel)
        self.k = self.machine.k
        self.r = record(RUN)
        self.a = plugin.state()
        self.objects = np.zeros((max(workload.slots, 1), 2), "i8")
        self.stopped_at = -1
        self.waited = 0.0
        touch = {"TOUCH": TOUCH_NAMES.index(workload.touch)}
        self._bindings = plugin.bindings() | kernel.switches() | touch | dict(switches)
        try:
            self._initialise = build(initialise, **self._bindings)
            self._loop = build(self.loop_function, **self.loop_bindings())
        except WalkError as error:
            raise AllocatorFailure(str(error)) from None
        self._fresh = True
        self._compile()

    def loop_bindings(self) -> dict[str, Any]:
        """What the replay loop is specialised for."""
        if self.workload.program is not None:
            return self._bindings | {"next_event": self.workload.program.next_event}
        if self.workload.stream is not None:
            names = self.workload.stream.names
        else:
            names = [n for n, data in self.workload.events._asdict().items() if len(data)]
        return self._bindings | {
            f"HAS_{name.upper()}": name in names for name in ("align", "thread", "offset", "site")
        }

    @property
    def loop_function(self) -> Callable:
        """The loop for the workload's kind, before it is specialised."""
        return replay_events if self.workload.program is None else replay_program

    @property
    def length(self) -> int:
        """Number of events."""
        if self.workload.program is not None:
            return self.workload.program.length
        if self.workload.stream is not None:
            return self.workload.stream.facts.events
        return len(self.workload.events.op)

    def start(self) -> None:
        """Put everything back to a fresh process.  Host memory stays warm."""
        if not self._fresh:
            self.machine.reset()
        self._fresh = False
        self.a = self.plugin.state()
        self.r = record(RUN)
        self.r.first_failure = -1
        self.r.stride = max(1, self.length // (TIMELINE_ROWS // 2))
        self.objects.fill(0)
        program = self.workload.program
        self._program = program.state() if program is not None else None
        self.stopped_at = -1
        self.waited = 0.0

    def _compile(self) -> None:
        """Compile by replaying no event, outside the clock and the watchdog.

        Raises AllocatorFailure when the plugin does not compile.
        """
        self.start()
        try:
            self._initialise(self.k, self.a)
            for source, begin, end in self._pieces(0):
                self._loop(self.k, self.a, self.r, self.objects, source, begin, end)
        except SimulatedSignal:
            raise AllocatorFailure(f"init: {reason(self.k)}") from None
        except Exception as error:
            raise AllocatorFailure(f"the plugin does not compile: {explain(error)}") from error

    def _pieces(self, end: int) -> Iterator[tuple[Any, int, int]]:
        """What the loop gets, one call after the other: a source of events, begin and end."""
        workload = self.workload
        if workload.stream is None:
            yield (workload.events if self._program is None else self._program), 0, end
        elif end == 0:
            yield workload.stream.none(), 0, 0
        else:
            begin = 0
            with closing(workload.stream.pieces()) as pieces:
                for events in pieces:
                    last = min(begin + len(events.op), end)
                    yield events, begin, last
                    begin = last
                    if begin == end:
                        return

    def replay(
        self,
        end: int | None = None,
        progress: Callable[[int], None] | None = None,
        *,
        watch: bool = True,
    ) -> float:
        """Replay events up to ``end`` from a fresh start; returns the seconds of the loop alone.

        Of a stream too: what the loop waits for the next piece is in ``waited``.  A process killed
        for lack of memory ends the replay early (``stopped_at``).  Without ``watch`` the loop runs
        in the calling thread, and nobody notices if it does not end.  Raises AllocatorFailure for
        any other death, WorkloadError for a stream that breaks off, and
        kernel.engine.watchdog.SoftLockup; after that, and after KeyboardInterrupt, the loop's
        thread has lost its memory and the simulation is of no use.
        """
        self.start()
        last = self.length if end is None else end

        def run() -> float:
            self._initialise(self.k, self.a)
            seconds = 0.0
            with closing(self._pieces(last)) as pieces:
                stopped = perf_counter()
                for source, begin, end in pieces:
                    started = perf_counter()
                    self.waited += started - stopped
                    self._loop(self.k, self.a, self.r, self.objects, source, begin, end)
                    stopped = perf_counter()
                    seconds += stopped - started
            return seconds

        try:
            return watched(self.k, run, progress=progress) if watch else run()
        except SimulatedSignal:
            event = int(self.k.task.now)
            if self.k.task.sig != SIGKILL:
                raise AllocatorFailure(f"event {event}: {reason(self.k)}") from None
            self.stopped_at = event
            self._verify_killed()
            return 0.0
        except (SoftLockup, KeyboardInterrupt):
            self.machine.revoke()
            raise
        except WorkloadError:
            raise
        except Exception as error:
            event = int(self.k.task.now)
            raise AllocatorFailure(f"event {event}: the plugin raised {explain(error)}") from error

    def _verify_killed(self) -> None:
        """Check physical memory once more after the kill, where it is checked at all."""
        if not self._bindings.get("CHECK_FRAMES"):
            return
        try:
            build(verify_frames, **self._bindings)(self.k, self.r)
        except SimulatedSignal:
            raise AllocatorFailure(
                f"event {self.stopped_at}, after the kill: {reason(self.k)}"
            ) from None

    def verify_end(self) -> None:
        """Raise AllocatorFailure when the plugin's own checker finds the heap broken."""
        if self.stopped_at >= 0:
            return
        try:
            code = build(run_check, **self._bindings)(self.k, self.a)
        except SimulatedSignal:
            what = f"the allocator's own check failed after the last event: {reason(self.k)}"
            raise AllocatorFailure(what) from None
        if code:
            checks = getattr(self.plugin.module, "CHECKS", {})
            raise AllocatorFailure(
                f"the allocator's own check failed after the last event: {checks.get(code, code)}"
            )

    @property
    def out_of_memory(self) -> bool:
        """Whether a request was answered with NULL or the process was killed for memory."""
        return bool(self.r.failed) or self.stopped_at >= 0

    def metrics(self, cost: Mapping[str, float]) -> dict[str, float]:
        """The deterministic metrics of an observed replay by name (benchmarks.replay.metrics).

        ``cost``: nanoseconds by kind of kernel work (conf/kernel/cost).
        """
        return measured(self.k, self.r, self.machine.config.page_size, cost)

    def timeline(self) -> dict[str, np.ndarray]:
        """Columns of the timeline, (rows,) int64 each; the last row is the end of the run."""
        return timeline(self.k, self.r, self.machine.config.page_size)
