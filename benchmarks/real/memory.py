"""What a real library does with memory, event by event, in the model's own records.

The real process plays a batch; then the model's replay loop goes over the same events with a
"plugin" that only repeats what happened: its malloc returns the address that the real one
returned, and the counters in ``mm`` are set to what the process had after the event.  So objects,
live bytes, peaks, means, fragmentation and the timeline are computed by the code that computes them
for the model, from the definitions in benchmarks.replay.metrics:

    heap       writable private memory, which is what statm calls data: break and mappings
    reserved   all other memory that the library mapped: PROT_NONE
    RSS        resident less shared: anonymous frames, without the zero page and page tables
    faults     by getrusage, the thread's own; pages of libraries' code are mapped before

What the loader and the C library took before the first event is subtracted.  What the library
mapped when it was loaded is its heap (RealProcess.own); a page of its variables counts for RSS when
it is written later, and not for the heap.  The kernel's counters are exact from Linux 6.17 on;
before, each processor may keep back some pages of RSS (kernel.linux.host.observe).

The same library need not do the same twice: what it decides by the clock, by the addresses of the
system or by its processor may differ from run to run.  glibc with one thread decides by none.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import numpy as np

from allocators.base.library import REAL, Library
from benchmarks.events.events import FREE, TOUCH_READ, Events, make_events, read_only, rows
from benchmarks.events.touch import TOUCH_NAMES
from benchmarks.real import machine_code
from benchmarks.real.process import PAGE, RealProcess, prepare
from benchmarks.real.threads import ThreadedProcess
from benchmarks.replay.loop import RUN, TIMELINE_ROWS, replay_events
from benchmarks.replay.measured import measured, timeline
from benchmarks.replay.metrics import OF_NATIVE_RUNS
from benchmarks.workloads import Workload
from kernel.cost import COSTS
from kernel.counters import CALLS, COUNTERS
from kernel.engine.jit import build, jit, source_hash
from kernel.engine.record import added, record
from kernel.linux.host.observe import host_settings
from kernel.linux.host.process import HostError
from kernel.types import MM, TASK
from kernel.uapi import NR_BRK

#: The counters that a real process shows.
_SHOWN = tuple(counter.field for counter in COUNTERS if counter.real)
#: A change of memory, pages, and by how much the counters go up.
_CHANGE = np.dtype(
    [(name, "i8") for name in ("event", "total", "resident", "shared", "writable", *_SHOWN)],
    align=True,
)

#: Events of a program that are played before they are looked at.
_COLLECTED = 4096

#: What happened in a batch, and how far the loop has come: ``at`` of ``count`` changes.
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

#: What stands for the kernel: its counters, and what the real one did.
_KERNEL = np.dtype([("mm", MM), ("task", TASK), ("truth", _TRUTH)], align=True)

#: Add what a change counts to an MM.
count = added(_SHOWN)


@jit
def catch_up(k):
    """Bring the counters to the end of the running event."""
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
    """Address that the real library returned in the running event."""
    catch_up(k)
    return k.truth.address[k.task.now - k.truth.begin]


# --- The plugin that repeats ---------------------------------------------------------------------


@jit
def malloc(k, a, size):
    """Repeat."""
    return answered(k)


@jit
def calloc(k, a, size):
    """Repeat."""
    return answered(k)


@jit
def aligned_alloc(k, a, alignment, size):
    """Repeat."""
    return answered(k)


@jit
def realloc(k, a, p, size):
    """Repeat."""
    return answered(k)


@jit
def free(k, a, p):
    """Repeat."""
    catch_up(k)


@jit
def thread_exit(k, a):
    """Repeat."""
    catch_up(k)


@jit
def touch(k, addr, length, write):
    """Repeat."""
    catch_up(k)


@jit
def inspect(k, p, size, alignment):
    """Trust: whether a real block lies where it may was seen when it was touched."""


_REPEATING = {
    f.__name__: f
    for f in (malloc, calloc, aligned_alloc, realloc, free, thread_exit, touch, inspect)
}


# --- A run ---------------------------------------------------------------------------------------


class RealRun:
    """One program played on one library, and everything that is known of it afterwards.

    ``r``: the record of the replay loop (benchmarks.replay.loop.RUN); ``events``: how many there
    were; ``seconds``: in the process's batches, its bookkeeping included.  ``start`` and ``end``:
    the process's memory before the first event and after the last; ``own``: what of the first was
    the library's; ``sees_calls``: whether system calls are counted.
    """

    def __init__(
        self,
        library: Library,
        workload: Workload,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Play all of it.  Raises LibraryError, HostError, or WorkloadError for a bad stream."""
        self.k, self.r = record(_KERNEL), record(RUN)
        self.threads = library.threads
        self.r.first_failure = -1
        self.r.stride = max(1, length(workload) // (TIMELINE_ROWS // 2))
        bindings = self._bindings(workload)
        loop, self.loop_hash = (
            build(replay_events, **bindings),
            source_hash(replay_events, **bindings),
        )
        nothing = record(np.dtype([("unused", "i8")]))
        self.events = 0
        with process_for(library, workload) as process:
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
            with closing(played(process, workload)) as pieces:
                for events, answers, log in pieces:
                    begin, self.events = self.events, self.events + len(events.op)
                    self._take(answers, log, begin)
                    loop(self.k, nothing, self.r, self._objects, events, begin, self.events)
                    if progress:
                        progress(self.events)
            self.end, self.seconds = process.state(), process.seconds
            self.thread_count = len(getattr(process, "threads_seen", (0,)))

    def conditions(self) -> dict[str, Any]:
        """Plain values for run.json: how it was run, and where its memory began, bytes."""
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
        """Return the metrics that a real run has; None for system calls that are unseen."""
        found = measured(self.k, self.r, PAGE, dict.fromkeys(COSTS, 0.0))
        return {
            name: None if name.startswith("syscalls") and not self.sees_calls else found[name]
            for name in OF_NATIVE_RUNS
            if name in found
        }

    def timeline(self) -> dict[str, np.ndarray]:
        """Columns of the timeline, (rows,) int64 each; the last row is the end of the run."""
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

    def _take(self, answers: np.ndarray, log: np.ndarray, begin: int) -> None:
        """Lay out what happened in a batch for the loop."""
        truth = self.k.truth
        truth.begin, truth.at, truth.count = begin, 0, len(log)
        truth.address[: len(answers)] = answers["address"]
        change = truth.change[: len(log)]
        statm = np.fromstring(b" ".join(log["statm"].tolist()), "i8", sep=" ").reshape(-1, 7)
        if len(statm) != len(log):
            raise HostError("/proc/self/statm could not be read")
        change["event"] = log["event"]
        for counter in CALLS:
            change[counter.field] = np.isin(log["nr"], counter.calls)
        change["nr_failed"] = _has_failed(log)
        for name, place in (("total", 0), ("resident", 1), ("shared", 2), ("writable", 5)):
            change[name] = statm[:, place]
        change["minflt"], change["majflt"] = log["minflt"], log["majflt"]


def _has_failed(log: np.ndarray) -> np.ndarray:
    """Which records are of a call that returned an error; brk returns the old break instead."""
    is_brk = log["nr"] == NR_BRK
    refused = log["result"] < log["args"][:, 0]
    return np.where(is_brk, refused, (log["nr"] >= 0) & (log["result"] < 0))


def length(workload: Workload) -> int:
    """Number of events, of a program at most."""
    if workload.program is not None:
        return workload.program.length
    if workload.stream is not None:
        return workload.stream.facts.events
    return len(workload.events.op)


def clean_seconds(library: Library, workload: Workload, *, touch: str | None = None) -> float:
    """Seconds of the workload in a process that holds nothing else and writes nothing down.

    Faults and system calls are within.  ``touch``: what the program does with its blocks, if not
    the workload's own.  Raises LibraryError, HostError or WorkloadError.
    """
    with process_for(library, workload, touch=touch, observe=False) as process:
        for _ in played(process, workload):
            pass
        return process.seconds


# --- Events as they are played -------------------------------------------------------------------

Piece = tuple[Events, np.ndarray, np.ndarray]


def process_for(
    library: Library, workload: Workload, *, touch: str | None = None, observe: bool = True
) -> RealProcess:
    """A process for :func:`played`; with real threads where the library's settings say so.

    A program that waits for addresses has but one thread.
    """
    threaded = library.threads == REAL and workload.program is None
    kind = ThreadedProcess if threaded else RealProcess
    return kind(library, slots=workload.slots, touch=touch or workload.touch, observe=observe)


def played(process: RealProcess, workload: Workload) -> Iterator[Piece]:
    """Play the workload in ``process``; yields pieces of at most BATCH events, answers and log.

    With real threads the events come in the order in which they ended.
    """
    if workload.program is not None:
        yield from _played_program(process, workload)
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
                    yield process.play_threads(events)
                    continue
                done = 0
                for answers, log in process.play(prepare(events)):
                    yield rows(events, done, done + len(answers)), answers, log
                    done += len(answers)


def _played_program(process: RealProcess, workload: Workload) -> Iterator[Piece]:
    """A program sees each address before it goes on; what it frees meanwhile can wait."""
    step = build(workload.program.next_event)
    g = workload.program.state()
    last, left = 0, workload.program.length
    rows: list[tuple[int, int, int, int, int]] = []
    answers, logs, done = [], [], 0

    def play() -> None:
        nonlocal done
        for answer, log in process.play(prepare(_asked(rows[done:]))):
            log["event"] += done
            answers.append(answer)
            logs.append(log)
            done += len(answer)

    def collected() -> Piece:
        nonlocal rows, answers, logs, done
        piece = _asked(rows), np.concatenate(answers), np.concatenate(logs)
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


def _asked(rows: list[tuple[int, int, int, int, int]]) -> Events:
    op, slot, size, align, offset = np.array(rows, "i8").reshape(-1, 5).T
    return read_only(make_events(op, slot, size, align=align, offset=offset))
