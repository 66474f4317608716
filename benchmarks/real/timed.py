"""Seconds that a real library takes: the compiled loop of the model calls its functions.

The process is a fresh Python under LD_PRELOAD.  As with the model nothing is touched, so that what
is measured is the library's own work; unlike the model's, that contains the system calls it makes
and the page faults of its own headers and lists.

A replay begins when every block of the one before has been freed, outside the clock.  What the
library then keeps it may use again: from the second replay on (the first is no sample) it is in the
state of a program that has run for long, as the model's host memory is warm.

With one thread the loop runs in the process's main thread: glibc gives others another arena.
"""

import ctypes

from benchmarks import libc
from benchmarks.real.library import Library, LibraryError
from benchmarks.simulation import TIMED, Simulation
from benchmarks.workloads import Workload
from kernel.boot import KernelConfig

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
