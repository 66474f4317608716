"""Compiled replay of one workload by one allocator on one kernel.

With the OBSERVED switches the loop has every instrument, for :meth:`Simulation.metrics`.  With the
TIMED switches all instruments and touches are compiled out, so that only the allocator is timed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any

import numpy as np

try:
    import resource
except ImportError:  # Windows
    resource = None

from allocators.base.contract import MAX_THREADS
from allocators.base.faults import compile_error, last_line, one_line, place_of
from allocators.base.operation import FUNCTIONS
from allocators.base.registry import Plugin
from benchmarks.events.events import Events
from benchmarks.events.facts import explain
from benchmarks.events.threads import ThreadError, ThreadNumbers
from benchmarks.events.touch import TOUCH_NAMES, TOUCH_NOTHING
from benchmarks.replay.loop import (
    RUN,
    TIMELINE_ROWS,
    initialise,
    replay_events,
    replay_program,
    verify_frames,
    verify_heap,
)
from benchmarks.replay.measured import measured, timeline
from benchmarks.workloads import Workload, WorkloadError
from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.jit import WalkError, build, disabled, source_hash
from kernel.engine.record import record
from kernel.engine.watchdog import SoftLockup, watched
from kernel.task import reason
from kernel.types import ABORT_CHECK, ABORT_EVENT, ABORT_FRAMES, SIGABRT, SIGKILL, SimulatedSignal

#: Switches of the loop with all instruments, and without any.
OBSERVED = {"COUNT": True, "OBSERVE": True, "TIMELINE": True}
TIMED = {"COUNT": False, "OBSERVE": False, "TIMELINE": False, "TOUCH": TOUCH_NOTHING}
#: Switches of a loop that times the allocator alone: touch events are passed over, too.
WARM = TIMED | {"TOUCH_EVENTS": False}


def page_faults() -> int:
    """Return the page faults of this process so far; 0 where the system does not count them."""
    if resource is None:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


class AllocatorFailure(RuntimeError):
    """Error raised when the allocator breaks its contract; the message names the event.

    ``address``: address of the damaged block, or 0.
    """

    def __init__(self, message: str, address: int = 0) -> None:
        super().__init__(message)
        self.address = address


def _numbered(threads: ThreadNumbers, events: Events) -> Events:
    """Return ``events`` with thread numbers that a plugin may see.  Raises WorkloadError."""
    try:
        return threads.of(events)
    except ThreadError as error:
        raise WorkloadError(str(error)) from None


class Simulation:
    """Machine, state of a plugin, and compiled replay loop.

    ``switches``: OBSERVED, TIMED or other bindings of the loop; without TOUCH among them, the loop
    touches blocks as the workload specifies.  ``stopped_at``: event at which the simulated process
    was killed because memory ran out, or -1.  ``waited``: seconds of the last replay in which the
    loop waited for the next piece of a stream; ``faults``: page faults of this process in the loop,
    over all replays.  ``guarded``: an index out of bounds or a division
    by zero in the plugin raises an exception.  ``trusted``: the plugin was built before, and is not
    searched for mistakes again.  Raises AllocatorFailure if the plugin does not compile.
    """

    #: Allow code that only plain Python can run (kernel.engine.jit.build).
    loose = False

    def __init__(
        self,
        plugin: Plugin,
        workload: Workload,
        kernel: KernelConfig,
        switches: Mapping[str, Any],
        *,
        guarded: bool = False,
        trusted: bool = False,
    ) -> None:
        self._trusted = trusted
        self.plugin, self.workload = plugin, workload
        self.machine = Machine(kernel)
        self.k = self.machine.k
        self.r = record(RUN)
        self.a = plugin.state()
        self.objects = np.zeros((max(workload.slots, 1), 2), "i8")
        self.stopped_at = -1
        self.waited = 0.0
        self.faults = 0
        #: The current source of events and the number of its first event; None during init.
        self._running: tuple[Any, int] | None = None
        touch = {"TOUCH": TOUCH_NAMES.index(workload.touch)}
        trims = {"TRIMS": hasattr(plugin.module, "trim")}
        self._bindings = plugin.bindings() | kernel.switches() | touch | trims | dict(switches)
        self._guard: tuple[str, ...] = ()
        if guarded:
            self._guard = (getattr(plugin.module, "__name__", ""),)
            if workload.program is not None:
                self._guard += (workload.program.next_event.__module__,)
        try:
            self._initialise = self.specialise(initialise)
            self._loop = self.specialise(self.loop_function, self.loop_bindings())
        except WalkError as error:
            raise AllocatorFailure(str(error)) from None
        self._fresh = True
        self._compile()

    def specialise(self, function: Callable, bindings: Mapping[str, Any] | None = None) -> Callable:
        """Return ``function`` specialised for this simulation, or for ``bindings`` if given."""
        how = {"guard": self._guard, "loose": self.loose, "trusted": self._trusted}
        return build(function, **how, **bindings or self._bindings)

    @property
    def loop_hash(self) -> str:
        """Hash (16 hex digits) of all code and constants in the loop."""
        return source_hash(self.loop_function, guard=self._guard, **self.loop_bindings())

    def loop_bindings(self) -> dict[str, Any]:
        """Return the bindings of the replay loop."""
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
        """Unspecialised loop for this kind of workload."""
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
        """Reset to a new process.  Host memory keeps its pages, so that a replay does not fault."""
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
        """Compile for the argument types, so that neither clock nor watchdog sees the compiler.

        Raises AllocatorFailure if the plugin does not compile.
        """
        self.start()
        self._compile_for(self._initialise, self.k, self.a)
        state = self.k, self.a, self.r, self.objects
        for piece in self._pieces(0):
            self._compile_for(self._loop, *state, *piece)

    def _compile_for(self, function: Callable, *arguments: Any) -> None:
        if disabled():
            return
        from numba import typeof

        try:
            function.compile(tuple(map(typeof, arguments)))
        except Exception as error:
            raise AllocatorFailure(compile_error(error, *self._files())) from error

    def _files(self) -> list[str]:
        """Return the files of the plugins: the allocator's, and that of a compiled generator."""
        files = [getattr(self.plugin.module, "__file__", self.plugin.name)]
        if self.workload.program is not None:
            files.append(self.workload.program.next_event.__code__.co_filename)
        return files

    def _pieces(self, end: int) -> Iterator[tuple[Any, int, int]]:
        """Yield the arguments of successive calls of the loop: source of events, begin and end."""
        workload, threads = self.workload, ThreadNumbers(MAX_THREADS)
        if self._program is not None:
            yield self._program, 0, end
        elif workload.stream is None:
            yield _numbered(threads, workload.events), 0, end
        elif end == 0:
            yield workload.stream.empty_piece(), 0, 0
        else:
            begin = 0
            with closing(workload.stream.pieces()) as pieces:
                for events in pieces:
                    last = min(begin + len(events.op), end)
                    yield _numbered(threads, events), begin, last
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
        """Restart, replay events up to ``end``, and return the seconds spent in the loop.

        Excludes the time that the loop waits for a stream (``waited``).  The replay ends early if
        the process is killed because memory ran out (``stopped_at``).  Without ``watch`` the loop
        runs in the calling thread and has no timeout.  Raises AllocatorFailure if the process ends
        for another reason, WorkloadError if a stream breaks off, and
        kernel.engine.watchdog.SoftLockup.  After SoftLockup or KeyboardInterrupt the memory of the
        loop's thread is unmapped, and the simulation can no longer be used.
        """
        self.start()
        last = self.length if end is None else end

        def run() -> float:
            self._running = None
            self._initialise(self.k, self.a)
            seconds = 0.0
            with closing(self._pieces(last)) as pieces:
                stopped = perf_counter()
                for source, begin, end in pieces:
                    self._running = source, begin
                    faults, started = page_faults(), perf_counter()
                    self.waited += started - stopped
                    self._loop(self.k, self.a, self.r, self.objects, source, begin, end)
                    stopped = perf_counter()
                    self.faults += page_faults() - faults
                    seconds += stopped - started
            return seconds

        try:
            return watched(self.k, run, progress=progress) if watch else run()
        except SimulatedSignal as signal:
            if self.k.task.sig == SIGABRT and self.k.task.si_code == ABORT_EVENT:
                raise WorkloadError(self._impossible_event()) from None
            if self.k.task.sig != SIGKILL:
                address = int(self.k.task.si_addr)
                raise AllocatorFailure(f"{self.where(signal)}: {self.reason()}", address) from None
            self.stopped_at = int(self.k.task.now)
            self._verify_killed()
            return 0.0
        except KeyboardInterrupt:
            self.machine.revoke()
            raise
        except SoftLockup as lockup:
            self.machine.revoke()
            raise SoftLockup(lockup.event, lockup.seconds, self.where()) from None
        except WorkloadError:
            raise
        except AllocatorFailure as failure:
            raise AllocatorFailure(f"{self.where()}: {failure}", failure.address) from None
        except Exception as error:
            raise AllocatorFailure(f"{self.where(error)}: {one_line(error)}") from error

    def reason(self) -> str:
        """Describe why the process ended."""
        task = self.k.task
        if task.sig == SIGABRT and task.si_code == ABORT_CHECK:
            code = int(task.si_addr)
            meaning = getattr(self.plugin.module, "CHECKS", {}).get(code, f"code {code}")
            return f"the allocator's own check failed: {meaning}"
        return reason(self.k)

    def function(self) -> str:
        """Return the name of the plugin's function that the running event calls, or ''."""
        if self._running is None:
            return "init"
        source, begin = self._running
        now = int(self.k.task.now)
        op = int(source.op if self._program is not None else source.op[now - begin])
        return FUNCTIONS.get(op, "")

    def where(self, error: BaseException | None = None) -> str:
        """Return the current place of the replay as 'FILE:LINE: event N, function()'.

        The line is the plugin's last one in the traceback of ``error``; without a traceback, the
        first line of the function that the event calls.
        """
        if self.k.task.si_code == ABORT_FRAMES:  # an error of the kernel model, not of the plugin
            return f"event {int(self.k.task.now)}"
        if self._running and self.r.generating:
            return self._where_generating(error)
        name = self.function()
        event = f"event {int(self.k.task.now)}, {name}()" if self._running else "init()"
        file = getattr(self.plugin.module, "__file__", None)
        line = last_line(error, file) if error else 0
        function = getattr(self.plugin.module, name, None)
        if not line and function is not None:
            file, line = function.__code__.co_filename, function.__code__.co_firstlineno
        return f"{file}:{line}: {event}" if file and line else event

    def _where_generating(self, error: BaseException | None = None) -> str:
        """Return 'FILE:LINE: event N, next_event()': where the compiled generator is."""
        code = self.workload.program.next_event.__code__
        line = last_line(error, code.co_filename) if error else 0
        place = f"{code.co_filename}:{line or code.co_firstlineno}"
        return f"{place}: event {int(self.k.task.now)}, next_event()"

    def _impossible_event(self) -> str:
        """Return the message about the event that the compiled generator has just made."""
        g = self._program
        slot = int(g.slot)
        if slot >= len(self.objects):
            what = f"slot {slot}: slots() allows {len(self.objects)}"
        else:
            before = int(self.objects[slot, 1]) if slot >= 0 and self.objects[slot, 0] else -1
            numbers = (int(n) for n in (g.op, g.slot, g.request, g.align, 0, g.offset))
            what = explain(*numbers, before)
        return f"workload {self.workload.name}: {self._where_generating()}: {what}"

    def _verify_killed(self) -> None:
        """Check physical memory after the kill if kernel.check_frames is set."""
        if not self._bindings.get("CHECK_FRAMES"):
            return
        try:
            build(verify_frames, **self._bindings)(self.k, self.r)
        except SimulatedSignal:
            raise AllocatorFailure(
                f"event {self.stopped_at}, after the kill: {reason(self.k)}"
            ) from None

    def verify_end(self) -> None:
        """Raise AllocatorFailure if the heap is not valid after the last event.

        The plugin's own ``check`` must return 0, and live blocks must not overlap.
        """
        if self.stopped_at >= 0:
            return
        verify = self.specialise(verify_heap)
        self._compile_for(verify, self.k, self.a)
        try:
            watched(self.k, verify, self.k, self.a)
        except SimulatedSignal as signal:
            raise AllocatorFailure(f"{self._after_end(signal)}: {self.reason()}") from None
        except SoftLockup as lockup:
            self.machine.revoke()
            where = self._after_end(lockup)
            raise SoftLockup(lockup.event, lockup.seconds, where) from None
        except Exception as error:
            raise AllocatorFailure(f"{self._after_end(error)}: {one_line(error)}") from error
        try:
            self.check_overlap()
        except AllocatorFailure as failure:
            file = getattr(self.plugin.module, "__file__", self.plugin.name)
            what = f"{file}: after the last event: {failure}"
            raise AllocatorFailure(what, failure.address) from None

    def _after_end(self, error: BaseException) -> str:
        """Return 'FILE:LINE: after the last event, check()', where check() raised ``error``."""
        file = self._files()[0]
        line = last_line(error, file)
        place = f"{file}:{line}" if line else place_of(self.plugin.module, "check")
        return f"{place}: after the last event, check()"

    def check_overlap(self) -> None:
        """Raise AllocatorFailure if two live blocks overlap."""
        live = self.objects[self.objects[:, 0] > 0]
        start, size = live[np.argsort(live[:, 0], kind="stable")].T
        bad = np.flatnonzero(start[:-1] + np.maximum(size[:-1], 1) > start[1:])
        if len(bad):
            low, high = start[bad[0]], start[bad[0] + 1]
            what = f"live block of {size[bad[0]]} bytes at {low:#x} overlaps the one at {high:#x}"
            raise AllocatorFailure(what, int(low))

    @property
    def out_of_memory(self) -> bool:
        """True if a request returned NULL or the process was killed because memory ran out."""
        return bool(self.r.failed) or self.stopped_at >= 0

    def metrics(self, cost: Mapping[str, float]) -> dict[str, float]:
        """Return the deterministic metrics of an observed replay (benchmarks.replay.metrics).

        ``cost``: nanoseconds by kind of kernel work (conf/kernel/cost).
        """
        return measured(self.k, self.r, self.machine.config.page_size, cost)

    def timeline(self) -> dict[str, np.ndarray]:
        """Return the timeline's columns, (rows,) int64 each; the last row is the end of the run."""
        return timeline(self.k, self.r, self.machine.config.page_size)
