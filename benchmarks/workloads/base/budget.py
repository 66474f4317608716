"""What programs that see addresses share: blocks in slots, within a budget of live bytes.

Such a program works in rounds.  In each it first frees blocks that it chooses by their addresses,
then allocates blocks of the round's size until the budget is spent.

A block of ``bytes`` is asked for ``overhead`` bytes smaller, so that an allocator with headers or
tags of that size places blocks without gaps.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import size
from benchmarks.events.events import FREE, MALLOC
from kernel.engine.jit import jit
from kernel.engine.record import record

BUDGET = size(1 << 20, low=64, high=1 << 30, text="bytes that its live blocks occupy at most")

#: Of every such program's record; all int64.
_FIELDS = (
    "op",  # the event: what the replay loop reads
    "slot",
    "request",
    "align",
    "offset",
    "budget",  # bytes, as the settings say
    "overhead",
    "slots",
    "level",  # number of the round
    "freeing",  # 1 while the round frees, 0 while it allocates
    "cursor",  # where it looks next, for a block to free or for an empty slot
    "occupied",  # bytes of the budget in use
    "pending",  # slot whose address comes with the next call, or -1
)


def check(s: SimpleNamespace, doublings: int) -> None:
    """Units are larger than the overhead, and the budget holds the last block."""
    if s.overhead >= s.unit:
        raise ValueError(f"overhead={s.overhead}: must be less than unit={s.unit}")
    if s.unit << doublings > s.budget:
        raise ValueError(f"budget={s.budget}: the last round's block takes {s.unit << doublings}")


def slots(s: SimpleNamespace) -> int:
    """No more blocks than units live at a time."""
    return s.budget // s.unit


def program(s: SimpleNamespace, more: dict[str, tuple[int, ...]]) -> np.record:
    """The generator's record at the start, with fields of its own, shapes by name."""
    of_slots = {"address": (slots(s),), "bytes": (slots(s),)}  # of each slot's block; 0 if none
    shapes = dict.fromkeys(_FIELDS, ()) | of_slots | more
    g = record(np.dtype([(name, "i8", shape) for name, shape in shapes.items()]))
    g.budget, g.overhead, g.slots, g.pending = s.budget, s.overhead, slots(s), -1
    return g


@jit
def note(g, last):
    """Take note of the address of the block asked for before; False: there is no memory."""
    if g.pending >= 0:
        if last == 0:
            return False
        g.address[g.pending] = last
        g.pending = -1
    return True


@jit
def release(g, slot):
    """The next event frees the block in ``slot``."""
    g.occupied -= g.bytes[slot]
    g.address[slot] = 0
    g.op = FREE
    g.slot = slot
    g.request = 0


@jit
def allocate(g, bytes_):
    """The next event allocates a block of ``bytes_``; False when the budget is spent."""
    if g.occupied + bytes_ > g.budget:
        return False
    while g.address[g.cursor] != 0:
        g.cursor += 1
    g.occupied += bytes_
    g.bytes[g.cursor] = bytes_
    g.pending = g.cursor
    g.op = MALLOC
    g.slot = g.cursor
    g.request = bytes_ - g.overhead
    return True
