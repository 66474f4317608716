"""Synth: a program like a recorded one, but longer or larger: workload=synth workload.path=FILE.

    phases   |‒‒‒‒‒‒‒‒‒‒‒ 0 ‒‒‒‒‒‒‒‒‒‒‒|‒‒‒‒‒‒‒‒ 1 ‒‒‒‒‒‒‒‒|‒ 2 ‒|‒‒‒ 3     keep their order
    blocks    a b c d e f g h i j k l m n o p q r s t u v w x y z         of ``block`` births
    drawn     d h a k c … b             p v n m … q         x w           in random order in a phase

Time is counted in births (allocations).  A phase is a run of births in which live bytes stay within
SWING percent of the peak of where they began, or a part of one.  It is cut into blocks of
consecutive births, and these come again in random order with all that they say: kind, size,
alignment, thread.  What becomes of an object in the phase of its birth (realloc, touch, free) comes
at the same age again, so size and lifetime keep their joint distribution in every phase.  What
becomes of it in a later phase comes with the block that saw it: what died together does so again.

    longer=L    L times as many events at the same live bytes: what outlives its phase is not born
                more often, so what lives within one comes that much more than L times as often
    larger=R    R times as many objects live at every moment, each for R times as many births
    shuffle     the lifetimes of all objects are dealt out anew, whatever their size and phase: the
                null model, in which sizes, order of births and lifetimes are true each by itself

A thread ends once, after all else that it does.

Blocks of one birth keep nothing of the order in which a program allocates; the longer they are, the
more of it.  An allocator that frees whole regions (arena) needs blocks of some hundreds, others
are served by 16.  Measured on the shipped traces: analysis.fig_synth.

Sources: the block bootstrap, H. Künsch, "The jackknife and the bootstrap for general stationary
observations", 1989; synthetic programs held against real ones by what allocators make of them,
B. Zorn, D. Grunwald, "Evaluating models of memory allocation", 1994.
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

#: Percent of the peak by which live bytes move within a phase, and phases at least.
SWING = 5
PHASES = 16

_MOST_EVENTS = 1 << 31


class Factor(Setting):
    """A number from 1 with three decimals; its integer is thousandths."""

    def parse(self, name: str, value: object) -> int:
        """Return ``value`` in thousandths.  Raises ValueError with what is allowed."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name}={value}: expected a number")
        if not self.low <= 1000 * value <= self.high:
            raise ValueError(f"{name}={value}: must be {self.low // 1000} to {self.high // 1000}")
        return round(1000 * value)

    def spell(self, value: int) -> object:
        """Return thousandths as a user writes the number."""
        return value / 1000


PATH = path()
STRICT = choice("false", "true", default="true", text="impossible events are errors, else dropped")
LONGER = Factor(1000, 1000, 1_000_000, text="times as many events")
LARGER = Factor(1000, 1000, 1_000_000, text="times as many live objects")
BLOCK = number(64, low=1, high=1 << 30, text="births that keep their order")
SHUFFLE = choice("false", "true", text="lifetimes are dealt out anew: the null model")


def check_settings(s: SimpleNamespace) -> None:
    """The file is there and of a known format."""
    recognise(Path(s.path))


def read(
    s: SimpleNamespace, progress: Callable[[float, str], None] | None
) -> tuple[Events, dict[str, Any]]:
    """Read the trace and make another of it.  Raises TraceError (a ValueError)."""
    events, provenance = load(Path(s.path), bool(s.strict), progress)
    longer, larger, random = s.longer / 1000, s.larger / 1000, Random(s.seed)
    if len(events.op) * longer * larger > _MOST_EVENTS:
        raise ValueError(f"longer={longer}, larger={larger}: more than {_MOST_EVENTS} events")
    trace = lives(events)
    if not len(trace.birth):
        raise ValueError(f"{s.path}: allocates nothing")
    phases = int(trace.phase[-1]) + 1
    if progress:
        progress(0.5, "drawing objects")
    events = performed(events, trace, drawn(trace, longer, larger, s.block, random))
    if s.shuffle:
        trace = lives(events)
        events = performed(events, trace, shuffled(trace, random))
    return events, {"trace": provenance, "phases": phases}


class Lives(NamedTuple):
    """The objects of a trace, numbered by their births, and what happens to them.

    ``birth`` (objects,) int64: event that allocated each.  ``later`` (m,) int64: all other events,
    in order.  ``object`` (m,) int64: whom each is about, -1 for nobody.  ``clock`` (m,) int64:
    number of the birth before it, -1 at the start.  ``dies`` (m,) bool: it frees its object.
    ``phase`` (objects,) int64: of each birth, rising.
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
    """When what happens again: ``tick``, ``event`` of the trace and ``object``, each (n,) int64.

    A tick is the time of a birth; objects have numbers of their own, -1 is nobody.
    """

    tick: np.ndarray
    event: np.ndarray
    object: np.ndarray


def drawn(
    trace: Lives, longer: float, larger: float, births_of_block: int, random: Random
) -> Timetable:
    """Draw the blocks of each phase, for ``longer`` times ``larger`` times the events."""
    n = len(trace.birth)
    phase = trace.phase
    within = np.arange(n) - np.searchsorted(phase, phase)
    begin = np.append(np.flatnonzero(within % births_of_block == 0), n)  # of each block
    block = np.searchsorted(begin, np.arange(n), side="right") - 1

    # Lasting is what has events in a later phase than its birth's, or is never freed.
    owned = trace.object >= 0
    owner = np.maximum(trace.object, 0)
    place = np.maximum(trace.clock, 0)  # the birth after which each other event comes
    inside = owned & (phase[owner] == phase[place])
    lasting = np.ones(n, bool)
    lasting[trace.object[trace.dies]] = False
    lasting[trace.object[owned & ~inside]] = True

    # Copies of each block, and how many of them bear its lasting objects; copies of each object.
    # Lasting objects come ``larger`` times with all their events, so the rest makes up for them.
    blocks = len(begin) - 1
    fixed = int(np.count_nonzero(lasting)) + int(np.count_nonzero(owned & lasting[owner]))
    others = n + len(trace.object) - fixed
    often = longer + (longer - 1) * fixed / others if others else longer
    copies = _spread(often * larger, blocks, random)
    bearing = np.minimum(_spread(larger, blocks, random), copies)
    copies_of = np.where(lasting, bearing[block], copies[block])

    # Draws of the same phase come in random order, one after the other.
    first = np.cumsum(copies) - copies  # number of the draw that is a block's first copy
    draws = np.repeat(np.arange(blocks), copies)
    order = np.lexsort((random.bits(len(draws)), phase[begin[draws]]))
    length = np.diff(begin)[draws]
    tick = np.empty(len(draws), "i8")
    tick[order] = np.cumsum(length[order]) - length[order]

    def position(birth: np.ndarray, copy: np.ndarray) -> np.ndarray:
        """Tick of copy ``copy`` of ``birth``."""
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
    return _joined(births, _waiting(births, later))


def shuffled(trace: Lives, random: Random) -> Timetable:
    """Give every object the lifetime of another: the null model."""
    n = len(trace.birth)
    birth = np.arange(n)
    forever = n - birth  # what is not freed lives to the end
    lifetime, death = forever.copy(), np.full(n, -1)
    mortal = trace.object[trace.dies]
    lifetime[mortal] = (trace.clock - trace.object)[trace.dies]
    death[mortal] = trace.later[trace.dies]
    dealt = random.permutation(n)
    end = np.where(death[dealt] >= 0, lifetime[dealt], forever)

    # Other events of an object keep their place in its life, in proportion, and before its end.
    rest = ~trace.dies & (trace.object >= 0)
    owner = trace.object[rest]
    end[owner] = np.maximum(end[owner], 1)
    age = (trace.clock[rest] - owner) * end[owner] // np.maximum(lifetime[owner], 1)
    age = np.minimum(age, end[owner] - 1)
    freed = (death[dealt] >= 0) & (birth + end < n)
    nobody = trace.object < 0
    return _joined(
        Timetable(birth, trace.birth, birth),
        Timetable(
            np.concatenate([owner + age, (birth + end)[freed], trace.clock[nobody]]),
            np.concatenate([trace.later[rest], death[dealt][freed], trace.later[nobody]]),
            np.concatenate([owner, birth[freed], trace.object[nobody]]),
        ),
    )


@jit
def cut(live, clock, swing, longest, phase):
    """Fill ``phase`` (births,) with numbers of phases from 0.

    ``live`` (n,) bytes after each event, ``clock`` (n,) births so far.  A phase ends at the first
    birth after live has moved by more than ``swing`` bytes since its start, or after ``longest``.
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
    """``n`` whole numbers, (n,) int64, at least 1, whose running mean is ``times`` all along."""
    offset = float(random.below(1, 1 << 32)[0]) / (1 << 32)
    return np.maximum(np.diff(np.floor(np.arange(n + 1) * times + offset)).astype("i8"), 1)


def _repeat(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of the numbers 0, 1, … as often as ``times`` says, and which time it is."""
    row = np.repeat(np.arange(len(times)), times)
    return row, np.arange(len(row)) - (np.cumsum(times) - times)[row]


def _joined(births: Timetable, others: Timetable) -> Timetable:
    """All of both in order of their ticks; at a tick its birth first, the rest as in the trace."""
    tick, event, object_ = (np.concatenate(pair) for pair in zip(births, others, strict=True))
    rank = np.where(np.arange(len(tick)) < len(births.tick), 0, event + 1)
    order = np.argsort(tick * (int(rank.max(initial=0)) + 1) + rank, kind="stable")
    return Timetable(tick[order], event[order], object_[order])


def _waiting(births: Timetable, others: Timetable) -> Timetable:
    """``others`` with what comes before an earlier event of its object put off until that."""
    owned = np.flatnonzero(others.object >= 0)
    order = owned[np.lexsort((others.event[owned], others.object[owned]))]
    tick, object_ = others.tick[order], others.object[order]
    tick = np.maximum(tick, births.tick[object_])  # births are in order of their objects
    span = int(tick.max(initial=0)) + 1
    others.tick[order] = np.maximum.accumulate(object_ * span + tick) - object_ * span
    return others


def performed(events: Events, trace: Lives, schedule: Timetable) -> Events:
    """The events that ``schedule`` says; times have no meaning any more and are left out."""
    n = len(events.op)
    event, object_ = _ended(events, schedule)
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


def _ended(events: Events, schedule: Timetable) -> tuple[np.ndarray, np.ndarray]:
    """Events and objects of ``schedule``, each thread's end once and after its last event."""
    ends = np.flatnonzero(events.op == THREAD_END)
    kept = events.op[schedule.event] != THREAD_END
    event, object_ = schedule.event[kept], schedule.object[kept]
    thread = column(events, "thread")
    ending, first = np.unique(thread[ends], return_index=True)
    acting, behind = np.unique(thread[event][::-1], return_index=True)
    after = dict(zip(acting.tolist(), (len(event) - behind).tolist(), strict=True))
    place = [after.get(t, len(event)) for t in ending.tolist()]
    return np.insert(event, place, ends[first]), np.insert(object_, place, -1)
