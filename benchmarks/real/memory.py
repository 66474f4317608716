"""Memory use of a real library, event by event, in the model's records.

The real process plays a batch.  Then the model's replay loop walks the same events with a "plugin"
that repeats the recorded results: its malloc returns the address that the real one returned, and
the counters in ``mm`` are set to those of the process after the event.  Objects, live bytes, peaks,
means, fragmentation and the timeline are thus computed by the same code as for the model, by the
definitions in benchmarks.replay.metrics:

    heap       writable private memory, the "data" of statm: break and mappings
    reserved   all other memory that the library mapped: PROT_NONE
    RSS        resident minus shared: anonymous frames, without the zero page and page tables
    faults     of the thread, by getrusage; the code of libraries is mapped before the first event

Memory that the loader and the C library took before the first event is subtracted.  Memory that the
library mapped when it was loaded belongs to its heap (RealProcess.own).  A page of the library's
variables counts for RSS if it is written later, but not for the heap.  The kernel's counters are
exact since Linux 6.17; before, each processor may hold back some pages of RSS
(kernel.linux.host.observe).

A library may behave differently from run to run if it decides by the clock, by the addresses that
the kernel returns or by the current processor.  glibc with one thread does none of this.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import numpy as np

from allocators.base.library import ONE, REAL, Library
from benchmarks.events.events import FREE, TOUCH_READ, Events, make_events, read_only, rows
from benchmarks.events.touch import TOUCH_NAMES
from benchmarks.real import machine_code
from benchmarks.real.process import PAGE, RealProcess, prepare
from benchmarks.real.threads import ThreadedProcess, has_real_threads
from benchmarks.replay.loop import RUN, TIMELINE_ROWS, replay_events
from benchmarks.replay.measured import measured, timeline
from benchmarks.replay.metrics import OF_NATIVE_RUNS
from benchmarks.workloads import Workload
from kernel.cost import COSTS
from kernel.counters import CALLS, COUNTERS
from kernel.engine.jit import build, jit, source_hash
from kernel.engine.record import field_adder, record
from kernel.linux.host.observe import host_settings
from kernel.linux.host.process import HostError
from kernel.types import MM, TASK
from kernel.uapi import NR_BRK

#: Fields of the counters that can be observed on a real process.
_SHOWN = tuple(counter.field for counter in COUNTERS if counter.real)
#: Memory in pages after a change, and the increments of the counters.
_CHANGE = np.dtype(
    [(name, "i8") for name in ("event", "total", "resident", "shared", "writable", *_SHOWN)],
    align=True,
)

#: Events of a program that are collected into one piece.
_COLLECTED = 4096

#: Recorded results of a batch, and the position of the loop: ``at`` of ``count`` changes.
_TRUTH = np.dtype(
    [
        ("begin", "i8"),
        ("at", "i8"),
        ("count", "i8"),
        ("total0", "i8"),
        ("private0", "i8"),
        ("writable0", "i8"),
        ("address", "i8", (machine_code.BATCH,)),
        ("change", _CHANGE, (machine_code.LOG_ROOM,)),
    ],
    align=True,
)

#: Stand-in for the kernel's state: its counters, and the recorded results.
_KERNEL = np.dtype([("mm", MM), ("task", TASK), ("truth", _TRUTH)], align=True)

#: Numbers in /proc/PID/statm.
_STATM_NUMBERS = 7

#: Add the increments of a change to an MM.
count = field_adder(_SHOWN)


@jit
def catch_up(k):
    """Advance the counters to the end of the current event."""
    mm, truth = k.mm, k.truth
    now = k.task.now - truth.begin
    while truth.at < truth.count and truth.change[truth.at].event <= now:
        c = truth.change[truth.at]
        truth.at += 1
        mm.total_vm = c.total - truth.total0
        mm.reserved_vm = mm.total_vm - (c.writable - truth.writable0)
        mm.rss = c.resident - c.shared - truth.private0
        mm.hiwater_rss = max(mm.hiwater_rss, mm.rss)
        count(mm, c)


@jit
def answered(k):
    """Return the address that the real library returned in the current event."""
    catch_up(k)
    return k.truth.address[k.task.now - k.truth.begin]


# --- The plugin that repeats recorded results ----------------------------------------------------


@jit
def malloc(k, a, size):
    """Return the recorded address."""
    return answered(k)


@jit
def calloc(k, a, size):
    """Return the recorded address."""
    return answered(k)


@jit
def aligned_alloc(k, a, alignment, size):
    """Return the recorded address."""
    return answered(k)


@jit
def realloc(k, a, p, size):
    """Return the recorded address."""
    return answered(k)


@jit
def free(k, a, p):
    """Apply the recorded changes of memory."""
    catch_up(k)


@jit
def thread_exit(k, a):
    """Apply the recorded changes of memory."""
    catch_up(k)


@jit
def trim(k, a):
    """Apply the recorded changes of memory."""
    catch_up(k)


@jit
def touch(k, addr, length, write):
    """Apply the recorded changes of memory."""
    catch_up(k)


@jit
def inspect(k, p, size, alignment):
    """Check nothing: the real process crashes when it touches a bad address."""


_REPEATING = {
    f.__name__: f
    for f in (malloc, calloc, aligned_alloc, realloc, free, thread_exit, trim, touch, inspect)
}


# --- A run ---------------------------------------------------------------------------------------


class RealRun:
    """One workload played on one library, with its results.

    ``r``: the record of the replay loop (benchmarks.replay.loop.RUN).  ``events``: number of
    events.  ``seconds``: time in the process's batches, including its bookkeeping.  ``start`` and
    ``end``: the process's memory before the first and after the last event; ``own``: the part of
    ``start`` that belongs to the library.  ``sees_calls``: True if system calls are counted.
    """

    def __init__(
        self,
        library: Library,
        workload: Workload,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Play the whole workload.

        Raises LibraryError, HostError, or WorkloadError for a bad stream.
        """
        self.k, self.r = record(_KERNEL), record(RUN)
        self.threads = REAL if has_real_threads(library, workload) else ONE
        self.r.first_failure = -1
        self.r.stride = max(1, length(workload) // (TIMELINE_ROWS // 2))
        nothing = record(np.dtype([("unused", "i8")]))
        self.events = 0
        with process_for(library, workload) as process:
            bindings = self._bindings(workload) | {"TRIMS": process.trims}
            loop = build(replay_events, **bindings)
            self.loop_hash = source_hash(replay_events, **bindings)
            self._objects = np.zeros((len(process.table), 2), "i8")
            self.start, self.sees_calls = process.start, process.sees_calls
            truth = self.k.truth
            truth.total0 = self.start.total - process.own.total
            truth.writable0 = self.start.writable - process.own.writable
            truth.private0 = self.start.private - process.own.private
            mm, self.own = self.k.mm, process.own
            mm.total_vm, mm.rss = self.own.total, self.own.private
            mm.reserved_vm = self.own.total - self.own.writable
            mm.hiwater_rss = mm.rss
            with closing(play_workload(process, workload)) as pieces:
                for events, answers, log in pieces:
                    begin, self.events = self.events, self.events + len(events.op)
                    self._store_batch(answers, log, begin)
                    loop(self.k, nothing, self.r, self._objects, events, begin, self.events)
                    if progress:
                        progress(self.events)
            self.end, self.seconds = process.state(), process.seconds
            self.thread_count = getattr(process, "thread_count", 1)

    def conditions(self) -> dict[str, Any]:
        """Return the conditions of the run for run.json; the initial heap and RSS in bytes."""
        return {
            "threads": self.threads,
            "thread_count": self.thread_count,
            "start_heap": self.own.writable * PAGE,
            "start_rss": self.own.private * PAGE,
            "system_calls_seen": self.sees_calls,
            "host": {
                name: value
                for name, value in host_settings().items()
                if name in ("release", "thp_enabled", "overcommit_memory")
            },
        }

    def metrics(self) -> dict[str, float | None]:
        """Return the metrics of a real run; None for system calls if they are not observed."""
        found = measured(self.k, self.r, PAGE, dict.fromkeys(COSTS, 0.0))
        return {
            name: None if name.startswith("syscalls") and not self.sees_calls else found[name]
            for name in OF_NATIVE_RUNS
            if name in found
        }

    def timeline(self) -> dict[str, np.ndarray]:
        """Return the columns of the timeline, (rows,) int64 each; the last row is the end."""
        columns = timeline(self.k, self.r, PAGE)
        unseen = ("page_tables", "steps", *(() if self.sees_calls else ("syscalls",)))
        return {name: data for name, data in columns.items() if name not in unseen}

    def _bindings(self, workload: Workload) -> dict[str, Any]:
        if workload.program is not None:
            names = ("align", "offset")
        elif workload.stream is not None:
            names = workload.stream.names
        else:
            names = [n for n, data in workload.events._asdict().items() if len(data)]
        columns = ("align", "thread", "offset", "site")
        return _REPEATING | {
            "COUNT": False,
            "OBSERVE": True,
            "TIMELINE": True,
            "TOUCH": TOUCH_NAMES.index(workload.touch),
            **{f"HAS_{name.upper()}": name in names for name in columns},
        }

    def _store_batch(self, answers: np.ndarray, log: np.ndarray, begin: int) -> None:
        """Store the recorded results of a batch for the loop.  Raises HostError."""
        truth = self.k.truth
        truth.begin, truth.at, truth.count = begin, 0, len(log)
        truth.address[: len(answers)] = answers["address"]
        change = truth.change[: len(log)]
        statm = _page_counts(log)
        change["event"] = log["event"]
        for counter in CALLS:
            change[counter.field] = np.isin(log["nr"], counter.calls)
        change["nr_failed"] = _has_failed(log)
        for name, place in (("total", 0), ("resident", 1), ("shared", 2), ("writable", 5)):
            change[name] = statm[:, place]
        change["minflt"], change["majflt"] = log["minflt"], log["majflt"]


def _page_counts(log: np.ndarray) -> np.ndarray:
    """Return the numbers in the texts of statm, (n, 7) int64, pages.  Raises HostError.

    A record is written in place of an older one: only its first ``length`` characters are its text.
    """
    pairs = zip(log["statm"].tolist(), log["length"].tolist(), strict=True)
    numbers = b" ".join(text[: max(length, 0)] for text, length in pairs).split()
    if len(numbers) != _STATM_NUMBERS * len(log):
        raise HostError("cannot read /proc/self/statm in the library's process")
    return np.array(numbers, "S").astype("i8").reshape(-1, _STATM_NUMBERS)


def _has_failed(log: np.ndarray) -> np.ndarray:
    """Mark the records of calls that failed, (n,) bool; a failed brk returns the old break."""
    is_brk = log["nr"] == NR_BRK
    refused = log["result"] < log["args"][:, 0]
    return np.where(is_brk, refused, (log["nr"] >= 0) & (log["result"] < 0))


def length(workload: Workload) -> int:
    """Return the number of events; of a program, the maximum."""
    if workload.program is not None:
        return workload.program.length
    if workload.stream is not None:
        return workload.stream.facts.events
    return len(workload.events.op)


def clean_seconds(library: Library, workload: Workload, *, touch: str | None = None) -> float:
    """Time the workload, in seconds, in a process that contains nothing else and records nothing.

    The time includes page faults and system calls.  ``touch``: overrides the workload's own
    setting.  Raises LibraryError, HostError or WorkloadError.
    """
    with process_for(library, workload, touch=touch, observe=False) as process:
        for _ in play_workload(process, workload):
            pass
        return process.seconds


# --- Playing events ------------------------------------------------------------------------------

Piece = tuple[Events, np.ndarray, np.ndarray]


def process_for(
    library: Library, workload: Workload, *, touch: str | None = None, observe: bool = True
) -> RealProcess:
    """Start a process for :func:`play_workload`, with real threads where they are asked for."""
    kind = ThreadedProcess if has_real_threads(library, workload) else RealProcess
    return kind(library, slots=workload.slots, touch=touch or workload.touch, observe=observe)


def play_workload(process: RealProcess, workload: Workload) -> Iterator[Piece]:
    """Play the workload in ``process``; yield pieces of at most BATCH events, answers and log.

    With real threads, events are in the order in which they ended.
    """
    if workload.program is not None:
        yield from _play_program(process, workload)
        return
    if workload.stream is not None:
        pieces = workload.stream.pieces()
    else:
        pieces = iter([read_only(workload.events)])
    with closing(pieces) if workload.stream is not None else nullcontext():
        for piece in pieces:
            for first in range(0, len(piece.op), process.BATCH):
                events = rows(piece, first, first + process.BATCH)
                if isinstance(process, ThreadedProcess):
                    yield from map(process.play_threads, process.parts(events))
                    continue
                done = 0
                for answers, log in process.play(prepare(events)):
                    yield rows(events, done, done + len(answers)), answers, log
                    done += len(answers)


def _play_program(process: RealProcess, workload: Workload) -> Iterator[Piece]:
    """Play a program, which needs each address before its next event; frees are batched."""
    step = build(workload.program.next_event)
    g = workload.program.state()
    last, left = 0, workload.program.length
    rows: list[tuple[int, int, int, int, int]] = []
    answers, logs, done = [], [], 0

    def play() -> None:
        nonlocal done
        for answer, log in process.play(prepare(_as_events(rows[done:]))):
            log["event"] += done
            answers.append(answer)
            logs.append(log)
            done += len(answer)

    def collected() -> Piece:
        nonlocal rows, answers, logs, done
        piece = _as_events(rows), np.concatenate(answers), np.concatenate(logs)
        rows, answers, logs, done = [], [], [], 0
        return piece

    while left and step(g, last):
        left -= 1
        rows.append((int(g.op), int(g.slot), int(g.request), int(g.align), int(g.offset)))
        last = 0
        if g.op < TOUCH_READ and g.op != FREE:
            play()
            last = int(answers[-1]["address"][-1])
        if len(rows) == _COLLECTED:
            play()
            yield collected()
    if rows:
        play()
        yield collected()


def _as_events(rows: list[tuple[int, int, int, int, int]]) -> Events:
    op, slot, size, align, offset = np.array(rows, "i8").reshape(-1, 5).T
    return read_only(make_events(op, slot, size, align=align, offset=offset))
