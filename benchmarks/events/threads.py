"""Thread numbers of a replay: those of threads that ended are used again, so that few suffice.

    trace     0   1 … 4095   1 ends   4096 …
    replay    0   1 … 4095   1 ends      1 …

An allocator's tables have room for a fixed number of threads.  The limit applies to the threads
that are alive at once: a thread is alive from its first event to its THREAD_END.  A thread keeps
its number if that is below the limit and no other thread has it; otherwise it gets the lowest free
one above 0, the main thread's.  So nothing changes in a trace whose numbers are below the limit.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.events.events import THREAD_END, Events, read_only, rows
from kernel.engine.jit import build_once, jit


class ThreadError(ValueError):
    """Event of a thread that cannot be numbered; the message names the event."""


@jit
def assign(op, thread, original, number, holder):
    """Replace (n,) ``thread``, indices into ``original``, by thread numbers.

    ``original``, ``number`` (threads,): a thread's number in the trace, and in the replay (-1 for
    none).  ``holder`` (limit,): trace's number + 1 of the thread that has a number, 0 for nobody.
    Returns the index of the first event for whose thread no number is free, else -1.
    """
    limit = holder.shape[0]
    lowest = 1  # no number below it is free, except 0
    for i in range(op.shape[0]):
        t = int(thread[i])
        m = int(number[t])
        if m < 0:
            m = int(original[t])
            if m >= limit or holder[m] != 0:
                while lowest < limit and holder[lowest] != 0:
                    lowest += 1
                if lowest == limit:
                    return i
                m = lowest
            holder[m] = original[t] + 1
            number[t] = m
        thread[i] = m
        if op[i] == THREAD_END:
            holder[m] = 0
            number[t] = -1
            if 0 < m < lowest:
                lowest = m
    return -1


class ThreadNumbers:
    """Mapping of a trace's threads to numbers below ``limit``, over successive pieces."""

    def __init__(self, limit: int) -> None:
        self._holder = np.zeros(limit, "i8")
        self._events = 0

    def of(self, events: Events) -> Events:
        """Return the next piece with the replay's thread numbers.

        Raises ThreadError, with the number of the event, for a negative thread or if more threads
        than the limit are alive at once.
        """
        first, self._events = self._events, self._events + len(events.op)
        if not len(events.thread):
            return events
        if events.thread.min() < 0:
            i = int(np.argmax(events.thread < 0))
            raise ThreadError(f"event {first + i}: thread {events.thread[i]}: expected 0 or more")
        limit, held = len(self._holder), np.flatnonzero(self._holder)
        if events.thread.max() < limit and (self._holder[held] == held + 1).all():
            self._keep(events)
            return events
        original, thread = np.unique(events.thread, return_inverse=True)
        known = {int(self._holder[m]) - 1: m for m in held}
        number = np.array([known.get(t, -1) for t in original.tolist()], "i8")
        wrong = build_once(assign)(
            np.ascontiguousarray(events.op), thread, original, number, self._holder
        )
        if wrong >= 0:
            raise ThreadError(
                f"event {first + wrong}: more than {limit} threads are alive at once, the "
                "limit of a replay; a thread is alive from its first event to its thread_end"
            )
        return read_only(events._replace(thread=thread.astype("i4")))

    def _keep(self, events: Events) -> None:
        """Note which threads are alive after a piece in which each keeps its number."""
        last = np.full(len(self._holder), -1)
        last[events.thread] = np.arange(len(events.op))
        seen = np.flatnonzero(last >= 0)
        self._holder[seen] = np.where(events.op[last[seen]] == THREAD_END, 0, seen + 1)


def lives(events: Events) -> Iterator[Events]:
    """Yield consecutive parts of ``events`` in which no thread has events after its end."""
    begin, ended = 0, set()
    if len(events.thread) and (events.op == THREAD_END).any():
        ends = (events.op == THREAD_END).tolist()
        for i, thread in enumerate(events.thread.tolist()):
            if thread in ended:
                yield rows(events, begin, i)
                begin, ended = i, set()
            if ends[i]:
                ended.add(thread)
    yield rows(events, begin, len(events.op))
