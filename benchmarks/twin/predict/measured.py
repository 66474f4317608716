"""Measurements of the real library: its memory event by event, and the time of each piece.

For the time, the process of benchmarks.real plays the whole program in one call and records
nothing; it reads its clock between pieces.  The clock is the thread's CPU time, which does not
advance while other processes run on the processor.
"""

import numpy as np

from allocators.base.library import Library, LibraryError
from benchmarks.real import machine_code
from benchmarks.real.memory import RealRun
from benchmarks.real.process import RealProcess, prepare
from benchmarks.workloads import Workload
from kernel.linux.host.code import OP, OP_CALL, OP_CLOCK, OP_STORE

_CLOCK_THREAD_CPUTIME_ID = 3


class _TimedProcess(RealProcess):
    """Process whose batch holds all events of a workload."""

    LOG_ROOM = machine_code.MARGIN + 1

    def __init__(self, library: Library, workload: Workload) -> None:
        self.BATCH = max(len(workload.events.op), 1)
        super().__init__(library, slots=workload.slots, touch=workload.touch, observe=False)

    def time_pieces(self, todo: np.ndarray, piece: int) -> np.ndarray:
        """Execute the events ``todo`` (EVENT).

        Returns the nanoseconds of each piece of ``piece`` events, (pieces,) int64.  Raises
        LibraryError if the library crashes.
        """
        block = self.blocks[0]
        block.submit(todo)
        ops: list[tuple] = []
        for first in range(0, len(todo), piece):
            count = min(piece, len(todo) - first)
            starts = {
                "events": int(block.control["events"]) + first * machine_code.EVENT.itemsize,
                "answers": int(block.control["answers"]) + first * machine_code.ANSWER.itemsize,
                "count": count,
            }
            ops += [self._store(name, value) for name, value in starts.items()]
            clock = (OP_CLOCK, 0, (_CLOCK_THREAD_CPUTIME_ID, 0, 0, 0, 0, 0))
            play = (OP_CALL, 0, (self._entries["play"], block.address, 0, 0, 0, 0))
            ops += [clock, play, clock]
        results = self._host.run(np.array(ops, OP), faults=False)
        rows = results["value"].reshape(-1, 6)
        if results["sig"].any() or rows[:, 4].sum() != len(todo):
            raise LibraryError(f"{self.library.name}: crashed after {rows[:, 4].sum()} events")
        return rows[:, 5] - rows[:, 3]

    def _store(self, name: str, value: int) -> tuple:
        place = self.blocks[0].address + machine_code.CONTROL.fields[name][1]
        return (OP_STORE, 0, (place, value, 0, 0, 0, 0))


def time_pieces(library: Library, workload: Workload, piece: int) -> np.ndarray:
    """Time each piece of ``piece`` events in a new process; nanoseconds, (pieces,) int64.

    ``workload``: stored events of one thread.  Raises LibraryError or HostError.
    """
    with _TimedProcess(library, workload) as process:
        return process.time_pieces(prepare(workload.events), piece)


def metrics_of_real(library: Library, workload: Workload) -> dict[str, float | None]:
    """Return the library's metrics by name; None for those that cannot be observed here."""
    return RealRun(library, workload).metrics()
