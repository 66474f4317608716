"""K&R: the textbook storage allocator, next fit on a ring of free blocks in address order.

    alignment 16 · overhead 16 bytes a block · smallest block 32 (16 usable) · never returns memory
    malloc: next fit, O(free blocks) · free: a search for the insertion point, O(free blocks)

    base                                                                      end (the break)
    │ next │ 0 ┃ next │ units │ (free) … ┃ - │ units │ payload … ┃ next │ units │ (free) … ┃
       └───────► ring: base and the free blocks, ascending, the last leads back to base

Sizes are counted in units of one header, and include the header.  malloc starts at ``freep``, where
the last search ended, and takes the upper end of the first block that is large enough.  free
inserts the block between the free blocks below and above it and merges it with those that are
adjacent; memory from the kernel also enters the ring through free.

Invariants: the blocks from base + 16 tile the heap to end; the ring ascends from base and no two of
its blocks are adjacent; freep is in the ring.
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

GROWTH = number(1024, low=1, high=1 << 26, text="minimum request to the kernel, units of 16 bytes")

#: Size of a header in bytes: the unit of all sizes.
UNIT = 16
NEXT, UNITS = 0, 8

STATE = np.dtype(
    [
        ("ring", "i8"),  # address of the ring's base, 0 before the first request
        ("freep", "i8"),  # free block (or base) before the one where the next search starts
        ("end", "i8"),  # end of the last block
    ]
)
CHECKS = {
    1: "the ring does not ascend",
    2: "two blocks of the ring are adjacent or overlap",
    3: "freep is not in the ring",
    4: "the blocks do not tile the heap",
    5: "the ring holds an address that is no block of the heap",
}


def promises(settings):
    """Promise to detect a double free (the block is inside a free one); return no memory."""
    return Promises(double_free=True)


@jit
def init(k, a):
    """Do nothing: the first request makes the ring, since it can report a lack of memory."""


@jit(inline=True)
def block_end(k, block):
    """Return the address just past a block."""
    return block + load(k, block + UNITS) * UNIT


@jit(inline=True)
def units_for(size):
    """Return the units of a block with a header and ``size`` bytes (at least one)."""
    return (max(size, 1) + UNIT - 1) // UNIT + 1


@jit(cold=True)
def make_ring(k, a):
    """Set up the base, an empty block that never fits or merges; return False if refused."""
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
    """Insert a block of fresh memory into the ring; return False if the kernel refuses."""
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
    """Take a block of ``units`` off the ring and return it; 0 when memory is exhausted."""
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
    """Return the ring's last block below ``block``; end the process if ``block`` is in the ring."""
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
    """Insert ``block`` into the ring, merged with adjacent free blocks."""
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
    """Return the payload of a block with at least ``size`` bytes; 0 when memory is exhausted."""
    if size > MAX_REQUEST:
        return 0
    block = take(k, a, units_for(size))
    return block + UNIT if block else 0


@jit
def free(k, a, p):
    """Return the block to the ring."""
    block = p - UNIT
    if p & (ALIGNMENT - 1) or not a.ring < block < a.end:
        abort(k, ABORT_BAD_POINTER, p)
    insert(k, a, block)


@jit
def usable_size(k, a, p):
    """Return the bytes of the block after its header."""
    return block_end(k, p - UNIT) - p


@jit
def cut(k, block, units):
    """Cut a used block after ``units``; return the second part, which is used as well."""
    rest = block + units * UNIT
    store(k, rest + UNITS, load(k, block + UNITS) - units)
    store(k, block + UNITS, units)
    return rest


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a block with room for the alignment and free what is left at both ends."""
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
    """List the blocks in address order; those on the ring are free."""
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
    """Check that the ring ascends, has no adjacent blocks and holds freep; 0 or a CHECKS key."""
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
    """Check that the ring is sound and that its blocks are among those that tile the heap."""
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
