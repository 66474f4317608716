"""Timing of a real library: the compiled replay loop of the model calls its functions.

The process is a new Python process under LD_PRELOAD.  As with the model, blocks are not touched, so
that the time is the library's own work.  Unlike with the model, that time includes the library's
system calls and the page faults on its headers and lists.

Before each replay, all blocks of the previous one are freed, outside the timed part.  The library
may reuse the memory that it retains: from the second replay on (the first is not a sample), it is
in the state of a long-running program, as the model's host memory is warm.

With one thread, the loop runs in the process's main thread, because glibc assigns another arena to
other threads.  With real threads (ThreadedTimed), each thread of the trace is a thread, created for
every replay, and an event waits for the earlier events of the same object, as in
benchmarks.real.threads.  The clock runs from the moment when all threads are ready until the last
one has finished.
"""

import ctypes
import threading
from time import perf_counter, sleep
from typing import Any

import numpy as np

from allocators.base.library import Library, LibraryError
from allocators.base.registry import Plugin
from benchmarks.events.events import Events, column, read_only
from benchmarks.events.threads import ThreadError, ThreadNumbers
from benchmarks.real import libc
from benchmarks.real.machine_code import MOST_THREADS
from benchmarks.real.memory import inspect
from benchmarks.real.threads import Naming, has_real_threads
from benchmarks.replay.loop import RUN, apply
from benchmarks.replay.simulation import TIMED, Simulation, page_faults
from benchmarks.workloads import Workload
from kernel.config import KernelConfig
from kernel.engine.jit import build, disabled, jit
from kernel.engine.record import record
from kernel.types import TASK

#: Functions that the library must provide.
_FUNCTIONS = ("malloc", "free", "calloc", "realloc", "aligned_alloc")


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _provider(name: str) -> str:
    """Return the path of the library that provides function ``name`` in this process, or ''."""
    process, place = ctypes.CDLL(None), _Place()
    process.dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Place)]
    if not hasattr(process, name):
        return ""
    address = ctypes.cast(getattr(process, name), ctypes.c_void_p)
    return place.file.decode() if process.dladdr(address, ctypes.byref(place)) else ""


def check_process(library: Library) -> Plugin:
    """Return this process's allocator as a plugin.

    Raises LibraryError unless it is ``library``.
    """
    for name in _FUNCTIONS:
        found = _provider(name)
        if not found or not library.is_file(found):
            raise LibraryError(
                f"{library.name}: {name} of this Python comes from {found or 'nowhere'}: "
                "the library was not preloaded"
            )
    return libc.plugin(trims=library.is_file(_provider("malloc_trim")))


class Timed:
    """Workload ready to be replayed on the library that this process runs on.

    Raises LibraryError if the process runs on another library.
    """

    def __init__(self, library: Library, workload: Workload) -> None:
        plugin = check_process(library)
        bindings = TIMED | libc.bindings(touches=False)
        self._simulation = Simulation(plugin, workload, KernelConfig(), bindings)

    @property
    def faults(self) -> int:
        """Page faults in the timed parts of all replays."""
        return self._simulation.faults

    def replay(self, events: int | None = None) -> float:
        """Replay the first ``events`` events, or all.  Returns the seconds of the loop alone."""
        simulation = self._simulation
        try:
            return simulation.replay(events, watch=False)
        finally:
            libc.release(simulation.objects[:, 0])
            simulation.objects.fill(0)


# --- Threads -------------------------------------------------------------------------------------

#: True if the stored events have the column; bound by build.
HAS_ALIGN = False

#: Stand-in for the kernel's state, one per thread, padded to share no cache line with another.
_TASK = np.dtype([("before", "u1", (128,)), ("task", TASK), ("behind", "u1", (128,))], align=True)
#: Distance of shared words, in words: two cache lines, because processors prefetch them in pairs.
_APART = 16


@jit
def load_acquire(base, index):
    """Placeholder for benchmarks.real.atomic.load_acquire, bound by build."""
    raise NotImplementedError


@jit
def store_release(base, index, word):
    """Placeholder for benchmarks.real.atomic.store_release, bound by build."""
    raise NotImplementedError


@jit
def sched_yield():
    """Placeholder for the C library's sched_yield, bound by build."""
    raise NotImplementedError


@jit
def wait_for(base, index, word):
    """Yield the processor until the shared word at ``base`` and ``index`` equals ``word``."""
    while load_acquire(base, index) != word:
        sched_yield()


@jit
def replay_thread(k, a, r, objects, e, turn, turns, arrived, place, go):
    """Replay (n,) events of one thread; their slots are object numbers.

    ``turn`` (n,): number of earlier events of the same object.  ``turns``, ``arrived`` and ``go``
    are addresses of shared words: events done, by object; readiness of the threads, where ``place``
    is the index of this one; the start signal.
    """
    store_release(arrived, place, 1)
    wait_for(go, 0, 1)
    for i in range(e.op.shape[0]):
        k.task.now = i
        slot = e.slot[i]
        if slot >= 0:
            wait_for(turns, slot, turn[i])
        align = e.align[i] if HAS_ALIGN else 0
        apply(k, a, r, objects, e.op[i], slot, e.size[i], align, 0)
        if slot >= 0:
            store_release(turns, slot, turn[i] + 1)


class ThreadedTimed:
    """Workload ready to be replayed with one real thread for each thread of the trace.

    Raises LibraryError if the process runs on another library, or for a stream of events.
    """

    def __init__(self, library: Library, workload: Workload) -> None:
        plugin = check_process(library)
        self.faults = 0  # in the timed parts of all replays
        if workload.stream is not None:
            raise LibraryError(
                f"{library.label}: real threads are timed on stored events only; "
                "set workload.stream=never"
            )
        if disabled():
            raise LibraryError(
                f"{library.label}: real threads need compiled code; unset NUMBA_DISABLE_JIT"
            )
        from numba import types

        from benchmarks.real import atomic

        events = read_only(workload.events)
        ids, turn = Naming(workload.slots, len(events.op)).name(events)
        self._numbers = int(ids.max()) + 1 if len(ids) else 1
        bindings: dict[str, Any] = TIMED | plugin.bindings() | libc.bindings(touches=False)
        bindings |= {
            "inspect": inspect,
            "HAS_ALIGN": len(events.align) > 0,
            "TRIMS": hasattr(plugin.module, "trim"),
            "load_acquire": atomic.load_acquire,
            "store_release": atomic.store_release,
            "sched_yield": types.ExternalFunction("sched_yield", types.int32()),
        }
        self._loop = build(replay_thread, **bindings)
        try:
            threads = column(ThreadNumbers(MOST_THREADS).of(events), "thread")
        except ThreadError as error:
            raise LibraryError(f"{library.label}: {error}") from None
        self._parts = [
            (read_only(_rows(events, ids, threads == t)), turn[threads == t])
            for t in np.unique(threads)
        ]
        nothing = read_only(_rows(events, ids, np.zeros(len(ids), bool)))
        self._shared = np.zeros((len(self._parts) + 1, _APART), "i8")
        self._shared[-1, 0] = 1
        self._run(0, nothing, turn[:0], np.zeros((1, 2), "i8"), np.zeros(1, "i8"))  # compile

    def replay(self, events: int | None = None) -> float:
        """Replay all events.  Returns the seconds from the start to the end of the last thread."""
        objects, turns = np.zeros((self._numbers, 2), "i8"), np.zeros(self._numbers, "i8")
        objects.fill(0)  # take the page faults here, not in the loop
        turns.fill(0)
        self._shared.fill(0)
        ends = [0.0] * len(self._parts)

        def run(place: int) -> None:
            self._run(place, *self._parts[place], objects, turns)
            ends[place] = perf_counter()

        others = [
            threading.Thread(target=run, args=(place,)) for place in range(1, len(self._parts))
        ]
        for thread in others:
            thread.start()
        while not self._shared[1:-1, 0].all():
            sleep(0.0001)
        faults, begin = page_faults(), perf_counter()
        self._shared[-1, 0] = 1
        run(0)
        for thread in others:
            thread.join()
        self.faults += page_faults() - faults
        libc.release(objects[:, 0])
        return max(ends) - begin

    def _run(
        self, place: int, part: Events, turn: np.ndarray, objects: np.ndarray, turns: np.ndarray
    ) -> None:
        address = self._shared.ctypes.data
        go = address + (len(self._shared) - 1) * _APART * 8
        state = record(np.dtype([("unused", "i8")]))
        words = turns.ctypes.data, address, place * _APART, go
        self._loop(record(_TASK), state, record(RUN), objects, part, turn, *words)


def _rows(events: Events, ids: np.ndarray, chosen: np.ndarray) -> Events:
    """Return the chosen rows, with object numbers as slots."""
    return Events(
        *(data[chosen] if len(data) else data for data in events._replace(slot=ids.astype("i4")))
    )


def make_timed(library: Library, workload: Workload) -> Timed | ThreadedTimed:
    """Create a ThreadedTimed where real threads are asked for, else a Timed."""
    kind = ThreadedTimed if has_real_threads(library, workload) else Timed
    return kind(library, workload)
