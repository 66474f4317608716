"""K&R: the textbook's storage allocator, a ring of free blocks in order of address.

    alignment 16 · overhead 16 bytes a block · smallest block 32 (16 usable) · never returns memory
    malloc: next fit, O(free blocks) · free: a search for the place, O(free blocks)

    base                                                                      end (the break)
    │ next │ 0 ┃ next │ units │ (free) … ┃ - │ units │ payload … ┃ next │ units │ (free) … ┃
       └───────► ring: base and the free blocks, ascending, the last leads back to base

A block is counted in units of one header, itself included.  malloc starts at ``freep``, where the
last search ended, and takes the upper end of the first block that is large enough.  free inserts
the block between its free neighbours in address and merges it with those that touch it; memory
from the kernel enters through free as well.

Invariants: the blocks from base + 16 tile the heap to end; the ring ascends from base and no two of
its blocks touch; freep is in the ring.
Kernighan & Ritchie, "The C Programming Language", 2nd edition, 1988, section 8.7 (the algorithm;
aligned_alloc, the check for double frees and the smallest payload are not in the book).
"""

import numpy as np

from allocators.base.contract import (
    ALIGNMENT,
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    MAX_REQUEST,
    Promises,
    align_up,
    emit,
)
from allocators.base.settings import number
from kernel.access import load, store
from kernel.brk import sbrk
from kernel.engine.jit import jit
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE

GROWTH = number(1024, low=1, high=1 << 26, text="least units of 16 bytes asked from the kernel")

#: Bytes of a header, which is the unit of all sizes.
UNIT = 16
NEXT, UNITS = 0, 8

STATE = np.dtype(
    [
        ("ring", "i8"),  # address of the ring's base, 0 before the first request
        ("freep", "i8"),  # free block, or the base, at which the next search starts
        ("end", "i8"),  # end of the last block
    ]
)
CHECKS = {
    1: "the ring does not ascend",
    2: "two blocks of the ring touch or overlap",
    3: "freep is not in the ring",
    4: "the blocks do not tile the heap",
    5: "a block of the ring is none of the heap's blocks",
}


def promises(settings):
    """A block freed twice is found inside a free one; nothing is given back."""
    return Promises(double_free=True)


@jit
def init(k, a):
    """Leave the ring to the first request, which can report that memory is lacking."""


@jit(inline=True)
def block_end(k, block):
    """First byte behind a block."""
    return block + load(k, block + UNITS) * UNIT


@jit(inline=True)
def units_for(size):
    """Units of a block with a header and ``size`` bytes, at least one."""
    return (max(size, 1) + UNIT - 1) // UNIT + 1


@jit(cold=True)
def make_ring(k, a):
    """Set the base up, a block of no units that never fits or merges; False when refused."""
    ring = align_up(sbrk(k, 0), ALIGNMENT)
    if sbrk(k, ring + UNIT - sbrk(k, 0)) < 0:
        return False
    store(k, ring + NEXT, ring)
    store(k, ring + UNITS, 0)
    a.ring = ring
    a.freep = ring
    a.end = ring + UNIT
    return True


@jit(cold=True)
def more_core(k, a, units):
    """Free a block of fresh memory into the ring; False when the kernel refuses."""
    units = max(units, GROWTH)
    if sbrk(k, units * UNIT) < 0:
        return False
    block = a.end
    a.end += units * UNIT
    store(k, block + UNITS, units)
    insert(k, a, block)
    return True


@jit
def take(k, a, units):
    """Return a block of ``units``, off the ring; 0 when memory is exhausted."""
    if a.ring == 0 and not make_ring(k, a):
        return 0
    before = a.freep
    while True:
        block = load(k, before + NEXT)
        excess = load(k, block + UNITS) - units
        if excess >= 0:
            break
        before = block
        if block == a.freep:
            if not more_core(k, a, units):
                return 0
            before = a.freep
    if excess == 0:
        store(k, before + NEXT, load(k, block + NEXT))
    else:
        store(k, block + UNITS, excess)
        block += excess * UNIT
        store(k, block + UNITS, units)
    a.freep = before
    return block


@jit
def find_place(k, a, block):
    """Return the last of the ring below ``block``; end the process if ``block`` is in the ring."""
    before = a.freep
    while True:
        after = load(k, before + NEXT)
        if before < block and (block < after or after == a.ring):
            return before
        if before == block:
            abort(k, ABORT_DOUBLE_FREE, block + UNIT)
        before = after


@jit
def insert(k, a, block):
    """Put ``block`` into the ring, merged with the free blocks that touch it."""
    before = find_place(k, a, block)
    before_end = block_end(k, before)
    if block < before_end:
        abort(k, ABORT_DOUBLE_FREE, block + UNIT)
    after = load(k, before + NEXT)
    end = block_end(k, block)
    if end <= block or end > a.end or block < after < end:
        abort(k, ABORT_BAD_POINTER, block + UNIT)
    if end == after:
        end = block_end(k, after)
        after = load(k, after + NEXT)
    if before_end == block:
        block = before
    else:
        store(k, before + NEXT, block)
    store(k, block + UNITS, (end - block) // UNIT)
    store(k, block + NEXT, after)
    a.freep = before


@jit
def malloc(k, a, size):
    """Take a block of as many units as the header and ``size`` bytes need."""
    if size > MAX_REQUEST:
        return 0
    block = take(k, a, units_for(size))
    return block + UNIT if block else 0


@jit
def free(k, a, p):
    """Put the block back into the ring."""
    block = p - UNIT
    if p & (ALIGNMENT - 1) or not a.ring < block < a.end:
        abort(k, ABORT_BAD_POINTER, p)
    insert(k, a, block)


@jit
def usable_size(k, a, p):
    """All units but the header."""
    return block_end(k, p - UNIT) - p


@jit
def cut(k, block, units):
    """Make the first ``units`` of a used block a block of their own; returns the rest, used too."""
    rest = block + units * UNIT
    store(k, rest + UNITS, load(k, block + UNITS) - units)
    store(k, block + UNITS, units)
    return rest


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a block with room to move up to the alignment, and free what is left at both ends."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    if size > MAX_REQUEST or alignment > MAX_REQUEST:
        return 0
    units = units_for(size)
    block = take(k, a, units + alignment // UNIT)
    if block == 0:
        return 0
    p = align_up(block + UNIT, alignment)
    if p > block + UNIT:
        gap = block
        block = cut(k, gap, (p - UNIT - gap) // UNIT)
        insert(k, a, gap)
    if load(k, block + UNITS) > units:
        insert(k, a, cut(k, block, units))
    return p


@jit
def walk(k, a, rows):
    """Step from block to block, and along the ring to know the free ones."""
    if a.ring == 0:
        return 0
    n = emit(rows, 0, a.ring, UNIT, BLOCK_HEADER)
    block = a.ring + UNIT
    free_block = load(k, a.ring + NEXT)
    while block < a.end:
        end = block_end(k, block)
        if block == free_block:
            n = emit(rows, n, block, end - block, BLOCK_FREE)
            free_block = load(k, block + NEXT)
        else:
            n = emit(rows, n, block, UNIT, BLOCK_HEADER)
            n = emit(rows, n, block + UNIT, end - block - UNIT, BLOCK_USED)
        block = end
    return n


@jit
def check_ring(k, a):
    """The ring ascends, its blocks lie apart, and freep is among them."""
    seen = a.freep == a.ring
    before = a.ring
    block = load(k, before + NEXT)
    while block != a.ring:
        if block <= before:
            return 1
        if block_end(k, before) >= block:
            return 2
        seen = seen or block == a.freep
        before = block
        block = load(k, block + NEXT)
    return 0 if seen else 3


@jit
def check(k, a):
    """The ring is sound, and its blocks are among those that tile the heap."""
    if a.ring == 0:
        return 0
    code = check_ring(k, a)
    if code:
        return code
    free_block = load(k, a.ring + NEXT)
    block = a.ring + UNIT
    while block < a.end:
        if block == free_block:
            free_block = load(k, block + NEXT)
        end = block_end(k, block)
        if end <= block:
            return 4
        block = end
    if block != a.end:
        return 4
    return 0 if free_block == a.ring else 5
