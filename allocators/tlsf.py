"""TLSF: two-level segregated fit; every operation takes a bounded number of steps.

    alignment 16 · overhead 8 bytes a block · smallest block 32 (24 usable) · nothing is mapped; the
    pool grows by sbrk and shrinks by trim only · malloc and free O(1), also in the worst case

    control                       first                                                end
    │ fl │ sl[0] sl[1] … │ heads … │ tag │ payload … │ tag │ next │ prev │ … │ size │ … │ end tag │
      bit maps             lists     used              free

    tag: magic << 48 | bytes of the block | PREV_USED | USED                 payload at block + 8

Each list holds free blocks of similar sizes.  The first level splits sizes by powers of two, the
second level splits each power into 2**sli lists of equal width; sizes below 16 * 2**sli, for which
that width would be less than the alignment, have one list each.  Bit i of ``fl`` is set if
``sl[i]`` is not zero, bit j of ``sl[i]`` if list (i, j) is not empty: two scans for the lowest set
bit find the lowest non-empty list, independently of the number of free blocks.

malloc rounds the request up to the smallest size of the next list, so that the first block of any
list found fits ("good fit"): no list is ever searched.  The block is split, and the remainder goes
to the list of its size.  If no list fits, sbrk extends the last block of the heap.  free merges the
block at once with its free neighbours, found by tags as in allocators.first_fit.
If other code has moved the break, the end tag becomes a *fence*: the tag, without magic, of a used
block that reaches to the new part of the pool; otherwise the new part simply joins the old one.

Bound on loads and stores of metadata, counted on the worst branch of each function:

    list_remove 7    links 2, head 1, sl 2, fl 2 (the only block of its list and of its power)
    list_insert 8    head 2, links 2, sl 2, fl 2 (the first block of its list and of its power)
    claim      12    sl 1, fl 1, sl 1, head 1, the block's size 1, list_remove 7; or, if it grows:
                     sl 1, fl 1, end tag 1, last block's size 1, list_remove 7, new end tag 1
    carve      11    tag 1, the remainder's tag and size 2, list_insert 8
    give_block 27    tag 1; block before: size 1, list_remove 7; block after: tag 1, list_remove 7;
                     merged block: tag and size 2, list_insert 8

    malloc         23 = claim + carve                      (calloc: the same, plus the clearing)
    free           28 = tag 1 + give_block
    aligned_alloc  33 = claim + the gap's tag and size 2, list_insert 8 + carve
    realloc        55 = tag 1 + next tag 1 + refused growth 2 + malloc + free, if it moves; in place
                        at most 23; the copied bytes are payload and not counted

These sums are the constants MALLOC_STEPS etc. below.  They hold for every setting and include
growth; the kernel's work in sbrk is counted separately, as one system call (two if the first is
refused).

Invariants: blocks tile [first, end) and no two free blocks are adjacent; a free block is on the
list of its size; PREV_USED of a block = USED of the block before it; a bit is set exactly if its
list, or its second-level word, is not empty.
Masmano, Ripoll, Crespo and Real, "TLSF: a new dynamic memory allocator for real-time systems",
ECRTS 2004 (the structure, mapping and search); Masmano, Ripoll, Real, Crespo and Wellings,
"Implementation of a constant-time dynamic storage allocator", Software: Practice and Experience
38(10), 2008 (good fit, the bound).  Their header also holds the address of the block before; here a
free block repeats its size in its last word instead, which saves 8 bytes per used block.
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
    move,
)
from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from allocators.base.tags import (
    MAGIC,
    MAGIC_MASK,
    NEXT,
    PREV,
    PREV_USED,
    SIZE_MASK,
    TAG,
    USED,
    block_size,
    set_free,
    set_prev_used,
    used_tag,
)
from kernel.access import load, store
from kernel.brk import sbrk
from kernel.engine.bits import bit_length, trailing_zeros
from kernel.engine.jit import jit
from kernel.page import page_align

SLI = number(5, low=1, high=5, text="log2 of the lists per power of two (second-level index)")
SMALLEST = size_setting(
    32, low=32, high=4096, text="bytes of the smallest block, rounded up to a multiple of 16"
)
GROWTH = size_setting(
    128 << 10, low=0, high=1 << 40, text="bytes requested from the kernel beyond the need"
)

#: Upper bounds on the metadata loads and stores of one call, derived above.
MALLOC_STEPS, FREE_STEPS, ALIGNED_STEPS, REALLOC_STEPS = 23, 28, 33, 55

#: log2 of the unit of sizes, bytes.
UNIT_SHIFT = 4
#: log2, in units, of the largest power that has lists: no search is for more than 2 * MAX_REQUEST.
LAST_POWER = 43
#: Offsets in the control structure.
FL, SL = 0, 8

STATE = np.dtype(
    [
        ("control", "i8"),  # address of the control structure, 0 while there is none
        ("end", "i8"),  # end of the pool, just past its end tag; 0 while there is none
    ]
)
CHECKS = {
    1: "the blocks do not tile the heap up to its end",
    2: "a tag's PREV_USED disagrees with the block before it",
    3: "two free blocks are adjacent",
    4: "a free block's last word is not its size",
    5: "a list holds a used block, one of another size or no block",
    6: "a backward link of a list is broken",
    7: "the bit maps disagree with the lists",
    8: "the lists do not hold all free blocks",
    9: "control < end <= the break does not hold",
}


def promises(settings):
    """Promise to detect bad frees (by the tag) and to return an empty pool entirely in trim."""
    return Promises(double_free=True, wild_free=True, retains=0)


@jit
def init(k, a):
    """Do nothing: the first request makes the pool, since it can report a lack of memory."""


# --- Addresses and indices ------------------------------------------------------------------------


@jit(inline=True)
def powers():
    """Return the number of second-level words."""
    return LAST_POWER - SLI + 2


@jit(inline=True)
def sl_address(a, index):
    """Return the address of the second-level word of the list ``index``."""
    return a.control + SL + 8 * (index >> SLI)


@jit(inline=True)
def head_address(a, index):
    """Return the address of the head of the list ``index``."""
    return a.control + SL + 8 * (powers() + index)


@jit
def first_block(control):
    """Return the address of the first block after a control structure."""
    return align_up(control + SL + 8 * (powers() + (powers() << SLI)) + TAG, ALIGNMENT) - TAG


@jit(inline=True)
def smallest():
    """Return the size of the smallest block in bytes."""
    return align_up(SMALLEST, ALIGNMENT)


@jit(inline=True)
def block_for(size):
    """Return the size of the block for a request of ``size`` bytes."""
    return max(align_up(size + TAG, ALIGNMENT), smallest())


@jit(inline=True)
def list_of(size):
    """Return the index of the list for ``size`` bytes: first level << SLI | second level."""
    units = size >> UNIT_SHIFT
    shift = max(bit_length(units) - 1 - SLI, 0)
    return (shift << SLI) + (units >> shift)


@jit(inline=True)
def good_fit(need):
    """Round ``need`` bytes up to a size that is the smallest of its list."""
    shift = max(bit_length(need >> UNIT_SHIFT) - 1 - SLI, 0)
    return align_up(need, 1 << (shift + UNIT_SHIFT))


# --- The lists ------------------------------------------------------------------------------------


@jit
def list_insert(k, a, block, size):
    """Put a free block of ``size`` bytes at the front of the list of its size."""
    index = list_of(size)
    head = head_address(a, index)
    after = load(k, head)
    store(k, block + NEXT, after)
    store(k, block + PREV, 0)
    store(k, head, block)
    if after:
        store(k, after + PREV, block)
        return
    sl = load(k, sl_address(a, index))
    if sl == 0:
        store(k, a.control + FL, load(k, a.control + FL) | 1 << (index >> SLI))
    store(k, sl_address(a, index), sl | 1 << (index & ((1 << SLI) - 1)))


@jit
def list_remove(k, a, block, size):
    """Take a free block of ``size`` bytes off its list."""
    after = load(k, block + NEXT)
    before = load(k, block + PREV)
    if after:
        store(k, after + PREV, before)
    if before:
        store(k, before + NEXT, after)
        return
    index = list_of(size)
    store(k, head_address(a, index), after)
    if after == 0:
        sl = load(k, sl_address(a, index)) & ~(1 << (index & ((1 << SLI) - 1)))
        store(k, sl_address(a, index), sl)
        if sl == 0:
            store(k, a.control + FL, load(k, a.control + FL) & ~(1 << (index >> SLI)))


@jit
def find_fit(k, a, need):
    """Return the first block of the lowest non-empty list whose blocks all fit ``need``; 0 if none.

    Look at the remaining lists of the request's own power first, then at the powers above it.
    """
    if a.control == 0:
        return 0
    index = list_of(good_fit(need))
    fits = load(k, sl_address(a, index)) >> (index & ((1 << SLI) - 1))
    if fits:
        return load(k, head_address(a, index + trailing_zeros(fits)))
    fits = load(k, a.control + FL) >> (index >> SLI) >> 1
    if fits == 0:
        return 0
    index = ((index >> SLI) + 1 + trailing_zeros(fits)) << SLI
    index += trailing_zeros(load(k, sl_address(a, index)))
    return load(k, head_address(a, index))


# --- The end of the pool --------------------------------------------------------------------------


@jit(inline=True)
def end_tag(a):
    """Return the address of the end tag, which is marked used and has neither magic nor size."""
    return a.end - TAG


@jit
def last_free(k, a):
    """Return the free block just before the end tag, or the end tag if that block is used."""
    block = end_tag(a)
    if not load(k, block) & PREV_USED:
        block -= load(k, block - 8)
    return block


@jit
def set_end(k, a, end):
    """Move the pool's end to ``end`` and write the end tag; its PREV_USED is clear."""
    a.end = end
    store(k, end_tag(a), USED)


@jit(cold=True)
def grow(k, a, need):
    """Extend the pool so that a block of ``need`` bytes reaches to the end tag.

    Return that block, which is free and on no list, or 0 if the kernel refuses.  Memory adjacent to
    the pool joins its last free block; a fence separates other memory from the pool.
    """
    old = sbrk(k, 0)
    control = a.control
    last = 0
    if control == 0:
        control = align_up(old, ALIGNMENT)
        block = first_block(control)
    elif old > a.end:
        block = align_up(old + TAG, ALIGNMENT) - TAG
    else:
        last = last_free(k, a)
        block = last
    end = page_align(block + need + TAG)
    if end > a.end:
        if sbrk(k, end + page_align(GROWTH) - old) >= 0:
            end += page_align(GROWTH)
        elif sbrk(k, end - old) < 0:
            return 0
    if last == 0 and a.control:
        fence = load(k, end_tag(a)) & PREV_USED
        store(k, end_tag(a), block - end_tag(a) | fence | USED)
    elif last and last != end_tag(a):
        list_remove(k, a, last, end_tag(a) - last)
    a.control = control
    if end > a.end:
        set_end(k, a, end)
    return block


# --- Taking and giving blocks ---------------------------------------------------------------------


@jit
def claim(k, a, need):
    """Take a free block of ``need`` bytes or more off its list, or from the kernel.

    Return its address (0 when memory is exhausted) and its size in bytes.
    """
    block = find_fit(k, a, need)
    if block:
        size = block_size(k, block)
        list_remove(k, a, block, size)
        return block, size
    block = grow(k, a, need)
    return block, end_tag(a) - block


@jit
def carve(k, a, block, size, need, prev_used):
    """Use ``need`` of the ``size`` bytes at ``block``, or all if the rest is too small for a block.

    ``block`` is free and on no list.  ``prev_used``: PREV_USED or 0, for its tag.  The next block's
    PREV_USED is clear already.
    """
    rest = size - need
    if rest < smallest():
        store(k, block, MAGIC | size | prev_used | USED)
        set_prev_used(k, block + size)
        return
    store(k, block, MAGIC | need | prev_used | USED)
    set_free(k, block + need, rest)
    list_insert(k, a, block + need, rest)


@jit
def give_block(k, a, block, tag):
    """Free a used block with the tag ``tag`` and merge it with its free neighbours.

    The tag itself need not be in memory.
    """
    size = tag & SIZE_MASK
    if not tag & PREV_USED:
        # The tag survives the merge, so that a second free of this block is detected.
        store(k, block, tag & ~USED)
        more = load(k, block - 8)
        block -= more
        size += more
        list_remove(k, a, block, more)
    after = block + size
    tag = load(k, after)
    if tag & USED:
        store(k, after, tag & ~PREV_USED)
    else:
        list_remove(k, a, after, tag & SIZE_MASK)
        size += tag & SIZE_MASK
    set_free(k, block, size)
    list_insert(k, a, block, size)


@jit
def shrink_block(k, a, block, tag, need):
    """Cut a used block to ``need`` bytes and free the rest, if that is large enough for a block."""
    rest = (tag & SIZE_MASK) - need
    if rest >= smallest():
        store(k, block, tag - rest)
        give_block(k, a, block + need, rest | PREV_USED)


@jit
def extend_block(k, a, block, tag, need):
    """Grow a used block to ``need`` bytes into free space after it; return False if it fails.

    The space after the pool's end counts as free while the break is still there.
    """
    size = tag & SIZE_MASK
    after = block + size
    room = 0
    if after != end_tag(a):
        tag_after = load(k, after)
        if tag_after & USED:
            return False
        room = tag_after & SIZE_MASK
    if size + room >= need:
        list_remove(k, a, after, room)
    elif after + room != end_tag(a) or sbrk(k, 0) != a.end or grow(k, a, need - size) == 0:
        return False
    else:
        room = end_tag(a) - after
    carve(k, a, block, size + room, need, tag & PREV_USED)
    return True


# --- The contract ---------------------------------------------------------------------------------


@jit
def malloc(k, a, size):
    """Claim a free block and carve the request out of it."""
    if size > MAX_REQUEST:
        return 0
    need = block_for(size)
    block, found = claim(k, a, need)
    if block == 0:
        return 0
    carve(k, a, block, found, need, PREV_USED)
    return block + TAG


@jit
def free(k, a, p):
    """Free the block and merge it with its free neighbours."""
    give_block(k, a, p - TAG, used_tag(k, a, p))


@jit
def usable_size(k, a, p):
    """Return the bytes of the block after its tag."""
    return (used_tag(k, a, p) & SIZE_MASK) - TAG


@jit
def realloc(k, a, p, size):
    """Resize the block in place, else move it."""
    tag = used_tag(k, a, p)
    old = tag & SIZE_MASK
    if size <= MAX_REQUEST:
        need = block_for(size)
        if need <= old:
            shrink_block(k, a, p - TAG, tag, need)
            return p
        if extend_block(k, a, p - TAG, tag, need):
            return p
    return move(k, a, p, old - TAG, size)


@jit
def aligned_alloc(k, a, alignment, size):
    """Claim a block with room for the alignment; the gap before it becomes a free block."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    if size > MAX_REQUEST or alignment > MAX_REQUEST:
        return 0
    need = block_for(size)
    block, found = claim(k, a, need + alignment + smallest())
    if block == 0:
        return 0
    p = align_up(block + TAG, alignment)
    gap = p - TAG - block
    if 0 < gap < smallest():
        more = align_up(smallest() - gap, alignment)
        p += more
        gap += more
    if gap:
        set_free(k, block, gap)
        list_insert(k, a, block, gap)
    carve(k, a, p - TAG, found - gap, need, 0 if gap else PREV_USED)
    return p


@jit
def trim(k, a):
    """Return the pages of a free last block; if no block is used, the whole pool."""
    if a.control == 0 or sbrk(k, 0) != a.end:
        return
    block = last_free(k, a)
    if block == end_tag(a):
        return
    size = end_tag(a) - block
    list_remove(k, a, block, size)
    if block == first_block(a.control):
        # Nothing to reset: all words of an empty control structure are zero, as in fresh memory.
        if sbrk(k, a.control - a.end) >= 0:
            a.control = 0
            a.end = 0
            return
    else:
        end = page_align(block + smallest() + TAG)
        if end < a.end and sbrk(k, end - a.end) >= 0:
            set_end(k, a, end)
            size = end_tag(a) - block
    set_free(k, block, size)
    list_insert(k, a, block, size)


# --- Walk and check -------------------------------------------------------------------------------


@jit(inline=True)
def is_fence(tag):
    """Return True if a tag is a fence or the end tag."""
    return tag & MAGIC_MASK == 0


@jit
def walk(k, a, rows):
    """List the control structure, then the blocks in address order."""
    if a.control == 0:
        return 0
    block = first_block(a.control)
    n = emit(rows, 0, a.control, block - a.control, BLOCK_HEADER)
    while block < end_tag(a):
        tag = load(k, block)
        size = tag & SIZE_MASK
        if tag & USED:
            n = emit(rows, n, block, TAG, BLOCK_HEADER)
            if not is_fence(tag):
                n = emit(rows, n, block + TAG, size - TAG, BLOCK_USED)
        else:
            n = emit(rows, n, block, size, BLOCK_FREE)
        block += size
    return emit(rows, n, end_tag(a), TAG, BLOCK_HEADER)


@jit
def check_list(k, a, index):
    """Return the length of a list, or the negative CHECKS key of its first error."""
    count = 0
    before = 0
    block = load(k, head_address(a, index))
    while block:
        if not a.control < block < a.end:
            return -5
        tag = load(k, block)
        if tag & USED or list_of(tag & SIZE_MASK) != index:
            return -5
        if load(k, block + PREV) != before:
            return -6
        count += 1
        before = block
        block = load(k, block + NEXT)
    return count


@jit
def check_lists(k, a):
    """Return the number of blocks on all lists, or the negative CHECKS key of the first error.

    For sizes larger than the pool, only the bits are checked, not the heads.
    """
    count = 0
    largest = list_of(a.end - a.control) >> SLI
    for first in range(powers()):
        found = 0
        for second in range(1 << SLI if first <= largest else 0):
            listed = check_list(k, a, first << SLI | second)
            if listed < 0:
                return listed
            count += listed
            if listed:
                found |= 1 << second
        if load(k, sl_address(a, first << SLI)) != found:
            return -7
        if load(k, a.control + FL) >> first & 1 != (found != 0):
            return -7
    return count


@jit
def check(k, a):
    """Check bit maps against lists, lists against tags, and tags against their neighbours."""
    if a.control == 0 and a.end == 0:
        return 0
    if not 0 < a.control < a.end or a.end > sbrk(k, 0):
        return 9
    listed = check_lists(k, a)
    if listed < 0:
        return -listed
    prev_used = PREV_USED
    block = first_block(a.control)
    while block < end_tag(a):
        tag = load(k, block)
        size = tag & SIZE_MASK
        if size == 0 or tag & MAGIC_MASK not in (0, MAGIC):
            return 1
        if tag & PREV_USED != prev_used:
            return 2
        prev_used = PREV_USED
        if not tag & USED:
            if not tag & PREV_USED:
                return 3
            if load(k, block + size - 8) != size:
                return 4
            prev_used = 0
            listed -= 1
        block += size
    if block != end_tag(a) or load(k, block) & ~PREV_USED != USED:
        return 1
    if load(k, block) & PREV_USED != prev_used:
        return 2
    return 8 if listed else 0
