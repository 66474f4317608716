"""Building blocks of generated workloads.

A piece is a run of events with columns op, slot and size; pieces are concatenated.  For interleaved
threads it is easier to specify the times of allocation and free of each object (:func:`lives`), or
the thread of each event (:func:`take_turns`).
"""

import numpy as np

from benchmarks.events.events import FREE, MALLOC, TOUCH_WRITE, Events, make_events

#: Columns op (u1), slot (i4) and size (i8) of a run of events.
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
#: Time of death of an object that is never freed; later than any other time.
NEVER = 1 << 62


def allocate(slots: np.ndarray, sizes: np.ndarray) -> Piece:
    """Return n events: malloc of ``sizes`` bytes into ``slots``, both (n,)."""
    return np.full(len(slots), MALLOC, "u1"), slots.astype("i4"), sizes.astype("i8", copy=False)


def release(slots: np.ndarray) -> Piece:
    """Return n events: free of ``slots``, (n,)."""
    return np.full(len(slots), FREE, "u1"), slots.astype("i4"), np.zeros(len(slots), "i8")


def replace(slots: np.ndarray, sizes: np.ndarray) -> Piece:
    """Return 2 n events: free, then malloc of ``sizes`` bytes, for each of ``slots``, (n,)."""
    op = np.empty(2 * len(slots), "u1")
    op[0::2] = FREE
    op[1::2] = MALLOC
    size = np.zeros(2 * len(slots), "i8")
    size[1::2] = sizes
    return op, np.repeat(slots.astype("i4"), 2), size


def join(*pieces: Piece, operations: int | None = None) -> Events:
    """Concatenate the pieces to Events, truncated to ``operations`` events."""
    op, slot, size = (np.concatenate(columns)[:operations] for columns in zip(*pieces, strict=True))
    return make_events(op, slot, size)


def require_operations(operations: int, least: int, what: str) -> None:
    """Raise ValueError if ``operations`` is below ``least``; ``what`` says what they are for."""
    if operations < least:
        raise ValueError(f"operations={operations}: must be at least {least}, {what}")


def take_turns(events: int, threads: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each event's thread, and its number within that thread, (events,) int64 each.

    Threads run round-robin in turns of ``turn`` events, as on one processor.
    """
    chunk, step = np.divmod(np.arange(events), turn)
    lap, thread = np.divmod(chunk, threads)
    return thread, lap * turn + step


def moment(thread: np.ndarray, number: np.ndarray, threads: int, turn: int) -> np.ndarray:
    """Return the global position of event ``number`` of ``thread``: inverse of take_turns."""
    lap, step = np.divmod(number, turn)
    return (lap * threads + thread) * turn + step


def lives(
    born: np.ndarray,
    died: np.ndarray,
    size: np.ndarray,
    *,
    threads: tuple[np.ndarray, np.ndarray] | None = None,
    operations: int | None = None,
) -> Events:
    """Return the events of objects allocated at ``born`` and freed at ``died``, (n,) each.

    Times are numbers of any one type.  At equal times allocations precede frees, each in the order
    of objects.  ``died`` >= NEVER: never freed.  ``threads``: allocating and freeing thread of each
    object, (n,) each.  The result is truncated to ``operations`` events.
    """
    n = len(born)
    mortal = np.flatnonzero(died < NEVER)
    order = np.argsort(np.concatenate([born, died[mortal]]), kind="stable")[:operations]
    births = order < n
    who = np.concatenate([np.arange(n), mortal])[order]
    columns = {"op": np.where(births, MALLOC, FREE), "size": np.where(births, size[who], 0)}
    columns["slot"] = slots_in_turn(who, births, ~births)
    if threads is not None:
        columns["thread"] = np.where(births, threads[0][who], threads[1][who])
    return make_events(**columns)


def slots_in_turn(who: np.ndarray, births: np.ndarray, deaths: np.ndarray) -> np.ndarray:
    """Return a slot for each event, (n,) int32, with as few slots as possible, reused FIFO.

    ``who`` (n,): object of each event, numbered from 0; -1 for an event without object, whose slot
    is -1.  ``births``, ``deaths`` (n,) bool: each object has one birth and at most one death.

    Birth m takes the slot that death m - slots emptied.  That slot belongs to an earlier birth, and
    so on back to one of the first births.  Pointer doubling resolves all these chains at once.
    """
    live = np.cumsum(births.astype("i8") - deaths)
    slots = int(live.max(initial=0))
    born, dead = who[births], who[deaths]
    rank = np.full(int(who.max(initial=-1)) + 2, -1, "i4")  # the last is for who == -1
    rank[born] = np.arange(len(born))
    slot = np.arange(len(born) + 1, dtype="i4")
    slot[-1] = -1
    slot[slots:-1] = rank[dead[: max(len(born) - slots, 0)]]
    while (slot >= slots).any():
        slot = slot[slot]
    return slot[rank[who]]


def previous(group: np.ndarray) -> np.ndarray:
    """Return the index of the previous row with the same ``group``, (n,) int64; -1 if none."""
    order = np.argsort(group, kind="stable")
    same = group[order[1:]] == group[order[:-1]]
    before = np.full(len(group), -1)
    before[order[1:]] = np.where(same, order[:-1], -1)
    return before


def write_over(operations: int, threads: int, size: int, writes: int, *, handed: bool) -> Events:
    """Return events of threads that allocate a block, write it ``writes`` times and free it.

    Blocks have ``size`` bytes.  Threads take turns event by event.  ``handed``: thread 0 first
    allocates a block for each of ``threads`` other threads, and these free it before anything else.
    ``operations`` does not include touches.
    """
    given = threads if handed else 0
    own = operations - 2 * given
    life = writes + 2
    turns = -(-own // (2 * threads)) * life * threads
    thread, step = take_turns(turns, threads, 1)
    step %= life
    op = np.where(step == 0, MALLOC, np.where(step == life - 1, FREE, TOUCH_WRITE))
    # Cut after the last of ``operations``.
    counted = np.cumsum(op != TOUCH_WRITE)
    kept = int(np.searchsorted(counted, own, side="left")) + 1 if own else 0
    op, thread = op[:kept], thread[:kept]
    hand, everyone = np.arange(given), np.arange(given) % max(threads, 1)
    columns = {
        "op": np.concatenate([np.full(given, MALLOC), np.full(given, FREE), op]),
        "slot": np.concatenate([hand, hand, thread]),
        "thread": np.concatenate([np.zeros(given, "i8"), everyone + 1, thread + bool(given)]),
    }
    columns["size"] = np.where(columns["op"] == FREE, 0, size)
    return make_events(**columns)
