"""Steps of the twin by kind, counted by an instrumented replay loop.

The loop's own memory accesses are included, because the real process makes them too
(benchmarks.real.machine_code): events and answers in sequence, and the record of each object.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from allocators.base import registry
from benchmarks.events.events import read_only, rows
from benchmarks.real.machine_code import ANSWER, EVENT, OBJECT
from benchmarks.replay.loop import HAS_ALIGN, HAS_OFFSET, apply, system_calls
from benchmarks.replay.measured import kernel_work
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.twin.predict.processor import (
    BINDINGS,
    COUNTS,
    Processor,
    follow,
    pass_by,
    translate,
)
from benchmarks.workloads import Workload
from kernel.config import KernelConfig
from kernel.cost import COSTS
from kernel.engine.branches import report_branches
from kernel.engine.jit import jit
from kernel.types import L1_BASE

#: Name of the allocator that models glibc.
TWIN = "ptmalloc"
_COUNTED = {"COUNT": True, "OBSERVE": False, "TIMELINE": False}
#: Modules whose branches are reported: the allocator and the loop.  Kernel work is priced apart.
_WATCHED = r"(?!kernel\.)"
#: Assumed addresses of the process's tables, far from the allocator's memory.
_EVENTS, _ANSWERS, _OBJECTS = 1 << 50, 1 << 51, 1 << 52
_EVENT_SIZE, _ANSWER_SIZE, _OBJECT_SIZE = EVENT.itemsize, ANSWER.itemsize, OBJECT.itemsize

#: Kinds of steps that have a price: an event of the loop; a load or store by the allocator; its
#: extra time for a hit in L2, in L3 or in memory, for a miss in the first-level TLB, and for a page
#: walk; a line copied or cleared; a branch misprediction ("mispredict"); an entry into the kernel
#: (a fault or a system call), beyond the price of the kernel's work: it leaves caches and branch
#: predictor cold.
KINDS = ("event", "access", "l2", "l3", "memory", "tlb", "walk", "line", "mispredict", "entry")


@jit
def replay_watched(k, a, r, objects, e, begin, end):
    """Replay as benchmarks.replay.loop.replay_events does, with the loop's own accesses.

    For events of one thread.
    """
    for i in range(end - begin):
        now = begin + i
        k.task.now = now
        pass_by(k, _EVENTS + now * _EVENT_SIZE)
        pass_by(k, _ANSWERS + now * _ANSWER_SIZE)
        align = e.align[i] if HAS_ALIGN else 0
        offset = e.offset[i] if HAS_OFFSET else 0
        slot = int(e.slot[i])
        if slot >= 0:
            translate(k, _OBJECTS + slot * _OBJECT_SIZE)
        apply(k, a, r, objects, e.op[i], slot, e.size[i], align, offset)


@cache
def _watched_loop(**bindings: Any) -> Callable:
    """Return the loop with its branches reported; one copy serves all workloads."""
    return report_branches(replay_watched, follow, _WATCHED, **bindings)


class _Watched(Simulation):
    """Simulation of the twin that feeds each access and branch to the model of a processor."""

    def __init__(self, workload: Workload, sizes: Mapping[str, int]) -> None:
        self._processor, self._sizes = Processor(sizes), sizes
        super().__init__(registry.load(TWIN), workload, KernelConfig(tlb=True), _COUNTED)

    @property
    def loop_function(self) -> Callable:
        """Return the loop with its branches reported."""
        return _watched_loop(**self.loop_bindings())

    def loop_bindings(self) -> dict[str, Any]:
        """Return the bindings for which the loop is specialised."""
        return super().loop_bindings() | BINDINGS | dict(self._sizes)

    def start(self) -> None:
        """Start a new process on the processor."""
        super().start()
        self.k.watch = self._processor.address

    def pieces(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Replay in pieces of ``size`` events; the last one may be shorter.

        Returns steps by kind (pieces, len(KINDS)) and kernel work by kind (pieces, len(COSTS)).
        """
        self.start()
        self._initialise(self.k, self.a)
        events, steps, work = self.workload.events, [], []
        before, spent = self._steps(), self._work()
        for first in range(0, len(events.op), size):
            last = min(first + size, len(events.op))
            piece = read_only(rows(events, first, last))
            self._loop(self.k, self.a, self.r, self.objects, piece, first, last)
            now, total = self._steps(), self._work()
            steps.append([last - first, *(now - before)])
            work.append(total - spent)
            before, spent = now, total
        return (
            np.array(steps, "i8").reshape(-1, len(KINDS)),
            np.array(work, "i8").reshape(-1, len(COSTS)),
        )

    def _steps(self) -> np.ndarray:
        """Return the steps so far by kind, without the events."""
        count = dict(zip(COUNTS, self._processor.counts().tolist(), strict=True))
        mm = self.k.mm
        return np.array(
            [
                mm.loads + mm.stores,
                *(count[name] for name in ("l2", "l3", "memory")),
                self.k.tlb_level[L1_BASE].misses,
                self.k.tlb_stat.walks,
                *(count[name] for name in ("lines", "mispredict")),
                mm.minflt + mm.majflt + system_calls(mm),
            ],
            "i8",
        )

    def _work(self) -> np.ndarray:
        """Return the kernel work so far by kind."""
        work = kernel_work(self.k, self.machine.config.page_size)
        return np.array([work[kind] for kind in COSTS])

    def close(self) -> None:
        """Release the processor."""
        self._processor.close()


def count_steps(
    workload: Workload, piece: int, sizes: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Count steps of the twin (pieces, len(KINDS)) and kernel work (pieces, len(COSTS)), by kind.

    ``workload``: stored events of one thread.  ``piece``: number of events in each piece.
    ``sizes``: of the caches (benchmarks.twin.predict.processor.geometry).
    """
    watched = _Watched(workload, sizes)
    try:
        return watched.pieces(piece)
    finally:
        watched.close()


def metrics_of_twin(workload: Workload) -> dict[str, float]:
    """Return the twin's metrics (benchmarks.replay.metrics) by name; kernel work has price 0."""
    simulation = Simulation(registry.load(TWIN), workload, KernelConfig(), OBSERVED)
    simulation.replay()
    return simulation.metrics(dict.fromkeys(COSTS, 0.0))
