"""One allocator under one workload on one kernel, compiled and ready to replay.

With OBSERVED switches it counts everything and answers :meth:`Simulation.metrics`; with TIMED ones
all instruments are compiled away and nothing is touched, so that its time is the allocator's own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any

import numpy as np

from allocators.contract import check
from allocators.registry import Plugin
from benchmarks.replay import (
    RUN,
    TIMELINE_COLUMNS,
    TIMELINE_ROWS,
    TOUCH_NAMES,
    TOUCH_NOTHING,
    bucket_floor,
    initialise,
    replay_events,
    replay_program,
    system_calls,
    verify_frames,
)
from benchmarks.workloads import Workload, WorkloadError
from kernel.boot import KernelConfig, Machine, record
from kernel.frames import fragmentation_index, free_blocks, unusable_free_index
from kernel.jit import build, jit
from kernel.task import reason
from kernel.tlb import L1_BASE, L1_HUGE, L2
from kernel.types import SIGKILL, SimulatedSignal
from kernel.watchdog import SoftLockup, watched

#: Switches of the loop with every instrument, and with none.
OBSERVED = {"COUNT": True, "OBSERVE": True, "TIMELINE": True}
TIMED = {"COUNT": False, "OBSERVE": False, "TIMELINE": False, "TOUCH": TOUCH_NOTHING}


class AllocatorFailure(RuntimeError):
    """The allocator broke its contract during a replay; the message names the event."""


@jit
def run_check(k, a):
    """Call the plugin's checker."""
    return check(k, a)


def explain(error: Exception) -> str:
    """One line for what a plugin or its compilation raised."""
    kind = type(error).__name__
    if not type(error).__module__.startswith("numba"):
        return f"{kind}{f': {error}' if str(error) else ''}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = next((line.rstrip(":") for line in lines if line.startswith("File ")), "no place known")
    reason = next((line for line in lines if not line.startswith("Failed in")), kind)
    return f"{reason} ({place})"


class Simulation:
    """A machine, a plugin's state and a compiled replay loop.

    ``switches`` are OBSERVED, TIMED or any other bindings of the loop; TOUCH is the workload's
    where they do not say.  ``stopped_at`` is the event at which the simulated process was killed
    for lack of memory, or -1.  ``waited``: seconds of the last replay in which the loop stood still
    because the next piece of a stream was not there yet.  Raises AllocatorFailure when the plugin
    does not compile.
    """

    def __init__(
        self,
        plugin: Plugin,
        workload: Workload,
        kernel: KernelConfig,
        switches: Mapping[str, Any],
    ) -> None:
        self.plugin, self.workload = plugin, workload
        self.machine = Machine(kernel)
        self.k = self.machine.k
        self.r = record(RUN)
        self.a = plugin.state()
        self.objects = np.zeros((max(workload.slots, 1), 2), "i8")
        self.stopped_at = -1
        self.waited = 0.0
        touch = {"TOUCH": TOUCH_NAMES.index(workload.touch)}
        self._bindings = plugin.bindings() | kernel.switches() | touch | dict(switches)
        self._initialise = build(initialise, **self._bindings)
        self._loop = build(self.loop_function, **self.loop_bindings())
        self._fresh = True
        self._compile()

    def loop_bindings(self) -> dict[str, Any]:
        """What the replay loop is specialised for."""
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
        """The loop for the workload's kind, before it is specialised."""
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
        """Put everything back to a fresh process.  Host memory stays warm."""
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
        """Compile by replaying no event, outside the clock and the watchdog.

        Raises AllocatorFailure when the plugin does not compile.
        """
        self.start()
        try:
            self._initialise(self.k, self.a)
            for source, begin, end in self._pieces(0):
                self._loop(self.k, self.a, self.r, self.objects, source, begin, end)
        except SimulatedSignal:
            raise AllocatorFailure(f"init: {reason(self.k)}") from None
        except Exception as error:
            raise AllocatorFailure(f"the plugin does not compile: {explain(error)}") from error

    def _pieces(self, end: int) -> Iterator[tuple[Any, int, int]]:
        """What the loop gets, one call after the other: a source of events, begin and end."""
        workload = self.workload
        if workload.stream is None:
            yield (workload.events if self._program is None else self._program), 0, end
        elif end == 0:
            yield workload.stream.none(), 0, 0
        else:
            begin = 0
            with closing(workload.stream.pieces()) as pieces:
                for events in pieces:
                    last = min(begin + len(events.op), end)
                    yield events, begin, last
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
        """Replay events up to ``end`` from a fresh start; returns the seconds of the loop alone.

        Of a stream too: what the loop waits for the next piece is in ``waited``.  A process killed
        for lack of memory ends the replay early (``stopped_at``).  Without ``watch`` the loop runs
        in the calling thread, and nobody notices if it does not end.  Raises AllocatorFailure for
        any other death, WorkloadError for a stream that breaks off, and kernel.watchdog.SoftLockup.
        """
        self.start()
        last = self.length if end is None else end

        def run() -> float:
            self._initialise(self.k, self.a)
            seconds = 0.0
            with closing(self._pieces(last)) as pieces:
                stopped = perf_counter()
                for source, begin, end in pieces:
                    started = perf_counter()
                    self.waited += started - stopped
                    self._loop(self.k, self.a, self.r, self.objects, source, begin, end)
                    stopped = perf_counter()
                    seconds += stopped - started
            return seconds

        try:
            return watched(self.k, run, progress=progress) if watch else run()
        except SimulatedSignal:
            event = int(self.k.task.now)
            if self.k.task.sig != SIGKILL:
                raise AllocatorFailure(f"event {event}: {reason(self.k)}") from None
            self.stopped_at = event
            self._verify_killed()
            return 0.0
        except (SoftLockup, WorkloadError):
            raise
        except Exception as error:
            event = int(self.k.task.now)
            raise AllocatorFailure(f"event {event}: the plugin raised {explain(error)}") from error

    def _verify_killed(self) -> None:
        """Check physical memory once more after the kill, where it is checked at all."""
        if not self._bindings.get("CHECK_FRAMES"):
            return
        try:
            build(verify_frames, **self._bindings)(self.k, self.r)
        except SimulatedSignal:
            raise AllocatorFailure(
                f"event {self.stopped_at}, after the kill: {reason(self.k)}"
            ) from None

    def verify_end(self) -> None:
        """Raise AllocatorFailure when the plugin's own checker finds the heap broken."""
        if self.stopped_at >= 0:
            return
        code = build(run_check, **self._bindings)(self.k, self.a)
        if code:
            checks = getattr(self.plugin.module, "CHECKS", {})
            raise AllocatorFailure(
                f"the allocator's own check failed after the last event: {checks.get(code, code)}"
            )

    @property
    def out_of_memory(self) -> bool:
        """Whether a request was answered with NULL or the process was killed for memory."""
        return bool(self.r.failed) or self.stopped_at >= 0

    def metrics(self, cost: Mapping[str, float]) -> dict[str, float]:
        """The deterministic metrics of an observed replay by name (benchmarks.metrics).

        ``cost``: nanoseconds by kind of kernel work (conf/kernel/cost).
        """
        return measured(self.k, self.r, self.machine.config.page_size, cost)

    def timeline(self) -> dict[str, np.ndarray]:
        """Columns of the timeline, (rows,) int64 each; the last row is the end of the run."""
        return timeline(self.k, self.r, self.machine.config.page_size)


def timeline(k: np.record, r: np.record, page: int) -> dict[str, np.ndarray]:
    """Columns of the timeline in ``r``, (rows,) int64 each, and a row for the end of the run.

    ``page``: bytes of a base page.
    """
    mm = k.mm
    rows = r.timeline[: r.rows]
    last = int(k.task.now)
    if len(rows) == 0 or rows[-1, 0] < last:
        end = [
            last,
            r.live,
            (mm.total_vm - mm.reserved_vm - mm.start_vm) * page,
            mm.rss * page,
            mm.reserved_vm * page,
            (mm.nr_ptes + mm.nr_pmds + mm.nr_puds) * page,
            mm.minflt,
            system_calls(k),
            mm.loads + mm.stores,
        ]
        rows = np.vstack([rows, np.array([end], "i8")])
    return dict(zip(TIMELINE_COLUMNS, np.ascontiguousarray(rows.T), strict=True))


def percentile(histogram: np.ndarray, q: float) -> int:
    """Smallest number of steps that at least the share ``q`` of all operations stays within.

    ``histogram``: (STEP_BUCKETS,) counts by benchmarks.replay.step_bucket.
    """
    total = histogram.sum()
    if total == 0:
        return 0
    rank = np.searchsorted(np.cumsum(histogram), q * total)
    return bucket_floor(int(rank))


def _over(numerator: float, denominator: float) -> float:
    """Percent by which the numerator exceeds the denominator; 0 without a denominator."""
    return 100.0 * (numerator / denominator - 1.0) if denominator else 0.0


def kernel_work(k: np.record, page: int) -> dict[str, int]:
    """How often each kind of kernel work that has a price (benchmarks.job.COSTS) was done.

    ``page``: bytes of a base page.
    """
    mm = k.mm
    huge = page // 8  # base pages of a huge page
    return {
        "brk": int(mm.nr_brk),
        "mmap": int(mm.nr_mmap),
        "munmap": int(mm.nr_munmap),
        "madvise": int(mm.nr_madvise),
        "mremap": int(mm.nr_mremap),
        "mprotect": int(mm.nr_mprotect),
        "mlock": int(mm.nr_mlock),
        "fault_write": int(mm.flt_write),
        "fault_read": int(mm.flt_read),
        "fault_cow": int(mm.flt_cow),
        "fault_populate": int(mm.flt_populate),
        "fault_huge": int(mm.flt_huge),
        "fault_file": int(mm.flt_file),
        "fault_major": int(mm.majflt),
        "swap_out": int(k.vmstat.pswpout) if has_frames(k) else 0,
        "page_returned": int(mm.zapped - mm.zapped_huge * huge),
        "huge_page_returned": int(mm.zapped_huge),
    }


def modelled_ns(k: np.record, page: int, cost: Mapping[str, float]) -> float:
    """Nanoseconds that the kernel work counted in ``k`` costs by the table ``cost``.

    ``page``: bytes of a base page.
    """
    return float(sum(n * cost[kind] for kind, n in kernel_work(k, page).items()))


def has_frames(k: np.record) -> bool:
    """Whether the kernel has physical memory (kernel.frames)."""
    return "vmstat" in k.dtype.names


def has_tlb(k: np.record) -> bool:
    """Whether the kernel has TLBs (kernel.tlb)."""
    return "tlb_stat" in k.dtype.names


def frames_metrics(k: np.record, r: np.record, page: int) -> dict[str, float]:
    """The metrics of physical memory; ``page`` in bytes."""
    v = k.vmstat
    blocks = free_blocks(k)
    huge = page.bit_length() - 4  # log2 of a huge page's frames
    return {
        "swap_outs": int(v.pswpout),
        "peak_swap": int(v.swap_peak) * page,
        "pages_lazyfreed": int(v.pglazyfreed),
        "huge_failures": int(v.thp_fault_fallback),
        "huge_splits": int(v.thp_split_page),
        "end_free_frames": int(k.zone["free"].sum()),
        "unusable_free_huge": unusable_free_index(blocks, huge),
        "fragmentation_index_huge": fragmentation_index(blocks, huge),
        "frames_checks": int(r.frames_checks),
    }


def tlb_metrics(k: np.record) -> dict[str, float]:
    """The metrics of the TLBs."""
    levels, stat = k.tlb_level, k.tlb_stat
    return {
        "tlb_l1_misses": int(levels[L1_BASE].misses + levels[L1_HUGE].misses),
        "tlb_l2_misses": int(levels[L2].misses),
        "page_walks": int(stat.walks),
        "tlb_flushes": int(stat.flush_all + stat.flush_pages),
    }


def measured(k: np.record, r: np.record, page: int, cost: Mapping[str, float]) -> dict[str, float]:
    """Compute every deterministic metric from the state after a replay; ``page`` in bytes."""
    metrics = _always_measured(k, r, page, cost)
    if has_frames(k):
        metrics |= frames_metrics(k, r, page)
    if has_tlb(k):
        metrics |= tlb_metrics(k)
    return metrics


def _always_measured(
    k: np.record, r: np.record, page: int, cost: Mapping[str, float]
) -> dict[str, float]:
    """The metrics that every kernel has."""
    mm = k.mm
    n = max(int(r.operations), 1)
    heap = int(mm.total_vm - mm.reserved_vm - mm.start_vm) * page
    steps = r.histogram.sum(axis=0)
    return {
        "kernel_ns_per_op": modelled_ns(k, page, cost) / n,
        "operations": int(r.operations),
        "failed": int(r.failed),
        "skipped": int(r.skipped),
        "allocated": int(r.allocated),
        "peak_live": int(r.peak_live),
        "peak_live_objects": int(r.peak_live_objects),
        "peak_heap": int(r.peak_heap),
        "peak_rss": int(mm.hiwater_rss) * page,
        "peak_page_tables": int(mm.hiwater_pgtables) * page,
        "mean_live": float(r.live_sum) / n,
        "mean_heap": float(r.heap_sum) / n,
        "mean_rss": float(r.rss_sum) * page / n,
        "end_live": int(r.live),
        "end_heap": heap,
        "end_rss": int(mm.rss) * page,
        "fragmentation_mean": _over(float(r.ratio_sum), float(r.ratio_events)),
        "fragmentation_peak_live": _over(float(r.heap_at_peak_live), float(r.peak_live)),
        "fragmentation_peak_heap": _over(float(r.peak_heap), float(r.live_at_peak_heap)),
        "fragmentation_peaks": _over(float(r.peak_heap), float(r.peak_live)),
        "syscalls": int(system_calls(k)),
        "syscalls_brk": int(mm.nr_brk),
        "syscalls_mmap": int(mm.nr_mmap),
        "syscalls_munmap": int(mm.nr_munmap),
        "syscalls_madvise": int(mm.nr_madvise),
        "syscalls_mremap": int(mm.nr_mremap),
        "syscalls_mprotect": int(mm.nr_mprotect),
        "syscalls_mlock": int(mm.nr_mlock),
        "syscalls_failed": int(mm.nr_failed),
        "faults": int(mm.minflt),
        "faults_write": int(mm.flt_write),
        "faults_read": int(mm.flt_read),
        "faults_cow": int(mm.flt_cow),
        "faults_populate": int(mm.flt_populate),
        "faults_huge": int(mm.flt_huge),
        "faults_file": int(mm.flt_file),
        "faults_major": int(mm.majflt),
        "pages_returned": int(mm.zapped),
        "loads_per_op": int(mm.loads) / n,
        "stores_per_op": int(mm.stores) / n,
        "steps_mean": int(mm.loads + mm.stores) / n,
        "steps_p50": percentile(steps, 0.5),
        "steps_p90": percentile(steps, 0.9),
        "steps_p99": percentile(steps, 0.99),
        "steps_p999": percentile(steps, 0.999),
        "steps_max": int(r.max_steps),
        "payload_loads": int(mm.payload_loads),
        "payload_stores": int(mm.payload_stores),
    }
