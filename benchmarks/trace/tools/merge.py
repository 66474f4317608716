"""merge: combine several traces as threads of one program.

    FILE 1   threads 0 1      ──► 0 1 ┐
    FILE 2   thread  0        ──► 2   ├─ one stream of events, one heap
    FILE 3   threads 0 1 2    ──► 3 4 5

If all traces have times, events are ordered by time, and each trace starts at 0.  Otherwise times
are dropped, and the traces advance in proportion to their lengths: each is halfway when OUT is.
Events of one trace never change their order.  Slots, threads and call sites get new dense numbers,
different for each trace.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.events.events import Events, column, make_events, rows
from benchmarks.events.numbering import Numbering
from benchmarks.trace import formats
from benchmarks.trace.tools import derive

HELP = "merge several traces as threads of one: by time if all have times, else in proportion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("files", type=derive.trace, metavar="FILE", nargs="+")
    derive.add_lenient(parser)


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Merge; return a function that prints the order used and the name of the output."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(derive.opened(path, given.lenient, progress))
            for path in given.files
        ]
        sources = [_Source(reader.events, groups) for reader, groups in opened]
        timed = all(source.has("time") for source in sources)
        total = sum(source.length for source in sources)
        order = "time" if timed else "length"
        with derive.written(given, given.files, interleaved_by=order) as writer:
            for events in derive.with_progress(merged(sources, timed), total, progress, "merging"):
                writer.add(events)
            writer.provenance["parents"] = [
                derive.parent(path, reader)
                for path, (reader, _) in zip(given.files, opened, strict=True)
            ]

    def print_result() -> None:
        print(f"interleaved by {order}")
        print(given.output)

    return print_result


class _Source:
    """An input trace: the events that are read but not yet merged, and their sort keys.

    ``keys`` (n,) never decrease; the merged events of all traces are ordered by key.
    """

    def __init__(self, length: int, groups: Iterator[Events]) -> None:
        self.length = length
        self._groups = groups
        self._next = next(groups, None)
        self._seen = 0
        self._begin = self._latest = 0
        if self.has("time"):
            self._begin = int(self._next.time[0])
        self.events, self.keys = make_events([], [], []), np.empty(0)

    def has(self, name: str) -> bool:
        """Return True if the trace has a column ``name``, or has no events at all."""
        return self._next is None or len(getattr(self._next, name)) > 0

    def fill(self, timed: bool) -> None:
        """Read the next group if all events read so far are merged."""
        if len(self.keys) or self._next is None:
            return
        events = self._next
        n = len(events.op)
        if timed:
            time = events.time - self._begin
            events = events._replace(time=time)
            # Times of different threads may decrease; the order of the trace has priority.
            self.keys = np.maximum(np.maximum.accumulate(time), self._latest)
            self._latest = int(self.keys[-1])
        else:
            self.keys = (self._seen + np.arange(n) + 0.5) / self.length
        self.events = events
        self._seen += n
        self._next = next(self._groups, None)

    def take(self, horizon: float) -> tuple[Events, np.ndarray]:
        """Remove and return the events with keys up to ``horizon``, and these keys."""
        n = int(np.searchsorted(self.keys, horizon, side="right"))
        events, keys = rows(self.events, 0, n), self.keys[:n]
        self.events, self.keys = rows(self.events, n, len(self.keys)), self.keys[n:]
        return events, keys


def merged(sources: list[_Source], timed: bool) -> Iterator[Events]:
    """Yield the renumbered events of all ``sources`` in the order of their keys, in pieces."""
    names = {name for name in Events._fields for s in sources if s.has(name) and s.length}
    names = (names | {"thread"}) - ({"time"} if not timed else set())
    first = {"slot": 0, "thread": 0, "site": 1}
    numbers = {name: Numbering.beside(len(sources), first[name]) for name in first}
    while True:
        for source in sources:
            source.fill(timed)
        live = [i for i, source in enumerate(sources) if len(source.keys)]
        if not live:
            return
        # Every trace is read up to this key, so no event with a smaller key is still unread.
        horizon = min(sources[i].keys[-1] for i in live)
        parts, keys = [], []
        for i in live:
            events, key = sources[i].take(horizon)
            columns = {name: column(events, name) for name in Events._fields if name in names}
            for name in numbers.keys() & columns.keys():
                columns[name] = numbers[name][i].of(columns[name])
            parts.append(columns)
            keys.append(key)
        order = np.argsort(np.concatenate(keys), kind="stable")
        yield make_events(
            **{name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        )
