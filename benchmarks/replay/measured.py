"""Metrics and timeline, computed from the state that an observed replay leaves."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from benchmarks.events.histogram import quantile
from benchmarks.replay.loop import STEPS_EXACT, STEPS_PARTS, TIMELINE_COLUMNS, system_calls
from kernel.frames import fragmentation_index, free_blocks, unusable_free_index
from kernel.types import L1_BASE, L1_HUGE, L2


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


def _over(numerator: float, denominator: float) -> float:
    """Percent by which the numerator exceeds the denominator; 0 without a denominator."""
    return 100.0 * (numerator / denominator - 1.0) if denominator else 0.0


def kernel_work(k: np.record, page: int) -> dict[str, int]:
    """How often each kind of kernel work that has a price (kernel.cost.COSTS) was done.

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
    within = partial(quantile, r.histogram.sum(axis=0), exact=STEPS_EXACT, parts=STEPS_PARTS)
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
        "steps_p50": within(0.5),
        "steps_p90": within(0.9),
        "steps_p99": within(0.99),
        "steps_p999": within(0.999),
        "steps_max": int(r.max_steps),
        "payload_loads": int(mm.payload_loads),
        "payload_stores": int(mm.payload_stores),
    }
