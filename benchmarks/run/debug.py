"""Run a job as plain Python and stop at the first broken invariant: ``bench.py debug=true``.

The whole replay runs in this process, so that ``print`` and ``breakpoint()`` in a plugin work, and
every array index is checked.  Every ``allocator.check_every`` events the debugger checks the heap:
it calls the plugin's ``check``, looks for live blocks that overlap, and compares the live blocks
with those that the plugin's ``walk`` lists.  After a failed check it replays the same events, which
are deterministic, and from the last valid state on checks after every event until it finds the one
that broke the heap.  The report shows the lines of the plugin that this event ran, the allocator's
state, and the blocks around the address.
"""

import sys
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from linecache import getlines
from pathlib import Path
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import numpy as np

from allocators.base.contract import BLOCK_USED
from benchmarks.events.events import OP_NAMES, THREAD_END, column, rows
from benchmarks.replay.heap import KINDS, pieces, walker
from benchmarks.replay.loop import verify_heap
from benchmarks.replay.simulation import OBSERVED, AllocatorFailure, Simulation
from benchmarks.run import results
from benchmarks.run.job import Job
from kernel.types import SimulatedSignal

#: Events between two checks of the heap if allocator.check_every is 0.
EVERY = 1000
#: Limits of the report: lines that the failing event ran, array entries, blocks on either side.
_LINES, _ENTRIES, _NEIGHBOURS = 60, 8, 4
#: Seconds between two lines of progress.
_REPORT_INTERVAL = 5.0


def _say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


class _LineTrace:
    """Trace function that records the executed lines of ``file`` and the locals they change."""

    def __init__(self, file: str) -> None:
        self._file = file
        self.lines: list[tuple[int, str]] = []
        #: By frame: its local variables, and the index in ``lines`` of its last line.
        self._seen: dict[FrameType, tuple[dict[str, Any], int]] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Callable | None:
        """Trace one event of the interpreter (sys.settrace)."""
        if frame.f_code.co_filename != self._file:
            return None
        values = {k: v for k, v in frame.f_locals.items() if isinstance(v, (int, np.integer))}
        before, last = self._seen.get(frame, ({}, -1))
        changed = [f"{k} = {_number(v)}" for k, v in values.items() if before.get(k) != v]
        if event == "call":
            last = len(self.lines)
            self.lines.append((_def_line(frame.f_code), ", ".join(changed)))
        elif changed:
            line, values_so_far = self.lines[last]
            self.lines[last] = line, ", ".join(filter(None, (values_so_far, *changed)))
        if event == "line":
            last = len(self.lines)
            self.lines.append((frame.f_lineno, ""))
        self._seen[frame] = values, last
        return self


def _def_line(code: CodeType) -> int:
    """Return the line of a function's ``def``, below its decorators."""
    lines = getlines(code.co_filename)
    first = code.co_firstlineno
    return next((n for n in range(first, len(lines)) if lines[n - 1].startswith("def ")), first)


class _Debugged(Simulation):
    """Simulation whose heap is checked every ``every`` events; in a search, after every event.

    A search starts at event ``sound``, the end of the last valid state.
    """

    loose = True

    def __init__(self, job: Job, every: int) -> None:
        self.every = every
        self.sound = 0  # number of events after which the heap was last valid
        self.searching = False
        self.trace = _LineTrace(job.plugin.module.__file__)
        self.before: dict[str, Any] = {}  # the state before the traced event
        self.object_at = 0  # address of the object of that event, or 0
        self.blocks: np.ndarray = np.zeros((0, 3), "i8")  # blocks of the last valid heap
        switches = OBSERVED | {"CHECK_FRAMES": job.check_frames}
        super().__init__(job.plugin, job.load_workload(), job.kernel, switches)
        self._check = self.specialise(verify_heap)
        self.walk = walker(self) if hasattr(self.plugin.module, "walk") else None

    def start(self) -> None:
        """Restart, with a state whose arrays are checked at both bounds."""
        super().start()
        self.a = self.plugin.state(bounded=True)

    def _pieces(self, end: int) -> Iterator[tuple[Any, int, int]]:
        """Cut the events into pieces and check the heap after each."""
        reported = monotonic()
        for source, begin, last in super()._pieces(end):
            first = begin
            while first < last:
                stop = min(self._next(first), last)
                piece = (
                    source
                    if self._program is not None
                    else rows(source, *(n - begin for n in (first, stop)))
                )
                slot = int(piece.slot if self._program is not None else piece.slot[0])
                self.object_at = int(self.objects[slot, 0]) if slot >= 0 else 0
                if self.searching and first >= self.sound:
                    self._trace_one()
                yield piece, first, stop
                if self.searching:
                    sys.settrace(None)
                    self.object_at = self.object_at or int(self.objects[slot, 0])
                if not self.searching or first >= self.sound:
                    self.examine()
                    self.sound = stop
                if monotonic() - reported > _REPORT_INTERVAL:
                    reported = monotonic()
                    _say(f"event {stop:,} of {self.length:,}")
                first = stop

    def _next(self, first: int) -> int:
        """Return the end of the piece that begins with event ``first``."""
        if not self.searching:
            return first + self.every
        return self.sound if first < self.sound else first + 1

    def _trace_one(self) -> None:
        """Start tracing for the next event."""
        self.before = self.state()
        self.trace.lines.clear()
        sys.settrace(self.trace)

    def examine(self) -> None:
        """Raise AllocatorFailure if the heap is not valid."""
        try:
            self._check(self.k, self.a)
        except SimulatedSignal:
            raise AllocatorFailure(self.reason()) from None
        self.check_overlap()
        if self.walk is not None:
            blocks = pieces(self, self.walk)
            used = blocks[blocks[:, 2] == BLOCK_USED, 0]
            live = self.objects[self.objects[:, 0] > 0, 0]
            if missing := sorted(set(live.tolist()) - set(used.tolist())):
                raise AllocatorFailure("walk() does not list this live block as used", missing[0])
            self.blocks = blocks

    def state(self) -> dict[str, Any]:
        """Return a copy of the plugin's static variables."""
        return {name: np.copy(self.a[name]) for name in self.a.dtype.names}

    def describe_event(self) -> str:
        """Describe the running event: operation, object, size and thread."""
        if self._running is None:
            return "init()"
        source, begin = self._running
        now = int(self.k.task.now)
        if self._program is not None:
            op, slot, size, align = source.op, source.slot, source.request, source.align
        else:
            names = "op", "slot", "size", "align"
            op, slot, size, align = (column(source, name)[now - begin] for name in names)
        text = OP_NAMES[int(op)]
        if slot >= 0:
            text += f" of object {int(slot)}"
        if op != 1 and op < THREAD_END:
            text += f", {int(size):,} bytes"
        if align:
            text += f", alignment {1 << int(align)}"
        return f"event {now}: {text}, thread {int(self.k.task.tid)}"


def _number(value: Any) -> str:
    """Format small numbers in decimal and addresses in hexadecimal."""
    number = int(value)
    return f"{number:#x}" if number > 1 << 20 else str(number)


def _field_text(before: np.ndarray, after: np.ndarray) -> str:
    """Format a field of the state; for an array, the entries that changed or are not 0."""
    if after.dtype.names:
        return f"{after.size} records, {'un' * np.array_equal(before, after)}changed"
    old, new = before.reshape(-1), after.reshape(-1)
    changed = np.flatnonzero(old != new)
    some = changed if len(changed) else np.flatnonzero(new)
    words = [
        f"{f'[{i}] ' if after.shape else ''}"
        f"{f'{_number(old[i])} -> ' if old[i] != new[i] else ''}{_number(new[i])}"
        for i in some[:_ENTRIES]
    ]
    more = [f"{len(some) - _ENTRIES} more"] if len(some) > _ENTRIES else []
    return ", ".join(words + more) or "0"


def _report(simulation: _Debugged, address: int) -> None:
    """Print the event that broke the heap; ``address``: address of the damaged block, or 0."""
    _say(f"\n{simulation.describe_event()}")
    shown = simulation.trace.lines[-_LINES:]
    file = Path(simulation.plugin.module.__file__)
    if shown:
        _say(
            f"\nlines of {file.name} that the event ran"
            + (" (the last ones)" * (len(shown) == _LINES))
        )
        source = getlines(str(file))
        for line, values in shown:
            text = source[line - 1].strip()
            _say(f"  {line:5} {text:60}{'  # ' + values if values else ''}")
    _say("\nthe allocator's state (before -> after)")
    for name, value in simulation.state().items():
        _say(f"  {name:16} {_field_text(simulation.before.get(name, value), value)}")
    if address or simulation.object_at:
        _show_blocks(simulation, address or simulation.object_at)


def _show_blocks(simulation: _Debugged, address: int) -> None:
    """Print the blocks around ``address`` before the event and, if walk still works, after it."""
    after = None
    if simulation.walk is not None:
        try:
            after = pieces(simulation, simulation.walk)
        except AllocatorFailure as failure:
            _say(f"\nwalk() cannot list the heap after the event: {failure}")
    for when, blocks in (("before", simulation.blocks), ("after", after)):
        if blocks is None or not len(blocks):
            continue
        place = int(np.searchsorted(blocks[:, 0], address, side="right")) - 1
        first = max(place - _NEIGHBOURS, 0)
        _say(f"\nthe heap around {address:#x}, {when} the event")
        for i, (start, size, kind) in enumerate(blocks[first : place + _NEIGHBOURS + 1], first):
            mark = "->" if i == place else "  "
            _say(f"  {mark} {int(start):#x} {int(size):10,} bytes  {KINDS.get(int(kind), kind)}")


def debug(job: Job) -> str:
    """Run ``job`` as plain Python and return its status.  Writes no results.

    Must be called before Numba is imported.
    """
    every = job.check_every or EVERY
    simulation = _Debugged(job, every)
    length = simulation.length
    _say(f"{job.plugin.label}: {length:,} events as plain Python, heap checked every {every:,}")
    with np.errstate(divide="raise"):
        failure = _replay(simulation)
        if failure is None:
            ended = f"; killed at event {simulation.stopped_at}: out of memory"
            _say(f"no invariant was broken{ended if simulation.stopped_at >= 0 else ''}")
            return results.OOM if simulation.out_of_memory else results.OK
        event = int(simulation.k.task.now)
        _say(f"the heap is broken at event {event:,}; replaying to find the event that broke it")
        simulation.searching = True
        sys.breakpointhook = lambda *_args, **_keywords: None  # do not stop there again
        failure = _replay(simulation) or failure
    _say(f"bench.py: {failure}")
    _report(simulation, failure.address)
    return results.FAILED


def _replay(simulation: _Debugged) -> AllocatorFailure | None:
    """Replay all events; return the failure with its place, or None.

    Raises KeyboardInterrupt on Ctrl-C and when the user quits pdb.
    """
    try:
        simulation.replay(watch=False)
    except AllocatorFailure as failure:
        if isinstance(failure.__cause__, BdbQuit):
            raise KeyboardInterrupt from None
        return failure
    except KeyboardInterrupt as interrupt:
        _say(f"\nbench.py: {simulation.where(interrupt)}: interrupted")
        raise
    finally:
        if simulation.searching:
            sys.settrace(None)
    return None
