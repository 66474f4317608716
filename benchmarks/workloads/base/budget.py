"""Shared parts of address-dependent programs: blocks in slots, within a budget of live bytes.

An address-dependent program works in rounds.  In each round it first frees blocks that it chooses
by their addresses, then allocates blocks of the round's size until the budget is used up.

The request for a block of ``bytes`` is ``overhead`` bytes smaller, so that an allocator with
headers or boundary tags of that size places blocks without gaps.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import size
from benchmarks.events.events import FREE, MALLOC
from kernel.engine.jit import jit
from kernel.engine.record import record

BUDGET = size(1 << 20, low=64, high=1 << 30, text="largest total of live blocks, bytes")

#: Fields of every program's record; all int64.
_FIELDS = (
    "op",  # op to offset: the next event, read by the replay loop
    "slot",
    "request",
    "align",
    "offset",
    "budget",  # bytes, from the settings
    "overhead",
    "slots",
    "level",  # number of the round
    "freeing",  # 1 while the round frees, 0 while it allocates
    "cursor",  # next index to examine, for a block to free or for an empty slot
    "occupied",  # bytes of the budget in use
    "pending",  # slot whose address the next call passes, or -1
)


def check(s: SimpleNamespace, doublings: int) -> None:
    """Raise ValueError unless the unit exceeds the overhead and the budget fits the last block."""
    if s.overhead >= s.unit:
        raise ValueError(f"overhead={s.overhead}: must be less than unit={s.unit}")
    if s.unit << doublings > s.budget:
        raise ValueError(f"budget={s.budget}: the last round's block takes {s.unit << doublings}")


def slots(s: SimpleNamespace) -> int:
    """Return the number of slots: the units in the budget bound the number of live blocks."""
    return s.budget // s.unit


def program(s: SimpleNamespace, more: dict[str, tuple[int, ...]]) -> np.record:
    """Return the generator's initial record, with additional fields ``more`` (shapes by name)."""
    of_slots = {"address": (slots(s),), "bytes": (slots(s),)}  # of each slot's block; 0: empty
    shapes = dict.fromkeys(_FIELDS, ()) | of_slots | more
    g = record(np.dtype([(name, "i8", shape) for name, shape in shapes.items()]))
    g.budget, g.overhead, g.slots, g.pending = s.budget, s.overhead, slots(s), -1
    return g


@jit
def note(g, last):
    """Store the address ``last`` of the block just requested; return False if it is NULL."""
    if g.pending >= 0:
        if last == 0:
            return False
        g.address[g.pending] = last
        g.pending = -1
    return True


@jit
def release(g, slot):
    """Make the next event the free of the block in ``slot``."""
    g.occupied -= g.bytes[slot]
    g.address[slot] = 0
    g.op = FREE
    g.slot = slot
    g.request = 0


@jit
def allocate(g, bytes_):
    """Make the next event an allocation of ``bytes_``; return False if it exceeds the budget."""
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
