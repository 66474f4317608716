"""slice: write a part of a trace as a separate trace.

    events     0 ……………… A ══════════════ B ……………… end
    OUT        allocations of the objects that are live at A, then events A to B - 1

The objects that are live at A are allocated first, oldest first: with malloc or an aligned
allocation, with their size at A, by the thread that allocated them.  So the part starts with the
same live objects as in the full trace, but without the holes between them.  With --drop-earlier
these objects and all their events are left out; only objects allocated in the part remain.

Slots are renumbered in order of appearance, threads keep their numbers, times start at 0.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.events.events import ALIGNED, ALLOCATOR_OPS, MALLOC, Events, make_events, rows
from benchmarks.events.ledger import Ledger
from benchmarks.events.numbering import Numbering
from benchmarks.events.parquet import TraceError
from benchmarks.trace import formats
from benchmarks.trace.tools import derive

HELP = "write the events A to B - 1, after allocations of the objects that are live at A"

#: Columns that the ledger keeps of the event that allocated an object.
_KEPT = ("align", "site", "number")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    derive.add_input(parser)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument(
        "--from",
        dest="begin",
        type=derive.count,
        default=0,
        metavar="A",
        help="number of the first event, as printed by cat (default: 0)",
    )
    parser.add_argument(
        "--to",
        dest="end",
        type=derive.count,
        metavar="B",
        help="number of the event after the last one (default: end of the trace)",
    )
    parser.add_argument(
        "--drop-earlier",
        action="store_true",
        help="leave out the objects that are live at A and all their events, and print their "
        "number, instead of allocating these objects first",
    )


def run(given: argparse.Namespace, progress: formats.Progress | None) -> Callable[[], None]:
    """Cut; return a function that prints the counts and the name of the output."""
    with derive.opened(given.file, given.lenient, progress) as (reader, groups):
        end = reader.events if given.end is None else min(given.end, reader.events)
        if not given.begin < end:
            raise TraceError(
                f"{given.file}: no events from {given.begin} to "
                f"{'the end' if given.end is None else given.end}: the trace has {reader.events}"
            )
        part = Part(given.begin, end, given.drop_earlier)
        with derive.written(given, [given.file]) as writer:
            for events in part.of(derive.with_progress(groups, end, progress, "cutting")):
                writer.add(events)
            writer.provenance["parents"] = [derive.parent(given.file, reader)]
            writer.provenance |= part.counts

    def print_result() -> None:
        for name, count in part.counts.items():
            print(f"{name.replace('_', ' ')}: {count:,}")
        print(given.output)

    return print_result


class Part:
    """Events [``begin``, ``end``) of a trace.

    ``counts``: number of earlier objects that were allocated first, or dropped with their events.
    """

    def __init__(self, begin: int, end: int, drop: bool) -> None:
        self._begin, self._end, self._drop = begin, end, drop
        self._ledger, self._slots = Ledger(*_KEPT), Numbering()
        self._earlier = np.zeros(0, bool)  # by slot: holds an object allocated before ``begin``
        self._start = 0
        names = ("objects_dropped", "events_dropped") if drop else ("objects_allocated_first",)
        self.counts = dict.fromkeys(names, 0)

    def of(self, groups: Iterator[Events]) -> Iterator[Events]:
        """Yield the part's events from ``groups``, the pieces of the whole trace."""
        first, started = 0, False
        for events in groups:
            n = len(events.op)
            cut = min(max(self._begin - first, 0), n)
            if cut and not started:
                self._ledger.follow(rows(events, 0, cut))
            if cut < n:
                inside = rows(events, cut, min(self._end - first, n))
                if not started:
                    yield from self._open(inside)
                    started = True
                yield self._renumbered(self._without_earlier(inside) if self._drop else inside)
            first += n
            if first >= self._end:
                return

    def _open(self, inside: Events) -> Iterator[Events]:
        """Determine the objects live at A; yield their allocations unless they are dropped."""
        slot, size, birth = self._ledger.live()
        self._start = int(inside.time[0]) if len(inside.time) else 0
        if self._drop:
            self.counts["objects_dropped"] = len(slot)
            self._earlier = np.zeros(int(slot.max()) + 1 if len(slot) else 0, bool)
            self._earlier[slot] = True
            return
        self.counts["objects_allocated_first"] = len(slot)
        columns = {name: birth[name] for name in ("align", "thread", "site")}
        columns |= {"offset": np.zeros(len(slot)), "time": np.full(len(slot), self._start)}
        yield self._renumbered(
            make_events(
                np.where(birth["align"] > 0, ALIGNED, MALLOC),
                slot,
                size,
                # The first events determine the columns of the file.
                **{name: c for name, c in columns.items() if len(getattr(inside, name))},
            )
        )

    def _without_earlier(self, events: Events) -> Events:
        """Return ``events`` without those of objects allocated before the part."""
        more = int(events.slot.max(initial=-1)) + 1 - len(self._earlier)
        self._earlier = np.concatenate([self._earlier, np.zeros(max(more, 0), bool)])
        # The first free of such a slot ends the object; later events belong to another object.
        named = np.flatnonzero(events.slot >= 0)
        dropped = np.zeros(len(events.op), bool)
        dropped[named] = self._earlier[events.slot[named]]
        after = self._ledger.follow(events).after
        deaths = np.flatnonzero(dropped & (events.op < ALLOCATOR_OPS) & (after < 0))
        last = np.full(len(self._earlier), len(events.op))
        last[events.slot[deaths[::-1]]] = deaths[::-1]
        dropped[named] &= named <= last[events.slot[named]]
        self._earlier[events.slot[deaths]] = False
        self.counts["events_dropped"] += int(np.count_nonzero(dropped))
        return Events(*(c[~dropped] if len(c) else c for c in events))

    def _renumbered(self, events: Events) -> Events:
        time = events.time - self._start if len(events.time) else events.time
        return events._replace(slot=self._slots.of(events.slot), time=time)
