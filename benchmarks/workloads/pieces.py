"""Pieces that generated workloads are put together from: columns op, slot and size."""

import numpy as np

from benchmarks.events import FREE, MALLOC, Events, make_events

#: Columns op (u1), slot (i4) and size (i8) of a run of events.
Piece = tuple[np.ndarray, np.ndarray, np.ndarray]


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
