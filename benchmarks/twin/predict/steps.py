"""How many steps of each kind the twin takes: the replay loop, watched.

The loop's own memory is part of what the real process reaches for (benchmarks.real.machine_code):
an event and an answer after the other, and the record of each object.
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
from kernel.engine.branches import followed
from kernel.engine.jit import jit
from kernel.types import L1_BASE

#: The allocator that predicts.
TWIN = "ptmalloc"
_COUNTED = {"COUNT": True, "OBSERVE": False, "TIMELINE": False}
#: What is watched: the allocator and the loop.  What the kernel does has prices of its own.
_WATCHED = r"(?!kernel\.)"
#: Where the process's tables are, far from what the allocator has: bytes.
_EVENTS, _ANSWERS, _OBJECTS = 1 << 50, 1 << 51, 1 << 52
_EVENT_SIZE, _ANSWER_SIZE, _OBJECT_SIZE = EVENT.itemsize, ANSWER.itemsize, OBJECT.itemsize

#: Kinds of steps that have a price: an event of the loop; a load or store of the allocator's, and
#: what it takes longer where the first level of cache does not answer, or not that of the TLB, or
#: the page tables must be walked; a line that is copied or cleared; a branch guessed wrongly; an
#: entry into the kernel (a fault or a call), beyond what the kernel's own work costs: it leaves
#: caches and branch prediction cold.
KINDS = ("event", "access", "l2", "l3", "memory", "tlb", "walk", "line", "wrong", "entry")


@jit
def replay_watched(k, a, r, objects, e, begin, end):
    """benchmarks.replay.loop.replay_events of one thread, with the loop's own accesses."""
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
def _followed(**bindings: Any) -> Callable:
    """The loop, followed: the same for all workloads."""
    return followed(replay_watched, follow, _WATCHED, **bindings)


class _Watched(Simulation):
    """A simulation of the twin in which each access and branch is seen by a processor."""

    def __init__(self, workload: Workload, sizes: Mapping[str, int]) -> None:
        self._processor, self._sizes = Processor(sizes), sizes
        super().__init__(registry.load(TWIN), workload, KernelConfig(tlb=True), _COUNTED)

    @property
    def loop_function(self) -> Callable:
        """The loop with its branches followed."""
        return _followed(**self.loop_bindings())

    def loop_bindings(self) -> dict[str, Any]:
        """What the loop is specialised for."""
        return super().loop_bindings() | BINDINGS | dict(self._sizes)

    def start(self) -> None:
        """A fresh process, on a processor that has seen nothing."""
        super().start()
        self.k.watch = self._processor.address

    def pieces(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Replay; steps by kind (pieces, len(KINDS)), work of the kernel (pieces, len(COSTS)).

        ``size``: events in a piece; the last may have fewer.
        """
        self.start()
        self._initialise(self.k, self.a)
        events, steps, work = self.workload.events, [], []
        before, spent = self._now(), self._work()
        for first in range(0, len(events.op), size):
            last = min(first + size, len(events.op))
            piece = read_only(rows(events, first, last))
            self._loop(self.k, self.a, self.r, self.objects, piece, first, last)
            now, total = self._now(), self._work()
            steps.append([last - first, *(now - before)])
            work.append(total - spent)
            before, spent = now, total
        return (
            np.array(steps, "i8").reshape(-1, len(KINDS)),
            np.array(work, "i8").reshape(-1, len(COSTS)),
        )

    def _now(self) -> np.ndarray:
        count = dict(zip(COUNTS, self._processor.counts().tolist(), strict=True))
        mm = self.k.mm
        return np.array(
            [
                mm.loads + mm.stores,
                *(count[name] for name in ("l2", "l3", "memory")),
                self.k.tlb_level[L1_BASE].misses,
                self.k.tlb_stat.walks,
                *(count[name] for name in ("lines", "wrong")),
                mm.minflt + mm.majflt + system_calls(mm),
            ],
            "i8",
        )

    def _work(self) -> np.ndarray:
        work = kernel_work(self.k, self.machine.config.page_size)
        return np.array([work[kind] for kind in COSTS])

    def close(self) -> None:
        """Forget the processor."""
        self._processor.close()


def count_steps(
    workload: Workload, piece: int, sizes: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the twin by kind (pieces, len(KINDS)), work of the kernel (pieces, len(COSTS)).

    ``workload``: of one thread, stored.  ``piece``: events in each.  ``sizes``:
    benchmarks.twin.predict.processor.geometry.
    """
    watched = _Watched(workload, sizes)
    try:
        return watched.pieces(piece)
    finally:
        watched.close()


def memory_of_twin(workload: Workload) -> dict[str, float]:
    """The twin's metrics (benchmarks.replay.metrics) by name; kernel work is priced at nothing."""
    simulation = Simulation(registry.load(TWIN), workload, KernelConfig(), OBSERVED)
    simulation.replay()
    return simulation.metrics(dict.fromkeys(COSTS, 0.0))
