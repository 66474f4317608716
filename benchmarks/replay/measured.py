"""Metrics and timeline, computed from the state at the end of an observed replay."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from benchmarks.events.histogram import quantile
from benchmarks.replay.loop import (
    STEPS_EXACT,
    STEPS_PARTS,
    TIMELINE_COLUMNS,
    TIMELINE_PAGES,
    system_calls,
    timeline_row,
)
from benchmarks.replay.metrics import METRICS
from kernel.counters import COUNTERS, Counter
from kernel.frames import fragmentation_index, free_blocks, unusable_free_index
from kernel.types import L1_BASE, L1_HUGE, L2
from kernel.vma import heap_pages


def timeline(k: np.record, r: np.record, page: int) -> dict[str, np.ndarray]:
    """Return the columns of the timeline in ``r``, (rows,) int64 each; the last row is the end.

    ``page``: size of a base page in bytes.
    """
    rows = r.timeline[: r.rows]
    last = int(k.task.now)
    if len(rows) == 0 or rows[-1, 0] < last:
        rows = np.vstack([rows, np.array([timeline_row(k, r, last)], "i8")])
    units = [page if name in TIMELINE_PAGES else 1 for name in TIMELINE_COLUMNS]
    return dict(zip(TIMELINE_COLUMNS, np.ascontiguousarray((rows * units).T), strict=True))


def _over(numerator: float, denominator: float) -> float:
    """Return the percentage by which the numerator exceeds the denominator; 0 if that is 0."""
    return 100.0 * (numerator / denominator - 1.0) if denominator else 0.0


def _count(k: np.record, counter: Counter) -> int:
    """Return the value of ``counter``; 0 if its part of the kernel is off."""
    return int(k[counter.record][counter.field]) if counter.record in k.dtype.names else 0


def kernel_work(k: np.record, page: int) -> dict[str, int]:
    """Count each kind of kernel work that has a price (kernel.cost.COSTS).

    ``page``: size of a base page in bytes.
    """
    work = {counter.price: _count(k, counter) for counter in COUNTERS if counter.price}
    # A huge page has one price: its frames must not be charged one by one as well.
    work["page_returned"] -= work["huge_page_returned"] * (page // 8)
    return work


def counted(k: np.record, page: int) -> dict[str, int]:
    """Return the metrics that are plain counters; ``page`` in bytes."""
    return {
        counter.metric: _count(k, counter) * (page if counter.unit == "bytes" else 1)
        for counter in COUNTERS
        if counter.metric and counter.record in k.dtype.names
    }


def modelled_ns(k: np.record, page: int, cost: Mapping[str, float]) -> float:
    """Price the kernel work counted in ``k`` by the table ``cost``, in nanoseconds.

    ``page``: size of a base page in bytes.
    """
    return float(sum(n * cost[kind] for kind, n in kernel_work(k, page).items()))


def has_frames(k: np.record) -> bool:
    """Return True if the kernel models physical memory (kernel.frames)."""
    return "vmstat" in k.dtype.names


def has_tlb(k: np.record) -> bool:
    """Return True if the kernel models TLBs (kernel.tlb)."""
    return "tlb_stat" in k.dtype.names


def frames_metrics(k: np.record, r: np.record, page: int) -> dict[str, float]:
    """Compute the metrics of physical memory that are not plain counters; ``page`` in bytes."""
    blocks = free_blocks(k)
    huge = page.bit_length() - 4  # log2 of the frames in a huge page
    return {
        "end_free_frames": int(k.zone["free"].sum()),
        "unusable_free_huge": unusable_free_index(blocks, huge),
        "fragmentation_index_huge": fragmentation_index(blocks, huge),
        "frames_checks": int(r.frames_checks),
    }


def tlb_metrics(k: np.record) -> dict[str, float]:
    """Compute the metrics of the TLBs that are not plain counters."""
    levels, stat = k.tlb_level, k.tlb_stat
    return {
        "tlb_l1_misses": int(levels[L1_BASE].misses + levels[L1_HUGE].misses),
        "tlb_l2_misses": int(levels[L2].misses),
        "tlb_flushes": int(stat.flush_all + stat.flush_pages),
    }


def measured(k: np.record, r: np.record, page: int, cost: Mapping[str, float]) -> dict[str, float]:
    """Compute every deterministic metric from the state after a replay; ``page`` in bytes."""
    found = _always_measured(k, r, page, cost) | counted(k, page)
    if has_frames(k):
        found |= frames_metrics(k, r, page)
    if has_tlb(k):
        found |= tlb_metrics(k)
    return {metric.name: found[metric.name] for metric in METRICS if metric.name in found}


def _always_measured(
    k: np.record, r: np.record, page: int, cost: Mapping[str, float]
) -> dict[str, float]:
    """Compute the metrics that exist on every kernel and are not plain counters."""
    mm = k.mm
    n = max(int(r.operations), 1)
    heap = int(heap_pages(mm)) * page
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
        "syscalls": int(system_calls(mm)),
        "loads_per_op": int(mm.loads) / n,
        "stores_per_op": int(mm.stores) / n,
        "steps_mean": int(mm.loads + mm.stores) / n,
        "steps_p50": within(0.5),
        "steps_p90": within(0.9),
        "steps_p99": within(0.99),
        "steps_p999": within(0.999),
        "steps_max": int(r.max_steps),
    }
