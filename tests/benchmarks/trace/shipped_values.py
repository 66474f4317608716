"""Print the golden values: ``python -m tests.benchmarks.trace.shipped_values``.

They are properties of the traces alone; they change when traces are recorded anew, and only then.
"""

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.events import parquet
from benchmarks.events.events import ALLOCATOR_OPS, FREE, OP_NAMES, column
from benchmarks.events.ledger import Ledger
from benchmarks.trace import shipped

TABLE = Path(__file__).with_name("shipped.json")


def values(name: str) -> dict[str, int]:
    """Return operations, threads and peak live bytes of a trace, after checking its events."""
    path = shipped.path_of(name)
    ledger, live, peak = Ledger(), 0, 0
    by_op = np.zeros(len(OP_NAMES), "i8")
    allocating: set[int] = set()
    foreign = 0
    with parquet.Reader(path) as reader:
        for events in parquet.audited(path, reader.groups()):
            followed = ledger.follow(events)
            change = np.maximum(followed.after, 0) - np.maximum(followed.before, 0)
            running = live + np.cumsum(change)
            live, peak = int(running[-1]), max(peak, int(running.max()))
            by_op += np.bincount(events.op, minlength=len(OP_NAMES))
            requests = (events.op < ALLOCATOR_OPS) & (events.op != FREE)
            allocating.update(np.unique(column(events, "thread")[requests]).tolist())
            foreign += int(np.count_nonzero(followed.foreign))
    counts = {op: int(n) for op, n in zip(OP_NAMES, by_op, strict=True) if n}
    return {
        **counts,
        "peak_live_bytes": peak,
        "end_live_bytes": live,
        "allocating_threads": len(allocating),
        "frees_by_another_thread": foreign,
    }


if __name__ == "__main__":
    json.dump({name: values(name) for name in shipped.names()}, sys.stdout, indent=1)
    print()
