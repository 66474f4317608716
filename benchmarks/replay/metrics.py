"""``python -m benchmarks.replay.metrics``: print the table of metrics, as Markdown.

The summary, the figures and the README say about a number what this table says.

Definitions: live is the sum of requested bytes of live objects; heap what the allocator has mapped
since its start (PROT_NONE reservations apart); RSS the resident frames, without page tables and the
shared zero page.  Peaks are exact per event and means weigh every event equally.
"""

from typing import NamedTuple

from kernel import counters
from kernel.counters import Counter


class Metric(NamedTuple):
    """One number of a run.

    ``better`` is "lower", "higher" or "" (neither); ``timed`` marks what bench.json holds, all else
    is deterministic and stands in metrics.json.  ``part``: written only when that part of the
    kernel model is on, kernel.frames or kernel.tlb.  ``modelled``: only the model can tell, so that
    runs on a real library lack it.  ``rare``: a summary leaves it out where it is 0.
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
    """The metrics of counters (kernel.counters)."""
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


#: System calls by kind; page faults, in all and by cause.
CALLS, FAULTS = _counted(*counters.CALLS), _counted(*counters.FAULTS)

METRICS = (
    Metric("ns_per_op", "ns", "lower", "measured time of one allocator event", timed=True),
    _modelled("kernel_ns_per_op", "ns", "lower", "modelled time in the kernel per allocator event"),
    Metric("operations", "events", "", "malloc, calloc, realloc, aligned allocation and free"),
    Metric("failed", "events", "lower", "requests answered with NULL"),
    Metric("skipped", "events", "lower", "events of objects whose allocation had failed"),
    Metric("allocated", "bytes", "", "requested in all; a realloc counts as free then malloc"),
    Metric("peak_live", "bytes", "", "largest live"),
    Metric("peak_live_objects", "objects", "", "largest number of live objects"),
    Metric("peak_heap", "bytes", "lower", "largest heap"),
    Metric("peak_rss", "bytes", "lower", "largest RSS"),
    _modelled("peak_page_tables", "bytes", "lower", "largest size of the page tables"),
    Metric("mean_live", "bytes", "", "live, averaged over events"),
    Metric("mean_heap", "bytes", "lower", "heap, averaged over events"),
    Metric("mean_rss", "bytes", "lower", "RSS, averaged over events"),
    Metric("end_live", "bytes", "", "live after the last event"),
    Metric("end_heap", "bytes", "lower", "heap after the last event"),
    Metric("end_rss", "bytes", "lower", "RSS after the last event"),
    Metric("fragmentation_mean", "%", "lower", "heap over live, averaged over events, over 100 %"),
    Metric("fragmentation_peak_live", "%", "lower", "heap over live when live is largest"),
    Metric("fragmentation_peak_heap", "%", "lower", "heap over live when heap is largest"),
    Metric("fragmentation_peaks", "%", "lower", "largest heap over largest live"),
    Metric("syscalls", "calls", "lower", "system calls in all"),
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
    _modelled("steps_max", "steps", "lower", "loads + stores of the costliest event"),
    *_counted(*counters.PAYLOAD),
    *_counted(*counters.SWAP, *counters.FRAMES),
    _frames("end_free_frames", "frames", "", "free after the last event"),
    _frames(
        "unusable_free_huge",
        "share",
        "lower",
        "of the free frames at the end, unfit for huge pages",
    ),
    _frames(
        "fragmentation_index_huge",
        "index",
        "",
        "why a huge page fails at the end: 0 lack of memory, 1 fragmentation; -1: it does not",
    ),
    _frames("frames_checks", "checks", "", "times that all frames were checked and accounted for"),
    _tlb("tlb_l1_misses", "accesses", "lower", "not in the first level, base and huge pages"),
    _tlb("tlb_l2_misses", "accesses", "lower", "not in the second level either"),
    *_counted(*counters.TLB),
    _tlb("tlb_flushes", "flushes", "lower", "of one page or of everything"),
)

#: The table by name.
BY_NAME = {metric.name: metric for metric in METRICS}


#: Names of the metrics that a run on a real library (allocator=native/…) has too.
OF_NATIVE_RUNS = tuple(m.name for m in METRICS if not m.modelled)


def markdown() -> str:
    """The table as README.md shows it."""
    lines = ["| metric | unit | better | meaning |", "|---|---|---|---|"]
    for m in METRICS:
        meaning = f"{m.meaning} (`kernel.{m.part}`)" if m.part else m.meaning
        lines.append(f"| `{m.name}` | {m.unit} | {m.better or '–'} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
