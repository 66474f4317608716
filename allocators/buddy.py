"""Binary buddy: power-of-two blocks; a free block merges only with its buddy.

    alignment 16 · overhead 16 bytes a block, and the rounding to a power of two · smallest block
    2**min_order · requests above 2**max_order - 16 are mapped · malloc and free O(orders)

    chunk of 2**max_order bytes, aligned to its size relative to ``origin``

    ├──────── order k+1 ────────┤
    ├── order k ──┼── order k ──┤      buddy(block) = origin + ((block - origin) ^ 2**order)
    │ tag │ payload (used)      │      tag at block + 8: payload offset << 8 | order << 1 | used
    │ tag │ next │ prev  (free) │      links at block + 16, + 24

With growth=mmap, the page below each chunk holds its links to the other chunks.  An aligned block
has a second tag before its payload, whose offset leads back to the block.

Invariants: every address at which a buddy can start holds a tag; a free block's buddy is never a
free block of the same order (below max_order); sum of blocks = chunks * 2**max_order.
Knowlton, "A fast storage allocator", CACM 8(10), 1965; Knuth, TAOCP 1, section 2.5, R and S.
"""

import numpy as np

from allocators.base.contract import (
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    Promises,
    align_up,
    emit,
    move,
)
from allocators.base.mapped import mapped_alloc, mapped_free, mapped_usable, mapped_walk
from allocators.base.settings import choice, number
from kernel.access import load, store
from kernel.brk import sbrk
from kernel.engine.bits import bit_length, trailing_zeros
from kernel.engine.jit import jit
from kernel.mmap import mmap, munmap
from kernel.page import page_size
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE
from kernel.uapi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE

MIN_ORDER = number(5, low=5, high=30, text="log2 of the smallest block, bytes")
MAX_ORDER = number(20, low=12, high=34, text="log2 of the largest block and of a chunk, bytes")
GROWTH = choice("brk", "mmap", text="where chunks come from")
KEEP = number(1, low=0, high=1 << 20, text="wholly free chunks kept; more are returned")

BRK = 0
HEADER = 16
USED = 1
#: Order in the tag of a block that is a mapping (allocators.base.mapped).
MAPPED = 127
#: Upper bits of a tag, which tell it from any other word.
MAGIC = 0x5BD1 << 40
MAGIC_MASK = 0xFFFF << 40
LINK_NEXT, LINK_PREV = 16, 24
#: Largest page size that a kernel may have, bytes.
LARGEST_PAGE = 65536
ORDERS = 40

STATE = np.dtype(
    [
        ("origin", "i8"),  # address that block offsets are relative to
        ("chunks", "i8"),  # chunks held
        ("free_chunks", "i8"),  # wholly free chunks among them
        ("top", "i8"),  # growth=brk: end of the last chunk; growth=mmap: newest chunk
        ("mapped", "i8"),  # first large object
        ("orders", "i8"),  # bit k: free list k is not empty
        ("heads", "i8", (ORDERS,)),  # first free block by order
    ]
)
CHECKS = {
    1: "a block on a free list is not tagged free with the order of that list",
    2: "a backward link of a free list is broken",
    3: "two free buddies were not merged",
    4: "the bit map of orders disagrees with the lists",
    5: "the count of free chunks is wrong",
}


def check_settings(s):
    """Refuse a min_order above max_order."""
    if s["min_order"] > s["max_order"]:
        raise ValueError(f"min_order ({s['min_order']}) is above max_order ({s['max_order']})")


def promises(s):
    """Promise to detect bad frees (by the tag) and to return all but ``keep`` free chunks."""
    # A chunk and its page of links, each rounded up to whole pages, and the break rounded likewise.
    retains = s["keep"] * ((1 << s["max_order"]) + 2 * LARGEST_PAGE) + LARGEST_PAGE
    return Promises(double_free=True, wild_free=True, retains=retains)


@jit
def init(k, a):
    """Set the heap's origin; the first request adds the first chunk."""
    a.origin = 0
    if GROWTH == BRK:
        a.origin = align_up(sbrk(k, 0), HEADER)
        sbrk(k, a.origin - sbrk(k, 0))
        a.top = a.origin


@jit(inline=True)
def make_tag(offset, order, used):
    """Return the tag for a payload at ``offset`` in a block of ``order``; ``used``: USED or 0."""
    return MAGIC | offset << 8 | order << 1 | used


@jit(inline=True)
def tag_order(tag):
    """Return the order of the tagged block."""
    return (tag >> 1) & 127


@jit(inline=True)
def tag_offset(tag):
    """Return the bytes from the block's start to the payload."""
    return (tag >> 8) & 0xFFFFFFFF


@jit(inline=True)
def buddy_of(a, block, order):
    """Return the address of the block's buddy."""
    return a.origin + ((block - a.origin) ^ (1 << order))


@jit
def list_push(k, a, block, order):
    """Tag ``block`` free and put it at the front of the list of its order."""
    head = a.heads[order]
    store(k, block + 8, make_tag(HEADER, order, 0))
    store(k, block + LINK_NEXT, head)
    store(k, block + LINK_PREV, 0)
    if head:
        store(k, head + LINK_PREV, block)
    a.heads[order] = block
    a.orders |= 1 << order


@jit
def list_remove(k, a, block, order):
    """Unlink the free ``block``."""
    after = load(k, block + LINK_NEXT)
    before = load(k, block + LINK_PREV)
    if before:
        store(k, before + LINK_NEXT, after)
    else:
        a.heads[order] = after
        if after == 0:
            a.orders &= ~(1 << order)
    if after:
        store(k, after + LINK_PREV, before)


@jit
def list_pop(k, a, order):
    """Unlink and return the first block of a list that is not empty."""
    block = a.heads[order]
    after = load(k, block + LINK_NEXT)
    a.heads[order] = after
    if after:
        store(k, after + LINK_PREV, 0)
    else:
        a.orders &= ~(1 << order)
    return block


@jit(cold=True)
def map_chunk(k, length):
    """Map ``length`` bytes aligned to ``length``, and a page of links below; 0 if refused."""
    page = page_size()
    room = 2 * length + page
    raw = mmap(k, 0, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    if raw < 0:
        return 0
    chunk = align_up(raw + page, length)
    if chunk - page > raw:
        munmap(k, raw, chunk - page - raw)
    if raw + room > chunk + length:
        munmap(k, chunk + length, raw + room - chunk - length)
    return chunk


@jit(cold=True)
def unmap_chunk(k, a, chunk):
    """Unlink a chunk that map_chunk made and unmap it."""
    page = page_size()
    older = load(k, chunk - page)
    newer = load(k, chunk - page + 8)
    if newer:
        store(k, newer - page, older)
    else:
        a.top = older
    if older:
        store(k, older - page + 8, newer)
    munmap(k, chunk - page, page + (1 << MAX_ORDER))


@jit(cold=True)
def grow(k, a):
    """Add one free chunk; return False if the kernel refuses."""
    length = 1 << MAX_ORDER
    if GROWTH == BRK:
        if sbrk(k, length) < 0:
            return False
        chunk = a.top
        a.top += length
    else:
        chunk = map_chunk(k, length)
        if chunk == 0:
            return False
        links = chunk - page_size()
        store(k, links, a.top)
        store(k, links + 8, 0)
        if a.top:
            store(k, a.top - page_size() + 8, chunk)
        a.top = chunk
    a.chunks += 1
    a.free_chunks += 1
    list_push(k, a, chunk, MAX_ORDER)
    return True


@jit(cold=True)
def release(k, a):
    """Return free chunks beyond KEEP to the kernel; with growth=brk, only from the top."""
    length = 1 << MAX_ORDER
    while a.free_chunks > KEEP:
        if GROWTH == BRK:
            chunk = a.top - length
            if load(k, chunk + 8) != make_tag(HEADER, MAX_ORDER, 0):
                return
            list_remove(k, a, chunk, MAX_ORDER)
            a.top = chunk
            sbrk(k, -length)
        else:
            chunk = a.heads[MAX_ORDER]
            list_remove(k, a, chunk, MAX_ORDER)
            unmap_chunk(k, a, chunk)
        a.chunks -= 1
        a.free_chunks -= 1


@jit
def order_for(size):
    """Return the smallest order whose block holds a header and ``size`` bytes."""
    return max(bit_length(size + HEADER - 1), MIN_ORDER)


@jit
def take_block(k, a, order):
    """Return a block of ``order``, tagged used, splitting a larger one; 0 if there is none."""
    fits = a.orders >> order
    if fits == 0:
        if not grow(k, a):
            return 0
        fits = a.orders >> order
    found = order + trailing_zeros(fits)
    block = list_pop(k, a, found)
    if found == MAX_ORDER:
        a.free_chunks -= 1
    while found > order:
        found -= 1
        list_push(k, a, block + (1 << found), found)
    store(k, block + 8, make_tag(HEADER, order, USED))
    return block


@jit
def give_block(k, a, block, order):
    """Free ``block`` and merge it with its buddy as long as the buddy is free and not split."""
    while order < MAX_ORDER:
        buddy = buddy_of(a, block, order)
        if load(k, buddy + 8) != make_tag(HEADER, order, 0):
            break
        list_remove(k, a, buddy, order)
        # The upper half keeps a tag that is neither USED nor mergeable: it shows double frees.
        store(k, max(block, buddy) + 8, MAGIC)
        block = min(block, buddy)
        order += 1
    list_push(k, a, block, order)
    if order == MAX_ORDER:
        a.free_chunks += 1
        if a.free_chunks > KEEP:
            release(k, a)


@jit
def malloc(k, a, size):
    """Take a block of the smallest order that fits, splitting a larger one; map a large one."""
    if size > (1 << MAX_ORDER) - HEADER:
        return mapped_alloc(k, a, HEADER, size, make_tag(0, MAPPED, USED))
    block = take_block(k, a, order_for(size))
    return block + HEADER if block else 0


@jit
def used_tag(k, a, p):
    """Return the tag of the used block at ``p``, or end the process for a bad pointer."""
    if p & 15 or p < HEADER:
        abort(k, ABORT_BAD_POINTER, p)
    tag = load(k, p - 8)
    if tag & MAGIC_MASK != MAGIC:
        abort(k, ABORT_BAD_POINTER, p)
    if not tag & USED:
        abort(k, ABORT_DOUBLE_FREE, p)
    return tag


@jit
def free(k, a, p):
    """Find the block by its tag and merge it with its free buddies, or unmap it."""
    tag = used_tag(k, a, p)
    order = tag_order(tag)
    if order == MAPPED:
        mapped_free(k, a, p)
        return
    block = p - tag_offset(tag)
    if block != p - HEADER:
        store(k, p - 8, MAGIC)
    give_block(k, a, block, order)


@jit
def usable_size(k, a, p):
    """Return the bytes from ``p`` to the end of the block."""
    tag = used_tag(k, a, p)
    if tag_order(tag) == MAPPED:
        return mapped_usable(k, p)
    return (1 << tag_order(tag)) - tag_offset(tag)


@jit
def realloc(k, a, p, size):
    """Keep the block if ``size`` fits and is not too small for its order; else move it."""
    old = usable_size(k, a, p)
    if old // 2 - HEADER < size <= old:
        return p
    return move(k, a, p, old, size)


@jit
def aligned_alloc(k, a, alignment, size):
    """Take a block with room for the alignment, and put a second tag before the payload."""
    if alignment <= HEADER:
        return malloc(k, a, size)
    if size > (1 << MAX_ORDER) - HEADER - alignment:
        return mapped_alloc(k, a, alignment, size, make_tag(0, MAPPED, USED))
    order = order_for(size + alignment)
    block = take_block(k, a, order)
    if block == 0:
        return 0
    p = align_up(block + HEADER, alignment)
    if p > block + HEADER:
        store(k, block + 8, make_tag(p - block, order, USED))
        store(k, p - 8, make_tag(p - block, order, USED))
    return p


@jit
def walk_chunk(k, rows, n, chunk):
    """List the blocks of one chunk."""
    block = chunk
    while block < chunk + (1 << MAX_ORDER):
        tag = load(k, block + 8)
        length = 1 << tag_order(tag)
        p = block + HEADER
        if tag & USED:
            p = block + tag_offset(tag)
        n = emit(rows, n, block, p - block, BLOCK_HEADER)
        n = emit(rows, n, p, block + length - p, BLOCK_USED if tag & USED else BLOCK_FREE)
        block += length
    return n


@jit
def walk(k, a, rows):
    """List the blocks of every chunk, then the large objects."""
    n = 0
    if GROWTH == BRK:
        for chunk in range(a.origin, a.top, 1 << MAX_ORDER):
            n = walk_chunk(k, rows, n, chunk)
    else:
        chunk = a.top
        while chunk:
            n = emit(rows, n, chunk - page_size(), page_size(), BLOCK_HEADER)
            n = walk_chunk(k, rows, n, chunk)
            chunk = load(k, chunk - page_size())
    return mapped_walk(k, a, rows, n)


@jit
def check(k, a):
    """Check the lists against tags, bit map and counts, and that no two free buddies remain."""
    for order in range(MIN_ORDER, MAX_ORDER + 1):
        if (a.heads[order] != 0) != (a.orders >> order & 1 != 0):
            return 4
        before = 0
        count = 0
        block = a.heads[order]
        while block:
            if load(k, block + 8) != make_tag(HEADER, order, 0):
                return 1
            if load(k, block + LINK_PREV) != before:
                return 2
            if order < MAX_ORDER:
                buddy = load(k, buddy_of(a, block, order) + 8)
                if buddy == make_tag(HEADER, order, 0):
                    return 3
            before = block
            count += 1
            block = load(k, block + LINK_NEXT)
        if order == MAX_ORDER and count != a.free_chunks:
            return 5
    return 0
