"""``python -m benchmarks.replay.metrics``: print the table of metrics, as Markdown.

The summary, the figures and the README take the description of every metric from this table.

Definitions: live is the sum of the requested bytes of live objects; heap is the memory that the
allocator has mapped since its start, without PROT_NONE reservations; RSS is the resident frames,
without page tables and the shared zero page.  Peaks are exact per event; means weigh every event
equally.
"""

import sys
from typing import NamedTuple

from kernel import counters
from kernel.counters import Counter
from kernel.engine.command import run


class Metric(NamedTuple):
    """One metric of a run.

    ``better`` is "lower", "higher" or "" (neither).  ``timed``: by a clock, and stored in
    times.jsonl (benchmarks.timing); every other metric is deterministic and stored in metrics.json.
    ``part``: written only if that part of the kernel model, kernel.frames or kernel.tlb, is on.
    ``modelled``: available only from the model, so that runs on a real library do not have it.
    ``rare``: omitted from summaries if it is 0.
    """

    name: str
    unit: str
    better: str
    meaning: str
    timed: bool = False
    part: str = ""
    modelled: bool = False
    rare: bool = False


def _modelled(name: str, unit: str, better: str, meaning: str, part: str = "") -> Metric:
    return Metric(name, unit, better, meaning, part=part, modelled=True)


def _frames(name: str, unit: str, better: str, meaning: str) -> Metric:
    return _modelled(name, unit, better, meaning, "frames")


def _tlb(name: str, unit: str, better: str, meaning: str) -> Metric:
    return _modelled(name, unit, better, meaning, "tlb")


def _counted(*those: Counter) -> tuple[Metric, ...]:
    """Return the metrics of the given counters (kernel.counters) that have one."""
    parts = {"mm": "", "vmstat": "frames", "tlb_stat": "tlb"}
    return tuple(
        Metric(
            *(c.metric, c.unit, c.better, c.meaning),
            part=parts[c.record],
            modelled=not c.real,
            rare=c.rare,
        )
        for c in those
        if c.metric
    )


#: System calls by kind; page faults, total and by cause.
CALLS, FAULTS = _counted(*counters.CALLS), _counted(*counters.FAULTS)

#: The three quantities of time, which never share an axis.  On a simulated allocator, warm time is
#: measured, and the kernel's part of the others is modelled.
TIMES = (
    Metric(
        "warm_ns_per_op",
        "ns",
        "lower",
        "the allocator's own time per event; memory warm, blocks unused",
        timed=True,
    ),
    Metric(
        "cold_ns_per_op",
        "ns",
        "lower",
        "time per event of a fresh process, kernel included; blocks unused",
        timed=True,
    ),
    Metric(
        "end_to_end_ns_per_op",
        "ns",
        "lower",
        "time per event of a fresh process, kernel included; blocks used",
        timed=True,
    ),
)
WARM, COLD, END_TO_END = (metric.name for metric in TIMES)
#: Short names of the quantities, for headings.
TITLES = {WARM: "warm", COLD: "cold", END_TO_END: "end to end"}

METRICS = (
    *TIMES,
    _modelled("kernel_ns_per_op", "ns", "lower", "modelled time in the kernel per allocator event"),
    Metric("operations", "events", "", "malloc, calloc, realloc, aligned allocation and free"),
    Metric("failed", "events", "lower", "requests that returned NULL"),
    Metric("skipped", "events", "lower", "events on objects whose allocation had failed"),
    Metric("allocated", "bytes", "", "total requested bytes; a realloc counts as free then malloc"),
    Metric("peak_live", "bytes", "", "peak live bytes"),
    Metric("peak_live_objects", "objects", "", "peak number of live objects"),
    Metric("peak_heap", "bytes", "lower", "peak heap size"),
    Metric("peak_rss", "bytes", "lower", "peak RSS"),
    _modelled("peak_page_tables", "bytes", "lower", "peak size of the page tables"),
    Metric("mean_live", "bytes", "", "live bytes, mean over events"),
    Metric("mean_heap", "bytes", "lower", "heap size, mean over events"),
    Metric("mean_rss", "bytes", "lower", "RSS, mean over events"),
    Metric("end_live", "bytes", "", "live bytes after the last event"),
    Metric("end_heap", "bytes", "lower", "heap size after the last event"),
    Metric("end_rss", "bytes", "lower", "RSS after the last event"),
    Metric("fragmentation_mean", "%", "lower", "mean over events of heap ÷ live, minus 100 %"),
    Metric("fragmentation_peak_live", "%", "lower", "heap ÷ live at peak live, minus 100 %"),
    Metric("fragmentation_peak_heap", "%", "lower", "heap ÷ live at peak heap, minus 100 %"),
    Metric("fragmentation_peaks", "%", "lower", "peak heap ÷ peak live, minus 100 %"),
    Metric("syscalls", "calls", "lower", "total system calls"),
    *CALLS,
    *_counted(counters.FAILED),
    *FAULTS,
    *_counted(*counters.RETURNED),
    _modelled(
        "loads_per_op", "loads", "lower", "8-byte loads of the allocator's metadata per event"
    ),
    _modelled(
        "stores_per_op", "stores", "lower", "8-byte stores to the allocator's metadata per event"
    ),
    _modelled("steps_mean", "steps", "lower", "loads + stores per event, mean"),
    _modelled("steps_p50", "steps", "lower", "loads + stores per event, median"),
    _modelled("steps_p90", "steps", "lower", "loads + stores per event, 90th percentile"),
    _modelled("steps_p99", "steps", "lower", "loads + stores per event, 99th percentile"),
    _modelled("steps_p999", "steps", "lower", "loads + stores per event, 99.9th percentile"),
    _modelled("steps_max", "steps", "lower", "loads + stores per event, maximum"),
    *_counted(*counters.PAYLOAD),
    *_counted(*counters.SWAP, *counters.FRAMES),
    _frames("end_free_frames", "frames", "", "free frames after the last event"),
    _frames(
        "unusable_free_huge",
        "share",
        "lower",
        "share of the free frames at the end in blocks too small for a huge page",
    ),
    _frames(
        "fragmentation_index_huge",
        "index",
        "",
        "why a huge page fails at the end, 0 (no memory) to 1 (fragmentation); -1: none fails",
    ),
    _frames("frames_checks", "checks", "", "passed checks that account for every frame"),
    _tlb("tlb_l1_misses", "accesses", "lower", "misses in the first-level TLBs, base + huge pages"),
    _tlb("tlb_l2_misses", "accesses", "lower", "misses in the second-level TLB"),
    *_counted(*counters.TLB),
    _tlb("tlb_flushes", "flushes", "lower", "TLB flushes, of one page or of everything"),
)

#: Metrics by name.
BY_NAME = {metric.name: metric for metric in METRICS}


#: Names of the metrics that a run on a real library (allocator=native/…) also has.
OF_NATIVE_RUNS = tuple(m.name for m in METRICS if not m.modelled)


def markdown() -> str:
    """Return the table in Markdown, as README.md shows it."""
    lines = ["| metric | unit | better | meaning |", "|---|---|---|---|"]
    for m in METRICS:
        meaning = f"{m.meaning} (`kernel.{m.part}`)" if m.part else m.meaning
        lines.append(f"| `{m.name}` | {m.unit} | {m.better or '–'} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("benchmarks.replay.metrics", lambda: print(markdown()) or 0))
