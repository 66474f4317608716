"""info: print statistics of a trace.

A lifetime extends from the event that allocates the object to the event that frees it; a realloc
does not end it.  It is measured in allocator events, and in nanoseconds if the trace has times.  An
object's size class is the smallest power of two that is not less than its size when freed, or at
the end of the trace if it is never freed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.events import histogram
from benchmarks.events.events import ALLOCATOR_OPS, FREE, OP_NAMES, Events, column, slot_count
from benchmarks.events.ledger import Followed, Ledger
from benchmarks.events.numbering import Numbering
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.tools import derive
from kernel.engine.foreign import WIDTH, printable
from kernel.engine.jit import build_once

#: Upper ends of the size classes, bytes.
_OCTAVES = 1 << np.arange(63)
#: Lifetimes below 16 are counted exactly, longer ones within 1/16: log2 of both.
_EXACT = _PARTS = 4
_BUCKETS = histogram.bucket_count(_EXACT, _PARTS)
#: Quantiles of lifetimes that are reported.
_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
#: Upper bound on rows of live bytes over time; when it is reached, pairs of rows are merged.
_LIVE_ROWS = 256
#: Upper bound on rows of a printed table.
_SHOWN = 20
#: File types that --plot writes.
_PLOTS = (".png", ".svg")


class Statistics:
    """Statistics that ``info`` prints, collected from successive pieces of a trace."""

    def __init__(self) -> None:
        self._ledger = Ledger("number", "time")
        self._by_op = np.zeros(len(OP_NAMES), "i8")
        self._foreign = self._slots = 0
        self._null_frees = 0
        self._live = self._objects = 0
        self._peak = self._peak_objects = 0
        self._allocated = 0
        self._counts = np.zeros(len(_OCTAVES) + 1, "i8")
        self._bytes = np.zeros(len(_OCTAVES) + 1, "i8")
        self._threads = Threads()
        self._over_time = LiveOverTime()
        self._lifetimes = {"events": Lifetimes(), "ns": Lifetimes()}
        self._timed = False

    def add(self, events: Events) -> None:
        """Add the next piece, (n,) events."""
        if not len(events.op):
            return
        number = self._ledger.operations + np.cumsum(events.op < ALLOCATOR_OPS) - 1
        followed = self._ledger.follow(events)
        self._by_op += np.bincount(events.op, minlength=len(OP_NAMES))
        self._foreign += int(np.count_nonzero(followed.foreign))
        self._null_frees += int(np.count_nonzero((events.op == FREE) & (events.slot < 0)))
        self._slots = max(self._slots, slot_count(events))
        before, after = (np.maximum(x, 0) for x in (followed.before, followed.after))
        live = self._live + np.cumsum(after - before)
        there = (followed.after >= 0).astype("i8") - (followed.before >= 0)
        objects = self._objects + np.cumsum(there)
        self._live, self._objects = int(live[-1]), int(objects[-1])
        self._peak = max(self._peak, int(live.max()))
        self._peak_objects = max(self._peak_objects, int(objects.max()))
        self._over_time.add(live, objects)
        requests = (events.op < ALLOCATOR_OPS) & (followed.after >= 0)
        sizes = events.size[requests]
        self._allocated += int(sizes.sum())
        octave = _size_class(sizes)
        self._counts += np.bincount(octave, minlength=len(self._counts))
        np.add.at(self._bytes, octave, sizes)
        dies = there < 0
        self._threads.add(
            column(events, "thread"), np.where(requests, events.size, -1), dies, followed
        )
        size, birth = followed.before[dies], followed.birth
        self._lifetimes["events"].add(size, number[dies] - birth["number"][dies])
        if len(events.time):
            self._timed = True
            self._lifetimes["ns"].add(size, events.time[dies] - birth["time"][dies])

    def summary(self) -> dict[str, Any]:
        """Return the statistics as values for JSON."""
        requests = int(self._counts.sum())
        rows = [
            _class_ends(i) | {"requests": int(self._counts[i]), "bytes": int(self._bytes[i])}
            for i in np.flatnonzero(self._counts)
        ]
        by_thread = self._threads.summary()
        left = self._ledger.live().bytes
        return {
            "events": int(self._by_op.sum()),
            "operations": {n: int(c) for n, c in zip(OP_NAMES, self._by_op, strict=True) if c},
            "free_null": self._null_frees,
            "threads": len(by_thread),
            "frees_by_another_thread": self._foreign,
            "allocated_bytes": self._allocated,
            "peak_live_bytes": self._peak,
            "peak_live_objects": self._peak_objects,
            "end_live_bytes": self._live,
            "end_live_objects": self._objects,
            "slots": self._slots,
            "mean_request": round(self._allocated / requests, 3) if requests else 0,
            "sizes": rows,
            "by_thread": by_thread,
            "live": self._over_time.summary(),
            "lifetimes": {
                unit: lifetimes.summary(left)
                for unit, lifetimes in self._lifetimes.items()
                if unit == "events" or self._timed
            },
        }


class Threads:
    """Sums of events, requests and frees by thread number."""

    _COLUMNS = ("events", "requests", "bytes", "frees", "frees_of_others")

    def __init__(self) -> None:
        self._sums = np.zeros((len(self._COLUMNS), 0), "i8")
        self._numbers = Numbering()

    def add(
        self, thread: np.ndarray, asked: np.ndarray, dies: np.ndarray, followed: Followed
    ) -> None:
        """Add a piece of n events.

        Each (n,): thread; requested bytes, -1 if no request; True if the event frees an object.
        """
        thread = self._numbers.of(thread)
        more = int(thread.max()) + 1 - self._sums.shape[1]
        if more > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
        n, requests = self._sums.shape[1], asked >= 0
        for i, which in enumerate((slice(None), requests, None, dies, followed.foreign)):
            if which is not None:
                self._sums[i] += np.bincount(thread[which], minlength=n)
        np.add.at(self._sums[self._COLUMNS.index("bytes")], thread[requests], asked[requests])

    def summary(self) -> list[dict[str, int]]:
        """Return a row for each thread that has events, in the order of the threads' numbers."""
        numbers = self._numbers.originals()
        return [
            {"thread": int(numbers[i])}
            | dict(zip(self._COLUMNS, self._sums[:, i].tolist(), strict=True))
            for i in np.argsort(numbers)
        ]


class LiveOverTime:
    """Live bytes and objects over time, aggregated to rows of ``_stride`` events."""

    def __init__(self) -> None:
        self._stride, self._seen = 1, 0
        # Largest and last live bytes of a row, and its last number of objects.
        self._rows = np.zeros((3, _LIVE_ROWS), "i8")

    def add(self, live: np.ndarray, objects: np.ndarray) -> None:
        """Add live bytes and objects after each of n events."""
        end = self._seen + len(live)
        while end > self._stride * _LIVE_ROWS:
            self._halve()
        row = np.arange(self._seen, end) // self._stride
        begins = np.flatnonzero(np.diff(row, prepend=-1))
        rows, ends = row[begins], np.append(begins[1:], len(row)) - 1
        peaks = np.maximum.reduceat(live, begins)
        self._rows[0, rows] = np.maximum(self._rows[0, rows], peaks)
        self._rows[1, rows], self._rows[2, rows] = live[ends], objects[ends]
        self._seen = end

    def _halve(self) -> None:
        first, second = self._rows[:, 0::2], self._rows[:, 1::2]
        begins = (2 * np.arange(_LIVE_ROWS // 2) + 1) * self._stride
        merged = np.where(begins < self._seen, second, first)
        merged[0] = np.maximum(first[0], second[0])
        self._rows = np.pad(merged, ((0, 0), (0, _LIVE_ROWS // 2)))
        self._stride *= 2

    def summary(self) -> list[dict[str, int]]:
        """Return the rows: last event, largest live bytes, live bytes and objects at the end."""
        ends = np.minimum((1 + np.arange(_LIVE_ROWS)) * self._stride, self._seen) - 1
        used = -(-self._seen // self._stride)
        names = ("event", "peak_bytes", "bytes", "objects")
        columns = [ends[:used].tolist(), *self._rows[:, :used].tolist()]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class Lifetimes:
    """Histogram of freed objects: counts by (size class, lifetime), bytes by lifetime."""

    def __init__(self) -> None:
        self._objects = np.zeros((len(_OCTAVES) + 1, _BUCKETS), "i8")
        self._bytes = np.zeros(_BUCKETS, "i8")

    def add(self, size: np.ndarray, lifetime: np.ndarray) -> None:
        """Add (n,) freed objects: bytes and lifetime; negative lifetimes count as 0."""
        bucket = np.empty(len(lifetime), "i8")
        build_once(histogram.put_buckets)(
            np.clip(lifetime, 0, (1 << 62) - 1), _EXACT, _PARTS, bucket
        )
        both = _size_class(size) * _BUCKETS + bucket
        counts = np.bincount(both, minlength=self._objects.size)
        self._objects += counts.reshape(self._objects.shape)
        np.add.at(self._bytes, bucket, size)

    def summary(self, left: np.ndarray) -> dict[str, Any]:
        """Return the distribution by powers of two, and quantiles by size class.

        ``left``: bytes of the objects that are live at the end, (n,).
        """
        floors = histogram.floor(np.arange(_BUCKETS), _EXACT, _PARTS)
        octave = np.searchsorted(_OCTAVES, floors, side="right")
        objects, bytes_ = np.zeros((2, len(_OCTAVES) + 1), "i8")
        np.add.at(objects, octave, self._objects.sum(axis=0))
        np.add.at(bytes_, octave, self._bytes)
        alive = np.bincount(_size_class(left), minlength=len(self._objects))
        freed = self._objects.sum(axis=1)
        return {
            "freed": int(freed.sum()),
            "alive": len(left),
            "quantiles": _quantiles(self._objects.sum(axis=0)),
            "distribution": [
                {
                    "from": int(_OCTAVES[i - 1]) if i else 0,
                    "below": int(_OCTAVES[i]),
                    "objects": int(objects[i]),
                    "bytes": int(bytes_[i]),
                }
                for i in np.flatnonzero(objects)
            ],
            "sizes": [
                _class_ends(i)
                | {"freed": int(freed[i]), "alive": int(alive[i])}
                | {"quantiles": _quantiles(self._objects[i])}
                for i in np.flatnonzero(freed + alive)
            ],
        }


def _size_class(size: np.ndarray) -> np.ndarray:
    """Return each size's class: the log2 of the smallest power of two that is not less."""
    return np.searchsorted(_OCTAVES, size)


def _class_ends(i: int) -> dict[str, int]:
    """Return the smallest and the largest size of class ``i``."""
    return {"from": int(_OCTAVES[i - 1]) + 1 if i else 0, "to": int(_OCTAVES[i])}


def _quantiles(counts: np.ndarray) -> dict[str, int]:
    """Return quantiles of a lifetime histogram, accurate to 1/16; {} if it is empty."""
    if not counts.any():
        return {}
    return {
        name: histogram.quantile(counts, share, _EXACT, _PARTS)
        for name, share in _QUANTILES.items()
    }


def describe(path: Path, strict: bool, progress: formats.Progress | None = None) -> dict[str, Any]:
    """Return everything that ``info`` prints about a trace.  Raises TraceError."""
    statistics = Statistics()
    with derive.opened(path, not strict, progress) as (reader, groups):
        for events in derive.with_progress(groups, reader.events, progress, f"reading {path.name}"):
            statistics.add(events)
        provenance = reader.provenance
    head = {"file": str(path), "format": provenance.get("format", "Parquet")}
    return head | statistics.summary() | {"dropped": provenance.get("dropped", {})}


def print_tables(about: dict[str, Any]) -> None:
    """Print the result of :func:`describe` as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=Text(printable(about["file"])), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("format", Text(printable(about["format"], WIDTH)))
    table.add_row("events", f"{about['events']:,}")
    for name, count in about["operations"].items():
        table.add_row(f"  {name}", f"{count:,}")
    table.add_row("free(NULL)", f"{about['free_null']:,}")
    table.add_row("threads", f"{about['threads']:,}")
    table.add_row("frees by another thread", f"{about['frees_by_another_thread']:,}")
    table.add_row("total allocated", _bytes(about["allocated_bytes"]))
    table.add_row("peak live", _bytes(about["peak_live_bytes"]))
    table.add_row("peak live objects", f"{about['peak_live_objects']:,}")
    table.add_row("live at the end", _bytes(about["end_live_bytes"]))
    table.add_row("mean request", f"{about['mean_request']:,.1f} bytes")
    for name, count in about["dropped"].items():
        what = Text(printable(f"dropped: {name.replace('_', ' ')}", WIDTH))
        table.add_row(what, f"{count:,}")
    console.print(table)

    sizes = Table(title="requests by size")
    for head in ("bytes", "requests", "%", "cumulative %", "total bytes", "% of bytes"):
        sizes.add_column(head, justify="right", no_wrap=True)
    requests = sum(row["requests"] for row in about["sizes"])
    total, so_far = max(about["allocated_bytes"], 1), 0
    for row in about["sizes"]:
        so_far += row["requests"]
        sizes.add_row(
            f"≤ {row['to']:,}",
            f"{row['requests']:,}",
            f"{100 * row['requests'] / requests:.2f}",
            f"{100 * so_far / requests:.2f}",
            f"{row['bytes']:,}",
            f"{100 * row['bytes'] / total:.2f}",
        )
    console.print(sizes)
    if about["events"]:
        console.print(_live_table(about["live"], about["peak_live_bytes"]))
    for unit, lifetimes in about["lifetimes"].items():
        if lifetimes["sizes"]:
            console.print(_lifetime_table(unit, lifetimes))
    if about["threads"] > 1:
        console.print(_thread_table(about["by_thread"]))


def _live_table(rows: list[dict[str, int]], peak: int) -> Any:
    from rich.table import Table

    table = Table(title="live over time")
    for head in ("up to event", "largest live bytes", "objects"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("of the peak", no_wrap=True)
    step = -(-len(rows) // _SHOWN)
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        largest = max(row["peak_bytes"] for row in part)
        bar = "█" * round(24 * largest / max(peak, 1))
        table.add_row(f"{part[-1]['event']:,}", f"{largest:,}", f"{part[-1]['objects']:,}", bar)
    return table


def _lifetime_table(unit: str, lifetimes: dict[str, Any]) -> Any:
    from rich.table import Table

    show = _duration if unit == "ns" else lambda n: f"{n:,}"
    name = "time" if unit == "ns" else "allocator events"
    table = Table(title=f"lifetimes by size, in {name}; alive: at the end")
    for head in ("bytes", "freed", "alive", *(q.replace("p", "p ") for q in _QUANTILES)):
        table.add_column(head, justify="right", no_wrap=True)
    everything = {"freed": lifetimes["freed"], "alive": lifetimes["alive"]}
    for row in [*lifetimes["sizes"], everything | {"quantiles": lifetimes["quantiles"]}]:
        table.add_row(
            f"≤ {row['to']:,}" if "to" in row else "all",
            f"{row['freed']:,}",
            f"{row['alive']:,}",
            *(show(row["quantiles"][q]) if row["quantiles"] else "" for q in _QUANTILES),
        )
    return table


def _thread_table(rows: list[dict[str, int]]) -> Any:
    from rich.table import Table

    rows = sorted(rows, key=lambda row: -row["bytes"])
    more = f": the {_SHOWN} of {len(rows)} with the most bytes" if len(rows) > _SHOWN else ""
    total = max(sum(row["bytes"] for row in rows), 1)
    table = Table(title=f"by thread{more}")
    for head in ("thread", "events", "requests", "bytes", "%", "frees", "of others"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows[:_SHOWN]:
        cells = [row[name] for name in ("thread", "events", "requests", "bytes")]
        cells = [f"{cell:,}" for cell in cells] + [f"{100 * row['bytes'] / total:.2f}"]
        table.add_row(*cells, f"{row['frees']:,}", f"{row['frees_of_others']:,}")
    return table


def _bytes(n: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n >= 1 << shift:
            return f"{n:,} bytes ({n / (1 << shift):.2f} {unit})"
    return f"{n:,} bytes"


def _duration(ns: int) -> str:
    """Return a time with three digits and its unit."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"


def plot(about: dict[str, Any], out: Path) -> None:
    """Plot the result of :func:`describe` by running analysis.fig_trace in a child process.

    Raises TraceError.
    """
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "info.json"
        data.write_text(json.dumps(about), encoding="utf-8")
        command = [sys.executable, "-m", "analysis.fig_trace", str(data), "-o", str(out)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise TraceError(lines[-1].removeprefix("fig_trace: "))


HELP = "operations, sizes, lifetimes, live bytes over time and threads of a trace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    derive.add_input(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--plot", type=_plot_path, metavar="OUT.png|svg", help="also write a figure of four panels"
    )


def _plot_path(text: str) -> Path:
    """Parse the name of a figure from the command line."""
    if Path(text).suffix not in _PLOTS:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .png or .svg")
    return Path(text)


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Read the trace; return a function that prints the statistics."""
    if given.plot:
        formats.check_output(given.plot, given.file)
    about = describe(given.file, not given.lenient, progress)
    if given.plot:
        plot(about, given.plot)
    if given.json:
        return lambda: print(json.dumps(about, indent=2))

    def print_result() -> None:
        print_tables(about)
        if given.plot:
            print(given.plot)

    return print_result
