"""Synth: a program like a recorded one, but longer or larger: workload=synth workload.path=FILE.

    phases   |‒‒‒‒‒‒‒‒‒‒‒ 0 ‒‒‒‒‒‒‒‒‒‒‒|‒‒‒‒‒‒‒‒ 1 ‒‒‒‒‒‒‒‒|‒ 2 ‒|‒‒‒ 3     keep their order
    blocks    a b c d e f g h i j k l m n o p q r s t u v w x y z         of ``block`` births
    drawn     d h a k c … b             p v n m … q         x w           in random order in a phase

Time is counted in births (allocations).  A phase is a run of births during which live bytes differ
from their value at its start by at most SWING percent of the peak; long runs are split.  Each phase
is cut into blocks of consecutive births, and blocks are drawn in random order with all properties
of their births: operation, size, alignment, thread.  Events of an object in the phase of its birth
(realloc, touch, free) are repeated at the same age, so the joint distribution of size and lifetime
is preserved in every phase.  Events of an object in a later phase move with the block in which they
occur: objects that are freed together in the trace are freed together again.

    longer=L    L times as many events at the same live bytes.  Objects that outlive their phase are
                not repeated, so the others occur correspondingly more than L times as often.
    larger=R    R times as many live objects at any time, each with R times the lifetime in births.
    shuffle     the lifetimes of all objects are permuted, regardless of size and phase: the null
                model, which preserves sizes, order of births and lifetimes separately, not jointly.

A thread ends once, after all its other events.

Blocks of one birth preserve nothing of the order in which a program allocates; longer blocks
preserve more.  An allocator that frees whole regions (arena) needs blocks of some hundreds of
births; for the others 16 suffice, as measured on the shipped traces: analysis.fig_synth.

Sources: the block bootstrap, H. Künsch, "The jackknife and the bootstrap for general stationary
observations", 1989; evaluation of synthetic programs by the behaviour of allocators, B. Zorn,
D. Grunwald, "Evaluating models of memory allocation", 1994.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from allocators.base.settings import Setting, choice, number
from benchmarks.events.events import THREAD_END, Events, column, make_events
from benchmarks.events.ledger import Ledger
from benchmarks.trace.formats import load, recognise
from benchmarks.workloads.base.pieces import slots_in_turn
from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.registry import path
from kernel.engine.jit import build_once, jit

#: Largest change of live bytes within a phase, percent of the peak; and least number of phases.
SWING = 5
PHASES = 16

_MOST_EVENTS = 1 << 31


class Factor(Setting):
    """Setting for a number with three decimals, stored as an integer in thousandths."""

    def parse(self, name: str, value: object) -> int:
        """Return ``value`` in thousandths.  Raises ValueError with the permitted range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name}={value}: expected a number")
        if not self.low <= 1000 * value <= self.high:
            raise ValueError(f"{name}={value}: must be {self.low // 1000} to {self.high // 1000}")
        return round(1000 * value)

    def format(self, value: int) -> object:
        """Return the number that a user writes for ``value`` thousandths."""
        return value / 1000


PATH = path()
STRICT = choice("false", "true", default="true", text="impossible events are errors, else dropped")
LONGER = Factor(1000, 1000, 1_000_000, text="factor of the number of events")
LARGER = Factor(1000, 1000, 1_000_000, text="factor of the number of live objects")
BLOCK = number(64, low=1, high=1 << 30, text="consecutive births that keep their order")
SHUFFLE = choice("false", "true", text="permute the lifetimes: the null model")


def check_settings(s: SimpleNamespace) -> None:
    """Raise TraceError (a ValueError) unless the file exists and has a known format."""
    recognise(Path(s.path))


def read(
    s: SimpleNamespace, progress: Callable[[float, str], None] | None
) -> tuple[Events, dict[str, Any]]:
    """Read the trace and generate a new one from it.  Raises TraceError, which is a ValueError."""
    events, provenance = load(Path(s.path), bool(s.strict), progress)
    longer, larger, random = s.longer / 1000, s.larger / 1000, Random(s.seed)
    if len(events.op) * longer * larger > _MOST_EVENTS:
        raise ValueError(f"longer={longer}, larger={larger}: more than {_MOST_EVENTS} events")
    trace = lives(events)
    if not len(trace.birth):
        raise ValueError(f"{s.path}: the trace has no allocations")
    phases = int(trace.phase[-1]) + 1
    if progress:
        progress(0.5, "drawing objects")
    events = apply_schedule(events, trace, draw_schedule(trace, longer, larger, s.block, random))
    if s.shuffle:
        trace = lives(events)
        events = apply_schedule(events, trace, shuffle_lifetimes(trace, random))
    return events, {"trace": provenance, "phases": phases}


class Lives(NamedTuple):
    """Objects of a trace, numbered by their births, and their events.

    ``birth`` (objects,) int64: allocating event of each object.  ``later`` (m,) int64: all other
    events, in order.  ``object`` (m,) int64: object of each of these, -1 for none.  ``clock`` (m,)
    int64: number of the last birth before it, -1 at the start.  ``dies`` (m,) bool: True if it
    frees its object.  ``phase`` (objects,) int64: phase of each birth, non-decreasing.
    """

    birth: np.ndarray
    later: np.ndarray
    object: np.ndarray
    clock: np.ndarray
    dies: np.ndarray
    phase: np.ndarray


def lives(events: Events) -> Lives:
    """Find the objects of a whole trace."""
    followed = Ledger().follow(events)
    born = (followed.before < 0) & (followed.after >= 0)
    number = np.cumsum(born) - 1  # the last birth up to each event
    order = np.argsort(events.slot, kind="stable")
    place = np.maximum.accumulate(np.where(born[order], np.arange(len(order)), 0))
    about = np.empty(len(order), "i8")
    about[order] = number[order[place]] if len(order) else 0
    about[events.slot < 0] = -1
    later = np.flatnonzero(~born)
    dies = (followed.before[later] >= 0) & (followed.after[later] < 0)
    live = np.cumsum(np.maximum(followed.after, 0) - np.maximum(followed.before, 0))
    phase = np.zeros(int(np.count_nonzero(born)), "i8")
    longest = max(len(phase) // PHASES, 1)
    build_once(cut)(live, number + 1, int(live.max(initial=0) * SWING / 100), longest, phase)
    return Lives(np.flatnonzero(born), later, about[later], number[later], dies, phase)


class Timetable(NamedTuple):
    """Schedule of the new trace: time ``tick``, ``event`` to repeat, ``object``; (n,) int64 each.

    A tick is the time of one birth.  Objects are numbered anew; -1 is none.
    """

    tick: np.ndarray
    event: np.ndarray
    object: np.ndarray


def draw_schedule(
    trace: Lives, longer: float, larger: float, births_of_block: int, random: Random
) -> Timetable:
    """Draw the blocks of each phase, for ``longer`` times ``larger`` times the events."""
    n = len(trace.birth)
    phase = trace.phase
    within = np.arange(n) - np.searchsorted(phase, phase)
    begin = np.append(np.flatnonzero(within % births_of_block == 0), n)  # of each block
    block = np.searchsorted(begin, np.arange(n), side="right") - 1

    # An object is lasting if it is never freed, or has events in a later phase than its birth.
    owned = trace.object >= 0
    owner = np.maximum(trace.object, 0)
    place = np.maximum(trace.clock, 0)  # the birth that precedes each other event
    inside = owned & (phase[owner] == phase[place])
    lasting = np.ones(n, bool)
    lasting[trace.object[trace.dies]] = False
    lasting[trace.object[owned & ~inside]] = True

    # Number of copies of each block, of those with its lasting objects, and of each object.
    # Lasting objects and their events are repeated only ``larger`` times; the others compensate.
    blocks = len(begin) - 1
    fixed = int(np.count_nonzero(lasting)) + int(np.count_nonzero(owned & lasting[owner]))
    others = n + len(trace.object) - fixed
    often = longer + (longer - 1) * fixed / others if others else longer
    copies = _spread(often * larger, blocks, random)
    bearing = np.minimum(_spread(larger, blocks, random), copies)
    copies_of = np.where(lasting, bearing[block], copies[block])

    # Order the draws of a phase randomly.
    first = np.cumsum(copies) - copies  # index of the draw that is the block's first copy
    draws = np.repeat(np.arange(blocks), copies)
    order = np.lexsort((random.bits(len(draws)), phase[begin[draws]]))
    length = np.diff(begin)[draws]
    tick = np.empty(len(draws), "i8")
    tick[order] = np.cumsum(length[order]) - length[order]

    def position(birth: np.ndarray, copy: np.ndarray) -> np.ndarray:
        """Return the tick of copy ``copy`` of ``birth``."""
        return tick[first[block[birth]] + copy] + birth - begin[block[birth]]

    birth, copy = _repeat(copies_of)
    names = np.cumsum(copies_of) - copies_of  # number of each object's first copy
    births = Timetable(position(birth, copy), trace.birth[birth], np.arange(len(birth)))

    row, copy = _repeat(np.where(owned, copies_of[owner], copies[block[place]]))
    aged = position(owner[row], np.where(owned[row], copy, 0))
    aged += ((place - owner)[row] * larger).astype("i8")
    carried = position(place[row], np.minimum(copy, copies[block[place[row]]] - 1))
    later = Timetable(
        np.where(inside[row], aged, carried),
        trace.later[row],
        np.where(owned[row], names[owner[row]] + copy, -1),
    )
    return _merged(births, _delayed(births, later))


def shuffle_lifetimes(trace: Lives, random: Random) -> Timetable:
    """Permute the lifetimes of all objects: the null model."""
    n = len(trace.birth)
    birth = np.arange(n)
    forever = n - birth  # lifetime of an object that is never freed
    lifetime, death = forever.copy(), np.full(n, -1)
    mortal = trace.object[trace.dies]
    lifetime[mortal] = (trace.clock - trace.object)[trace.dies]
    death[mortal] = trace.later[trace.dies]
    dealt = random.permutation(n)
    end = np.where(death[dealt] >= 0, lifetime[dealt], forever)

    # Scale the times of an object's other events with its lifetime; keep them before its end.
    rest = ~trace.dies & (trace.object >= 0)
    owner = trace.object[rest]
    end[owner] = np.maximum(end[owner], 1)
    age = (trace.clock[rest] - owner) * end[owner] // np.maximum(lifetime[owner], 1)
    age = np.minimum(age, end[owner] - 1)
    freed = (death[dealt] >= 0) & (birth + end < n)
    unowned = trace.object < 0
    return _merged(
        Timetable(birth, trace.birth, birth),
        Timetable(
            np.concatenate([owner + age, (birth + end)[freed], trace.clock[unowned]]),
            np.concatenate([trace.later[rest], death[dealt][freed], trace.later[unowned]]),
            np.concatenate([owner, birth[freed], trace.object[unowned]]),
        ),
    )


@jit
def cut(live, clock, swing, longest, phase):
    """Fill ``phase`` (births,) with phase numbers from 0.

    ``live`` (n,): bytes after each event; ``clock`` (n,): births so far.  A phase ends at the first
    birth after live bytes have changed by more than ``swing`` since its start, or after ``longest``
    births.
    """
    number = 0
    start = 0
    anchor = 0
    moved = False
    last = 0
    for i in range(live.shape[0]):
        birth = clock[i] - 1
        if birth >= last:  # this event is a birth
            if moved or birth - start >= longest:
                number += 1
                start = birth
                anchor = live[i - 1]
                moved = False
            phase[birth] = number
            last = birth + 1
        if abs(live[i] - anchor) > swing:
            moved = True


def _spread(times: float, n: int, random: Random) -> np.ndarray:
    """Return ``n`` integers >= 1, (n,) int64, whose running mean stays close to ``times``."""
    offset = float(random.below(1, 1 << 32)[0]) / (1 << 32)
    return np.maximum(np.diff(np.floor(np.arange(n + 1) * times + offset)).astype("i8"), 1)


def _repeat(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each index i repeated ``times[i]`` times, and the number of each repetition."""
    row = np.repeat(np.arange(len(times)), times)
    return row, np.arange(len(row)) - (np.cumsum(times) - times)[row]


def _merged(births: Timetable, others: Timetable) -> Timetable:
    """Merge both by tick; at equal ticks the birth is first, the rest in the order of the trace."""
    tick, event, object_ = (np.concatenate(pair) for pair in zip(births, others, strict=True))
    rank = np.where(np.arange(len(tick)) < len(births.tick), 0, event + 1)
    order = np.argsort(tick * (int(rank.max(initial=0)) + 1) + rank, kind="stable")
    return Timetable(tick[order], event[order], object_[order])


def _delayed(births: Timetable, others: Timetable) -> Timetable:
    """Delay events in ``others`` so that the events of each object keep their order."""
    owned = np.flatnonzero(others.object >= 0)
    order = owned[np.lexsort((others.event[owned], others.object[owned]))]
    tick, object_ = others.tick[order], others.object[order]
    tick = np.maximum(tick, births.tick[object_])  # births are in order of their objects
    span = int(tick.max(initial=0)) + 1
    others.tick[order] = np.maximum.accumulate(object_ * span + tick) - object_ * span
    return others


def apply_schedule(events: Events, trace: Lives, schedule: Timetable) -> Events:
    """Return the events of ``schedule``, without times, which have lost their meaning."""
    n = len(events.op)
    event, object_ = _place_thread_ends(events, schedule)
    born, dies = np.zeros(n, bool), np.zeros(n, bool)
    born[trace.birth] = True
    dies[trace.later[trace.dies]] = True
    born, dies = born[event], dies[event]
    slot = slots_in_turn(object_, born, dies)
    columns = {
        name: values[event]
        for name, values in events._asdict().items()
        if len(values) == n and name != "time"
    }
    return make_events(**columns | {"slot": slot})


def _place_thread_ends(events: Events, schedule: Timetable) -> tuple[np.ndarray, np.ndarray]:
    """Return events and objects of ``schedule``, with one end per thread, after its last event."""
    ends = np.flatnonzero(events.op == THREAD_END)
    kept = events.op[schedule.event] != THREAD_END
    event, object_ = schedule.event[kept], schedule.object[kept]
    thread = column(events, "thread")
    ending, first = np.unique(thread[ends], return_index=True)
    acting, behind = np.unique(thread[event][::-1], return_index=True)
    after = dict(zip(acting.tolist(), (len(event) - behind).tolist(), strict=True))
    place = [after.get(t, len(event)) for t in ending.tolist()]
    return np.insert(event, place, ends[first]), np.insert(object_, place, -1)
