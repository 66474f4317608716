"""info: what a trace contains."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import formats, native
from benchmarks.events import ALLOCATOR_OPS, FREE, OP_NAMES, Events, column, slot_count
from benchmarks.ledger import Ledger

#: Upper ends of the rows of the size distribution, bytes.
_OCTAVES = 1 << np.arange(63)


class Statistics:
    """What ``info`` prints, gathered from successive pieces of a trace."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._by_op = np.zeros(len(OP_NAMES), "i8")
        self._threads: set[int] = set()
        self._foreign = self._slots = 0
        self._null_frees = 0
        self._live = self._objects = 0
        self._peak = self._peak_objects = 0
        self._allocated = 0
        self._counts = np.zeros(len(_OCTAVES) + 1, "i8")
        self._bytes = np.zeros(len(_OCTAVES) + 1, "i8")

    def add(self, events: Events) -> None:
        """Take the next piece, (n,) events."""
        if not len(events.op):
            return
        followed = self._ledger.follow(events)
        self._by_op += np.bincount(events.op, minlength=len(OP_NAMES))
        self._threads.update(np.unique(column(events, "thread")).tolist())
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
        asks = (events.op < ALLOCATOR_OPS) & (followed.after >= 0)
        sizes = events.size[asks]
        self._allocated += int(sizes.sum())
        octave = np.searchsorted(_OCTAVES, sizes)
        self._counts += np.bincount(octave, minlength=len(self._counts))
        np.add.at(self._bytes, octave, sizes)

    def summary(self) -> dict[str, Any]:
        """Plain values for JSON; bytes unless said otherwise."""
        requests = int(self._counts.sum())
        rows = [
            {
                "from": int(_OCTAVES[i - 1]) + 1 if i else 0,
                "to": int(_OCTAVES[i]),
                "requests": int(self._counts[i]),
                "bytes": int(self._bytes[i]),
            }
            for i in np.flatnonzero(self._counts)
        ]
        return {
            "events": int(self._by_op.sum()),
            "operations": {n: int(c) for n, c in zip(OP_NAMES, self._by_op, strict=True) if c},
            "free_null": self._null_frees,
            "threads": len(self._threads),
            "frees_by_another_thread": self._foreign,
            "allocated_bytes": self._allocated,
            "peak_live_bytes": self._peak,
            "peak_live_objects": self._peak_objects,
            "end_live_bytes": self._live,
            "end_live_objects": self._objects,
            "slots": self._slots,
            "mean_request": round(self._allocated / requests, 3) if requests else 0,
            "sizes": rows,
        }


def describe(path: Path, strict: bool, progress: formats.Progress | None = None) -> dict[str, Any]:
    """Everything that ``info`` prints about a trace.  Raises TraceError."""
    statistics = Statistics()
    with formats.native_file(path, strict, progress) as (reader, checked):
        groups = reader.groups()
        seen = 0
        for events in groups if checked else native.verify(path, groups):
            statistics.add(events)
            seen += len(events.op)
            if progress:
                progress(seen / max(reader.events, 1), f"reading {path.name}")
        formats.report_dropped(path, reader.provenance)
        provenance = reader.provenance
    head = {"file": str(path), "format": provenance.get("format", "native")}
    return head | statistics.summary() | {"dropped": provenance.get("dropped", {})}


def print_tables(about: dict[str, Any]) -> None:
    """Print what ``describe`` returned for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=about["file"], show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("format", about["format"])
    table.add_row("events", f"{about['events']:,}")
    for name, count in about["operations"].items():
        table.add_row(f"  {name}", f"{count:,}")
    table.add_row("free(NULL)", f"{about['free_null']:,}")
    table.add_row("threads", f"{about['threads']:,}")
    table.add_row("frees by another thread", f"{about['frees_by_another_thread']:,}")
    table.add_row("allocated in all", _bytes(about["allocated_bytes"]))
    table.add_row("peak live", _bytes(about["peak_live_bytes"]))
    table.add_row("peak live objects", f"{about['peak_live_objects']:,}")
    table.add_row("live at the end", _bytes(about["end_live_bytes"]))
    table.add_row("mean request", f"{about['mean_request']:,.1f} bytes")
    for name, count in about["dropped"].items():
        table.add_row(f"dropped: {name.replace('_', ' ')}", f"{count:,}")
    console.print(table)

    sizes = Table(title="requests by size")
    for head in ("bytes", "requests", "%", "up to here %", "total bytes", "% of bytes"):
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


def _bytes(n: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if n >= 1 << shift:
            return f"{n:,} bytes ({n / (1 << shift):.2f} {unit})"
    return f"{n:,} bytes"


HELP = "operations, threads, bytes and sizes of a trace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--lenient", action="store_true", help="drop and count what cannot have happened"
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Read the trace; returns what prints the answer."""
    about = describe(given.file, not given.lenient, progress)
    if given.json:
        return lambda: print(json.dumps(about, indent=2))
    return lambda: print_tables(about)
