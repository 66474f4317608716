"""Sequential fits with boundary tags: first, next, best or worst fit on one list of free blocks.

    alignment 16 · overhead 8 bytes a block · smallest block 32 (24 usable)
    requests above mmap_threshold are mapped · malloc: O(free blocks) · free: O(1), with
    order=address O(free blocks) unless a neighbour is free

    start                                                    top                     end (the break)
    │ tag │ payload …        │ tag │ next │ prev │ … │ size │ never part of the list ┤
      used                     free                           the last block before top is used

    tag: magic << 48 | bytes of the block | MAPPED | PREV_USED | USED        payload at block + 8

A free block repeats its size in its last word, and the tag of the next block has PREV_USED clear:
free finds both neighbours in constant time and merges with those that are free.  malloc searches
the list and takes the upper end of the block that ``fit`` chooses; if no block fits, it cuts one
off the top.  The top grows by ``growth`` bytes more than needed; when it reaches trim_threshold, it
is returned to the kernel down to ``growth``.  ``order`` decides where a block enters the list: at
the end, at the front, or by address.

Invariants: blocks tile [start, top) and no free block is adjacent to another or to top; the list
holds exactly the free blocks; PREV_USED of a block = USED of the block before it; memory above both
top and ``fresh`` is still zero, as the kernel mapped it.
Knuth, TAOCP 1, section 2.5, algorithms A and C (boundary tags, splitting from the end), exercise 6
(next fit); Wilson et al. 1995, section 3.4; the size word in free blocks only, and the top: Lea, "A
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

FIT = choice("first", "next", "best", "worst", text="block to take among those that fit")
ORDER = choice("fifo", "lifo", "address", text="order of the free list")
MMAP_THRESHOLD = size_setting(
    128 << 10, low=0, text="requests above this many bytes are mapped; 0: never"
)
GROWTH = size_setting(
    128 << 10, low=0, high=1 << 40, text="bytes requested from the kernel beyond the need"
)
TRIM_THRESHOLD = size_setting(
    256 << 10, low=0, text="size of the top, bytes, at which it is trimmed to growth; 0: never"
)

FIRST, NEXT_FIT, BEST, WORST = 0, 1, 2, 3
FIFO, LIFO, ADDRESS = 0, 1, 2

SMALLEST = 32

STATE = np.dtype(
    [
        ("start", "i8"),  # first block
        ("top", "i8"),  # start of the next block cut off the top: 8 above a multiple of 16
        ("end", "i8"),  # the break
        ("fresh", "i8"),  # memory below this may have been written since the kernel mapped it
        ("first", "i8"),  # ends of the free list, 0 when it is empty
        ("last", "i8"),
        ("rover", "i8"),  # fit=next: free block at which the next search starts; 0: the first
        ("mapped", "i8"),  # first large object
    ]
)
CHECKS = {
    1: "the blocks do not tile the heap up to top",
    2: "a tag's PREV_USED disagrees with the block before it",
    3: "two free blocks are adjacent, or one is adjacent to top",
    4: "a free block's last word is not its size",
    5: "the free list does not hold exactly the free blocks",
    6: "a backward link of the free list is broken",
    7: "the free list is not in address order",
    8: "the rover is not on the free list",
    9: "start <= top, end <= the break does not hold",
}


def check_settings(s):
    """Refuse a trim_threshold not above growth: trimming and growing would undo each other."""
    if 0 < s["trim_threshold"] <= s["growth"]:
        raise ValueError(
            f"trim_threshold ({s['trim_threshold']}) must be above growth ({s['growth']}), or 0"
        )


def promises(settings):
    """Promise to detect bad frees (by the tag) and to return the whole top in trim."""
    return Promises(double_free=True, wild_free=True, retains=0)


@jit
def init(k, a):
    """Place the first block so that its payload is aligned."""
    a.start = align_up(sbrk(k, 0), ALIGNMENT) + TAG
    a.top = a.start
    a.end = sbrk(k, 0)


# --- Blocks ---------------------------------------------------------------------------------------


@jit(inline=True)
def block_for(size):
    """Return the size of the block for a request of ``size`` bytes."""
    return max(align_up(size + TAG, ALIGNMENT), SMALLEST)


# --- The free list --------------------------------------------------------------------------------


@jit
def list_insert(k, a, block, before):
    """Insert ``block`` into the free list after ``before``; 0: at the front."""
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
    """Return the free block after which a block that ends at ``end`` belongs, by ``order``.

    0: the front.  By address: step up the list and up the heap in turn, as either may be the
    shorter way to a free neighbour in the list.
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
    """Return the block that ``fit`` chooses among those of ``need`` bytes or more; 0 if none."""
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
    """Move the break so that ``need`` bytes fit above top; return False if the kernel refuses."""
    least = page_align(a.top + need) - a.end
    for extra in (page_align(GROWTH), 0):
        if sbrk(k, least + extra) >= 0:
            a.end += least + extra
            return True
    return False


@jit(cold=True)
def shrink(k, a, end):
    """Move the break down to ``end``; do nothing if the break is not above ``end``."""
    if end < a.end and sbrk(k, end - a.end) >= 0:
        a.end = end
        # Only whole pages are unmapped: the rest of the last page keeps its contents.
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
    """Move the top down to ``block``, and trim it if it reached the threshold."""
    a.fresh = max(a.fresh, a.top)
    a.top = block
    if TRIM_THRESHOLD and a.end - block >= TRIM_THRESHOLD:
        shrink(k, a, page_align(block + GROWTH))


# --- Taking and giving blocks ---------------------------------------------------------------------


@jit
def take_from(k, a, block, need):
    """Use the last ``need`` bytes of a free block, or all of it if the rest is too small."""
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
    """Free a used block and merge it with its free neighbours."""
    tag = load(k, block)
    size = tag & SIZE_MASK
    # The tag survives a merge, so that a second free of this block is detected.
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
    """Cut a used block to ``need`` bytes and free the rest, if that is large enough for a block."""
    tag = load(k, block)
    rest = (tag & SIZE_MASK) - need
    if rest >= SMALLEST:
        store(k, block, tag - rest)
        store(k, block + need, MAGIC | rest | USED | PREV_USED)
        give_block(k, a, block + need)


@jit
def extend_block(k, a, block, need):
    """Grow a used block to ``need`` bytes into free space after it; return False if it fails."""
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
    """Return True if the heap does not serve a request: it is to be mapped, or impossible."""
    return size > (MMAP_THRESHOLD if MMAP_THRESHOLD else MAX_REQUEST)


@jit(cold=True)
def large_alloc(k, a, alignment, size):
    """Map a large object; return 0 if the kernel refuses or mapping is off."""
    if MMAP_THRESHOLD == 0:
        return 0
    return mapped_alloc(k, a, alignment, size, MAGIC | MAPPED | USED)


@jit
def malloc(k, a, size):
    """Take a block from the free list, else from the top; map a large one."""
    if is_large(size):
        return large_alloc(k, a, ALIGNMENT, size)
    block = take_block(k, a, block_for(size))
    return block + TAG if block else 0


@jit
def free(k, a, p):
    """Free the block, or unmap it."""
    if used_tag(k, a, p) & MAPPED:
        mapped_free(k, a, p)
        return
    give_block(k, a, p - TAG)


@jit
def usable_size(k, a, p):
    """Return the bytes of the block after its tag."""
    tag = used_tag(k, a, p)
    return mapped_usable(k, p) if tag & MAPPED else (tag & SIZE_MASK) - TAG


@jit
def realloc(k, a, p, size):
    """Resize the block in place, else move it."""
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
    """Allocate, and clear only what may have been written since the kernel mapped it."""
    fresh = max(a.fresh, a.top)
    p = malloc(k, a, size)
    if p and not is_large(size):
        clear(k, p, min(size, max(fresh - p, 0)))
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a block with room for the alignment and free what is left at both ends."""
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
    """Return every whole page of the top to the kernel."""
    if a.top == a.start:
        shrink(k, a, a.start - TAG)
    else:
        shrink(k, a, page_align(a.top))


# --- Walk and check -------------------------------------------------------------------------------


@jit
def walk(k, a, rows):
    """List the blocks in address order, the top, and the large objects."""
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
    """Return the length of the free list, or the negative CHECKS key of its first error."""
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
    """Check that tags agree with their neighbours and the free list with the tags."""
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
