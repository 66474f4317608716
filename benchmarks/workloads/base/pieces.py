"""What generated workloads are put together from.

Pieces are runs of events, columns op, slot and size, that follow one another.  Where events of
several threads mix, it is easier to say of each object when it is born and when it dies
(:func:`lives`), or which thread's turn each event is (:func:`take_turns`).
"""

import numpy as np

from benchmarks.events.events import FREE, MALLOC, TOUCH_WRITE, Events, make_events

#: Columns op (u1), slot (i4) and size (i8) of a run of events.
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
#: Time of death of an object that outlives the run; later than any other.
NEVER = 1 << 62


def allocate(slots: np.ndarray, sizes: np.ndarray) -> Piece:
    """malloc of ``sizes`` bytes into ``slots``, both (n,): n events."""
    return np.full(len(slots), MALLOC, "u1"), slots.astype("i4"), sizes.astype("i8", copy=False)


def release(slots: np.ndarray) -> Piece:
    """free of ``slots``, (n,): n events."""
    return np.full(len(slots), FREE, "u1"), slots.astype("i4"), np.zeros(len(slots), "i8")


def replace(slots: np.ndarray, sizes: np.ndarray) -> Piece:
    """free, then malloc, of each of ``slots``, (n,): 2 n events."""
    op = np.empty(2 * len(slots), "u1")
    op[0::2] = FREE
    op[1::2] = MALLOC
    size = np.zeros(2 * len(slots), "i8")
    size[1::2] = sizes
    return op, np.repeat(slots.astype("i4"), 2), size


def join(*pieces: Piece, operations: int | None = None) -> Events:
    """Events of the pieces one after the other, at most ``operations`` of them."""
    op, slot, size = (np.concatenate(columns)[:operations] for columns in zip(*pieces, strict=True))
    return make_events(op, slot, size)


def room(operations: int, least: int, what: str) -> None:
    """Raise ValueError unless ``operations`` suffice for ``least`` events, which are ``what``."""
    if operations < least:
        raise ValueError(f"operations={operations}: must be at least {least}, {what}")


def take_turns(events: int, threads: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Thread of each of ``events`` and its number among that thread's own, (events,) int64 each.

    Threads run in turns of ``turn`` events, as one processor would run them.
    """
    chunk, step = np.divmod(np.arange(events), turn)
    lap, thread = np.divmod(chunk, threads)
    return thread, lap * turn + step


def moment(thread: np.ndarray, number: np.ndarray, threads: int, turn: int) -> np.ndarray:
    """Where event ``number`` of ``thread`` stands among all: the inverse of :func:`take_turns`."""
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
    """Events of objects that are ``born`` and have ``died`` at these times, (n,) each.

    Times are any numbers of one kind; simultaneous events keep the order births, then deaths, each
    by object.  ``died`` of NEVER or above: no death.  ``threads``: who allocates and who frees,
    (n,) each.  At most ``operations`` events.
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
    """A slot for each event: as few as can be, the longest empty one first; (n,) int32.

    ``who`` (n,): object of each event, numbers from 0, or -1 for nobody, whose slot is -1.
    ``births``, ``deaths`` (n,) bool: each object has one birth and at most one death.

    Birth m takes the slot that death m - slots emptied, which belongs to an earlier birth, and so
    on back to one of the first births: found for all at once by doubling the steps.
    """
    live = np.cumsum(births.astype("i8") - deaths)
    slots = int(live.max(initial=0))
    born, dead = who[births], who[deaths]
    rank = np.full(int(who.max(initial=-1)) + 2, -1, "i4")  # the last is nobody's
    rank[born] = np.arange(len(born))
    slot = np.arange(len(born) + 1, dtype="i4")
    slot[-1] = -1
    slot[slots:-1] = rank[dead[: max(len(born) - slots, 0)]]
    while (slot >= slots).any():
        slot = slot[slot]
    return slot[rank[who]]


def previous(group: np.ndarray) -> np.ndarray:
    """Index of the row before each one that has the same ``group``, (n,) int64; -1: the first."""
    order = np.argsort(group, kind="stable")
    same = group[order[1:]] == group[order[:-1]]
    before = np.full(len(group), -1)
    before[order[1:]] = np.where(same, order[:-1], -1)
    return before


def write_over(operations: int, threads: int, size: int, writes: int, *, handed: bool) -> Events:
    """Each thread allocates a block of ``size`` bytes, writes it ``writes`` times and frees it.

    Threads take turns event by event.  ``handed``: thread 0 first allocates a block for each of the
    ``threads`` others, and they free those before anything else.  ``operations`` without touches.
    """
    given = threads if handed else 0
    own = operations - 2 * given
    life = writes + 2
    turns = -(-own // (2 * threads)) * life * threads
    thread, step = take_turns(turns, threads, 1)
    step %= life
    op = np.where(step == 0, MALLOC, np.where(step == life - 1, FREE, TOUCH_WRITE))
    # The last one ends with the operation that was asked for.
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
