"""Seconds that a real library takes: the compiled loop of the model calls its functions.

The process is a fresh Python under LD_PRELOAD.  As with the model nothing is touched, so that what
is measured is the library's own work; unlike the model's, that contains the system calls it makes
and the page faults of its own headers and lists.

A replay begins when every block of the one before has been freed, outside the clock.  What the
library then keeps it may use again: from the second replay on (the first is no sample) it is in the
state of a program that has run for long, as the model's host memory is warm.

With one thread the loop runs in the process's main thread: glibc gives others another arena.  With
real threads (ThreadedTimed) each of the trace's threads is one, new for every replay, and an event
waits for those before it of the same object, as in benchmarks.real.threads; the clock runs from
when all are there until the last is through.
"""

import ctypes
import threading
from time import perf_counter, sleep
from typing import Any

import numpy as np

from allocators.base.library import REAL, Library, LibraryError
from benchmarks.events.events import Events, column, read_only
from benchmarks.real.memory import inspect
from benchmarks.real.threads import Naming
from benchmarks.replay.loop import RUN, apply
from benchmarks.replay.simulation import TIMED, Simulation
from benchmarks.speed import libc
from benchmarks.workloads import Workload
from kernel.config import KernelConfig
from kernel.engine.jit import build, disabled, jit
from kernel.engine.record import record
from kernel.types import TASK

#: Functions that must all be the library's.
_FUNCTIONS = ("malloc", "free", "calloc", "realloc", "aligned_alloc")


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def check_process(library: Library) -> None:
    """Raise LibraryError unless this process runs on ``library``."""
    process = ctypes.CDLL(None)
    process.dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Place)]
    for name in _FUNCTIONS:
        place = _Place()
        address = ctypes.cast(getattr(process, name), ctypes.c_void_p)
        found = process.dladdr(address, ctypes.byref(place)) and place.file.decode()
        if not found or not library.is_file(found):
            raise LibraryError(
                f"{library.name}: {name} of this Python comes from {found or 'nowhere'}: "
                "the library was not preloaded"
            )


class Timed:
    """A workload ready to be replayed on the library that this process runs on."""

    def __init__(self, library: Library, workload: Workload) -> None:
        """Raises LibraryError when the process runs on another library."""
        check_process(library)
        bindings = TIMED | libc.bindings(touches=False)
        self._simulation = Simulation(libc.plugin(), workload, KernelConfig(), bindings)

    def replay(self, events: int | None = None) -> float:
        """Replay the first ``events`` events, or all; returns the seconds of the loop alone."""
        simulation = self._simulation
        try:
            return simulation.replay(events, watch=False)
        finally:
            libc.release(simulation.objects[:, 0])
            simulation.objects.fill(0)


# --- Threads -------------------------------------------------------------------------------------

#: Whether the stored events have these columns; bound by build.
HAS_ALIGN = False

#: What stands for the kernel, one for each thread, apart from the others' cache lines.
_TASK = np.dtype([("before", "u1", (128,)), ("task", TASK), ("behind", "u1", (128,))], align=True)
#: Words of a cache line, times two: what is fetched in pairs.
_APART = 16


@jit
def load_acquire(base, index):
    """benchmarks.real.atomic.load_acquire, bound by build."""
    raise NotImplementedError


@jit
def store_release(base, index, word):
    """benchmarks.real.atomic.store_release, bound by build."""
    raise NotImplementedError


@jit
def sched_yield():
    """Let another thread run: the system call, bound by build."""
    raise NotImplementedError


@jit
def wait_for(base, index, word):
    """Let others run until a shared word is ``word``."""
    while load_acquire(base, index) != word:
        sched_yield()


@jit
def replay_thread(k, a, r, objects, e, turn, turns, arrived, place, go):
    """Replay (n,) events of one thread, whose slots are objects' numbers.

    ``turn`` (n,): events of the same object that come before.  Addresses of shared words:
    ``turns``, events done by object; ``arrived``, of which ``place`` is this thread's; ``go``.
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
    """The same with a real thread for each of the trace's; events are stored.

    Raises LibraryError when the process runs on another library, or for a stream of events.
    """

    def __init__(self, library: Library, workload: Workload) -> None:
        check_process(library)
        if workload.stream is not None:
            raise LibraryError(
                f"{library.label}: real threads are timed on stored events: workload.stream=never"
            )
        if disabled():
            raise LibraryError(f"{library.label}: real threads need the compiler")
        from numba import types

        from benchmarks.real import atomic

        events = read_only(workload.events)
        ids, turn = Naming(workload.slots, len(events.op)).name(events)
        self._numbers = int(ids.max()) + 1 if len(ids) else 1
        bindings: dict[str, Any] = TIMED | libc.plugin().bindings() | libc.bindings(touches=False)
        bindings |= {
            "inspect": inspect,
            "HAS_ALIGN": len(events.align) > 0,
            "load_acquire": atomic.load_acquire,
            "store_release": atomic.store_release,
            "sched_yield": types.ExternalFunction("sched_yield", types.int32()),
        }
        self._loop = build(replay_thread, **bindings)
        threads = column(events, "thread")
        self._parts = [
            (read_only(_rows(events, ids, threads == t)), turn[threads == t])
            for t in np.unique(threads)
        ]
        nothing = read_only(_rows(events, ids, np.zeros(len(ids), bool)))
        self._shared = np.zeros((len(self._parts) + 1, _APART), "i8")
        self._shared[-1, 0] = 1
        self._run(0, nothing, turn[:0], np.zeros((1, 2), "i8"), np.zeros(1, "i8"))  # compile

    def replay(self, events: int | None = None) -> float:
        """Replay all events; seconds from when all threads are there until the last is through."""
        objects, turns = np.zeros((self._numbers, 2), "i8"), np.zeros(self._numbers, "i8")
        objects.fill(0)  # now, and not in the loop, the pages come
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
        begin = perf_counter()
        self._shared[-1, 0] = 1
        run(0)
        for thread in others:
            thread.join()
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
    """The chosen rows, with objects' numbers for slots."""
    return Events(
        *(data[chosen] if len(data) else data for data in events._replace(slot=ids.astype("i4")))
    )


def timed(library: Library, workload: Workload) -> Timed | ThreadedTimed:
    """What the library's settings ask for; a program that waits for addresses has one thread."""
    threaded = library.threads == REAL and workload.program is None
    return (ThreadedTimed if threaded else Timed)(library, workload)
