"""Sequential fits with boundary tags: first, next, best or worst fit on one list of free blocks.

    alignment 16 · overhead 8 bytes a block · smallest block 32 (24 usable)
    requests above mmap_threshold are mapped · malloc: O(free blocks) · free: O(1), with
    order=address O(free blocks) unless a neighbour is free

    start                                                    top                     end (the break)
    │ tag │ payload …        │ tag │ next │ prev │ … │ size │ never part of the list ┤
      used                     free                           the last block before top is used

    tag: magic << 48 | bytes of the block | MAPPED | PREV_USED | USED        payload at block + 8

A free block repeats its size in its last word, and the tag behind it lacks PREV_USED: so free finds
both neighbours in constant time and merges with those that are free.  malloc searches the list,
takes the upper end of the block that ``fit`` chooses, and takes from the top what no block can
serve; the top grows by ``growth`` bytes more than needed and is given back, down to that, when it
reaches trim_threshold.  ``order`` says where a block enters the list: last, first, or by address.

Invariants: blocks tile [start, top) and none is free next to another or to top; the list holds
exactly the free ones; PREV_USED of a block = USED of the block before it; memory from the higher
of top and ``fresh`` on is as the kernel gave it.
Knuth, TAOCP 1, section 2.5, algorithms A and C (boundary tags, splitting from the end), exercise 6
(next fit); Wilson et al. 1995, section 3.4; the last word in free blocks only, and the top: Lea, "A
memory allocator", 1996.
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
from allocators.base.mapped import mapped_alloc, mapped_free, mapped_usable, mapped_walk
from allocators.base.settings import choice
from allocators.base.settings import size as size_setting
from allocators.base.tags import (
    MAGIC,
    MAGIC_MASK,
    MAPPED,
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
from kernel.access import clear, load, store
from kernel.brk import sbrk
from kernel.engine.jit import jit
from kernel.page import page_align

FIT = choice("first", "next", "best", "worst", text="which of the blocks that fit is taken")
ORDER = choice("fifo", "lifo", "address", text="order of the free list")
MMAP_THRESHOLD = size_setting(128 << 10, low=0, text="larger requests are mapped, bytes; 0: none")
GROWTH = size_setting(128 << 10, low=0, high=1 << 40, text="bytes asked beyond what is needed")
TRIM_THRESHOLD = size_setting(
    256 << 10, low=0, text="bytes of the top at which all but growth is given back; 0: never"
)

FIRST, NEXT_FIT, BEST, WORST = 0, 1, 2, 3
FIFO, LIFO, ADDRESS = 0, 1, 2

SMALLEST = 32

STATE = np.dtype(
    [
        ("start", "i8"),  # first block
        ("top", "i8"),  # where the next block from the top would be: 8 above a multiple of 16
        ("end", "i8"),  # the break
        ("fresh", "i8"),  # top may have been as high as this since its memory came
        ("first", "i8"),  # ends of the free list, 0 when it is empty
        ("last", "i8"),
        ("rover", "i8"),  # fit=next: free block at which the next search starts; 0: the first
        ("mapped", "i8"),  # first large object
    ]
)
CHECKS = {
    1: "the blocks do not tile the heap up to top",
    2: "a tag's PREV_USED is not what the block before says",
    3: "two free blocks touch, or one touches top",
    4: "a free block's last word is not its size",
    5: "the free list does not hold the free blocks",
    6: "the free list's backward link is broken",
    7: "the free list is not in order of address",
    8: "the rover is not on the free list",
    9: "start <= top, end <= the break does not hold",
}


def check_settings(s):
    """Trimming must leave what growth asks for, or each would undo the other."""
    if 0 < s["trim_threshold"] <= s["growth"]:
        raise ValueError(
            f"trim_threshold ({s['trim_threshold']}) must be above growth ({s['growth']}), or 0"
        )


def promises(settings):
    """Bad frees are seen by their tag; trim gives back the whole top."""
    return Promises(double_free=True, wild_free=True, retains=0)


@jit
def init(k, a):
    """Put the first block where its payload is aligned."""
    a.start = align_up(sbrk(k, 0), ALIGNMENT) + TAG
    a.top = a.start
    a.end = sbrk(k, 0)


# --- Blocks and their tags ------------------------------------------------------------------------


@jit(inline=True)
def block_for(size):
    """Bytes of a block for a request."""
    return max(align_up(size + TAG, ALIGNMENT), SMALLEST)


# --- The free list --------------------------------------------------------------------------------


@jit
def list_insert(k, a, block, before):
    """Enter ``block`` into the free list behind ``before``; 0: first."""
    after = load(k, before + NEXT) if before else a.first
    store(k, block + NEXT, after)
    store(k, block + PREV, before)
    if before:
        store(k, before + NEXT, block)
    else:
        a.first = block
    if after:
        store(k, after + PREV, block)
    else:
        a.last = block


@jit
def list_remove(k, a, block):
    """Take ``block`` off the free list."""
    after = load(k, block + NEXT)
    before = load(k, block + PREV)
    if before:
        store(k, before + NEXT, after)
    else:
        a.first = after
    if after:
        store(k, after + PREV, before)
    else:
        a.last = before
    if FIT == NEXT_FIT and a.rover == block:
        a.rover = after


@jit
def list_place(k, a, end):
    """The free block behind which one that ends at ``end`` belongs, by ``order``; 0: first.

    By address: one step up the list and one up the heap at a time, as either may be the shorter
    way to the next free block.
    """
    if ORDER == LIFO:
        return 0
    if ORDER == FIFO:
        return a.last
    before = 0
    after = a.first
    block = end
    while after and after < end:
        if block == a.top:
            return a.last
        tag = load(k, block)
        if not tag & USED:
            return load(k, block + PREV)
        block += tag & SIZE_MASK
        before = after
        after = load(k, after + NEXT)
    return before


@jit
def find_fit(k, a, need):
    """The free block that ``fit`` chooses of those with ``need`` bytes; 0 if there is none."""
    chosen = 0
    chosen_size = 0
    first = a.first
    if FIT == NEXT_FIT and a.rover:
        first = a.rover
    block = first
    while block:
        size = block_size(k, block)
        if size >= need:
            if FIT in (FIRST, NEXT_FIT) or (FIT == BEST and size == need):
                return block
            if chosen == 0 or (size < chosen_size if FIT == BEST else size > chosen_size):
                chosen = block
                chosen_size = size
        block = load(k, block + NEXT)
        if FIT == NEXT_FIT:
            if block == 0:
                block = a.first
            if block == first:
                break
    return chosen


# --- The top --------------------------------------------------------------------------------------


@jit(cold=True)
def grow(k, a, need):
    """Move the break so that ``need`` bytes fit above top; False when the kernel refuses."""
    least = page_align(a.top + need) - a.end
    for extra in (page_align(GROWTH), 0):
        if sbrk(k, least + extra) >= 0:
            a.end += least + extra
            return True
    return False


@jit(cold=True)
def shrink(k, a, end):
    """Move the break down to ``end``, if that is down."""
    if end < a.end and sbrk(k, end - a.end) >= 0:
        a.end = end
        # Pages came off as a whole: what is left of the last one keeps its contents.
        a.fresh = min(a.fresh, page_align(end))


@jit
def take_top(k, a, need):
    """Cut a block of ``need`` bytes off the top; 0 when memory is exhausted."""
    block = a.top
    if block + need > a.end and not grow(k, a, need):
        return 0
    a.top = block + need
    store(k, block, MAGIC | need | USED | PREV_USED)
    return block


@jit
def give_top(k, a, block):
    """Make everything from ``block`` on part of the top."""
    a.fresh = max(a.fresh, a.top)
    a.top = block
    if TRIM_THRESHOLD and a.end - block >= TRIM_THRESHOLD:
        shrink(k, a, page_align(block + GROWTH))


# --- Taking and giving blocks ---------------------------------------------------------------------


@jit
def take_from(k, a, block, need):
    """Use ``need`` bytes at the end of a free block, or all when the rest would be too small."""
    size = block_size(k, block)
    rest = size - need
    if rest < SMALLEST:
        list_remove(k, a, block)
        store(k, block, MAGIC | size | USED | PREV_USED)
        set_prev_used(k, block + size)
        return block
    set_free(k, block, rest)
    store(k, block + rest, MAGIC | need | USED)
    set_prev_used(k, block + size)
    if FIT == NEXT_FIT:
        a.rover = block
    return block + rest


@jit
def take_block(k, a, need):
    """Return a used block of at least ``need`` bytes; 0 when memory is exhausted."""
    block = find_fit(k, a, need)
    if block:
        return take_from(k, a, block, need)
    return take_top(k, a, need)


@jit
def give_block(k, a, block):
    """Free a used block, merged with its free neighbours."""
    tag = load(k, block)
    size = tag & SIZE_MASK
    # The tag outlives a merge, for the sake of a second free.
    store(k, block, tag & ~USED)
    place = -1
    if not tag & PREV_USED:
        before = block - load(k, block - 8)
        place = load(k, before + PREV)
        list_remove(k, a, before)
        size += block - before
        block = before
    after = block + size
    if after == a.top:
        give_top(k, a, block)
        return
    tag = load(k, after)
    if tag & USED:
        store(k, after, tag & ~PREV_USED)
    else:
        if place < 0:
            place = load(k, after + PREV)
        list_remove(k, a, after)
        size += tag & SIZE_MASK
    if ORDER != ADDRESS or place < 0:
        place = list_place(k, a, block + size)
    set_free(k, block, size)
    list_insert(k, a, block, place)


@jit
def trim_block(k, a, block, need):
    """Free what a used block has beyond ``need`` bytes, if that makes a block."""
    tag = load(k, block)
    rest = (tag & SIZE_MASK) - need
    if rest >= SMALLEST:
        store(k, block, tag - rest)
        store(k, block + need, MAGIC | rest | USED | PREV_USED)
        give_block(k, a, block + need)


@jit
def extend_block(k, a, block, need):
    """Grow a used block to ``need`` bytes into what is free behind it, or return False."""
    tag = load(k, block)
    size = tag & SIZE_MASK
    after = block + size
    if after == a.top:
        if block + need > a.end and not grow(k, a, need - size):
            return False
        a.top = block + need
        store(k, block, tag + need - size)
        return True
    if load(k, after) & USED or size + block_size(k, after) < need:
        return False
    more = block_size(k, after)
    list_remove(k, a, after)
    store(k, block, tag + more)
    set_prev_used(k, after + more)
    trim_block(k, a, block, need)
    return True


# --- The contract ---------------------------------------------------------------------------------


@jit(inline=True)
def is_large(size):
    """Whether a request is not for the heap: to be mapped, or impossible."""
    return size > (MMAP_THRESHOLD if MMAP_THRESHOLD else MAX_REQUEST)


@jit(cold=True)
def large_alloc(k, a, alignment, size):
    """Map a large object; 0 when the kernel refuses, or nothing is to be mapped."""
    if MMAP_THRESHOLD == 0:
        return 0
    return mapped_alloc(k, a, alignment, size, MAGIC | MAPPED | USED)


@jit
def malloc(k, a, size):
    """Take a block from the list, else from the top."""
    if is_large(size):
        return large_alloc(k, a, ALIGNMENT, size)
    block = take_block(k, a, block_for(size))
    return block + TAG if block else 0


@jit
def free(k, a, p):
    """Give the block back, or unmap it."""
    if used_tag(k, a, p) & MAPPED:
        mapped_free(k, a, p)
        return
    give_block(k, a, p - TAG)


@jit
def usable_size(k, a, p):
    """The block less its tag."""
    tag = used_tag(k, a, p)
    return mapped_usable(k, p) if tag & MAPPED else (tag & SIZE_MASK) - TAG


@jit
def realloc(k, a, p, size):
    """Shrink or grow the block where it is, else move it."""
    tag = used_tag(k, a, p)
    old = usable_size(k, a, p)
    if tag & MAPPED:
        if old // 2 <= size <= old:
            return p
    elif size <= MAX_REQUEST:
        need = block_for(size)
        if need <= old + TAG:
            trim_block(k, a, p - TAG, need)
            return p
        if extend_block(k, a, p - TAG, need):
            return p
    return move(k, a, p, old, size)


@jit
def calloc(k, a, size):
    """Clear what was ever part of a block."""
    fresh = max(a.fresh, a.top)
    p = malloc(k, a, size)
    if p and not is_large(size):
        clear(k, p, min(size, max(fresh - p, 0)))
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a block with room to move up to the alignment, and free what is left at both ends."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    if is_large(size) or is_large(size + alignment):
        return large_alloc(k, a, alignment, size)
    need = block_for(size)
    block = take_block(k, a, need + alignment + SMALLEST)
    if block == 0:
        return 0
    p = align_up(block + TAG, alignment)
    gap = p - TAG - block
    if 0 < gap < SMALLEST:
        p += alignment
        gap += alignment
    if gap:
        tag = load(k, block)
        store(k, block, (tag & ~SIZE_MASK) | gap)
        store(k, p - TAG, MAGIC | USED | PREV_USED | (tag & SIZE_MASK) - gap)
        give_block(k, a, block)
    trim_block(k, a, p - TAG, need)
    return p


@jit
def trim(k, a):
    """Give the top back to the last page."""
    if a.top == a.start:
        shrink(k, a, a.start - TAG)
    else:
        shrink(k, a, page_align(a.top))


# --- What the heap holds --------------------------------------------------------------------------


@jit
def walk(k, a, rows):
    """Step from block to block, then list the top and the large objects."""
    n = 0
    block = a.start
    while block < a.top:
        tag = load(k, block)
        size = tag & SIZE_MASK
        if tag & USED:
            n = emit(rows, n, block, TAG, BLOCK_HEADER)
            n = emit(rows, n, block + TAG, size - TAG, BLOCK_USED)
        else:
            n = emit(rows, n, block, size, BLOCK_FREE)
        block += size
    if a.top < a.end:
        n = emit(rows, n, a.top, a.end - a.top, BLOCK_FREE)
    return mapped_walk(k, a, rows, n)


@jit
def check_list(k, a):
    """Count the free list; a negative key of CHECKS for what is wrong with it."""
    count = 0
    before = 0
    rover = not a.rover
    block = a.first
    while block:
        if load(k, block + PREV) != before:
            return -6
        if not a.start <= block < a.top or load(k, block) & USED:
            return -5
        if ORDER == ADDRESS and block < before:
            return -7
        rover = rover or block == a.rover
        count += 1
        before = block
        block = load(k, block + NEXT)
    if a.last != before:
        return -6
    return count if rover else -8


@jit
def check(k, a):
    """Tags agree with their neighbours, and the list with the tags."""
    if not a.start <= a.top or a.end > sbrk(k, 0):
        return 9
    listed = check_list(k, a)
    if listed < 0:
        return -listed
    prev_used = PREV_USED
    block = a.start
    while block < a.top:
        tag = load(k, block)
        size = tag & SIZE_MASK
        if tag & MAGIC_MASK != MAGIC or size < SMALLEST:
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
    if block != a.top:
        return 1
    if not prev_used:
        return 3
    return 5 if listed else 0
