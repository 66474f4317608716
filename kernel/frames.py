"""Physical memory: frames in two zones, allocated in blocks of 2**order by a buddy allocator.

    order 2   ┌───────────────┐          a free block of four frames: its head is on the list
    order 1   ├───────┬───────┤          of order 2; it is split in half until a half fits, and
    order 0   ├───┬───┼───┬───┤          a freed block merges with its buddy (its number with
    frame     4   5   6   7              one bit flipped) while that is free and of equal order

Every frame has a 16-byte record.  Only the record of a block's first frame, its head, is used; the
records of the other frames stay zero.  A head is on exactly one list, according to its state:

    FREE       the free list of its order and zone
    TABLE      page-table pages; only their number matters, not which is which
    INACTIVE, ACTIVE, LAZY, UNEVICTABLE    mapped by the process (kernel.vmscan)

OTHERS are frames of the rest of the system: they never move, and a block that contains one can
never become one free block.  Invariants after every operation (kernel.conservation):

    free + tables + mapped + others == nr_frames         no two free buddies of one order
    frame n maps page p  <=>  page p is present and pfn_of(p) == n

The functions that the rest of the model calls are hooks of the switch FRAMES: empty without it.
"""

from math import isqrt

import numpy as np

from kernel import types
from kernel.engine.jit import jit
from kernel.engine.memory import load_word, store_word
from kernel.engine.switches import PAGE_SHIFT
from kernel.page import fold_page, pages_per_slot, pmd_order

#: A page number has 35 bits; a record stores its low 31 bits and its high 8 bits.
_LOW_BITS = 31


@jit(inline=True)
def max_order():
    """Return the order of the largest block: 10 as in Linux, or a huge page's if it is larger."""
    return max(pmd_order(), 10)


# --- Lists -----------------------------------------------------------------------------------


@jit
def order_of(k, pfn):
    """Return the order of the block at ``pfn``."""
    return int(k.frame[pfn].order)


@jit
def list_add(k, a, pfn):
    """Put the block at ``pfn`` at the head of list ``a``."""
    f = k.frame[pfn]
    f.prev = -1
    f.next = a.head
    if a.head >= 0:
        k.frame[a.head].prev = pfn
    else:
        a.tail = pfn
    a.head = pfn
    a.blocks += 1
    a.frames += 1 << order_of(k, pfn)


@jit
def list_add_before(k, a, pfn, place):
    """Put the block at ``pfn`` before ``place`` on list ``a``, on the head's side."""
    before = int(k.frame[place].prev)
    if before < 0:
        list_add(k, a, pfn)
        return
    f = k.frame[pfn]
    f.prev = before
    f.next = place
    k.frame[before].next = pfn
    k.frame[place].prev = pfn
    a.blocks += 1
    a.frames += 1 << order_of(k, pfn)


@jit
def list_del(k, a, pfn):
    """Remove the block at ``pfn`` from list ``a``."""
    f = k.frame[pfn]
    if f.prev >= 0:
        k.frame[f.prev].next = f.next
    else:
        a.head = f.next
    if f.next >= 0:
        k.frame[f.next].prev = f.prev
    else:
        a.tail = f.prev
    a.blocks -= 1
    a.frames -= 1 << order_of(k, pfn)


# --- Zones -----------------------------------------------------------------------------------


@jit
def zone_of(k, pfn):
    """Return the zone that contains frame ``pfn``."""
    return types.ZONE_NORMAL if pfn >= k.zone[types.ZONE_NORMAL].start else types.ZONE_DMA32


@jit
def smallest_free(k, z, order):
    """Return the smallest order >= ``order`` with a free block in zone ``z``, or max_order + 1."""
    while order <= max_order() and k.free_area[z * types.NR_ORDERS + order].blocks == 0:
        order += 1
    return order


@jit
def zone_watermark_ok(k, z, order, mark):
    """Return True if zone ``z`` can allocate ``order`` and stay above watermark ``mark``."""
    zone = k.zone[z]
    if zone.free - (1 << order) + 1 <= zone.wmark[mark] + zone.lowmem_reserve:
        return False
    return smallest_free(k, z, order) <= max_order()


# --- The buddy allocator ---------------------------------------------------------------------


@jit
def _set_free(k, z, pfn, order):
    """Mark the block at ``pfn`` free, with ``order``, and add it to its free list."""
    f = k.frame[pfn]
    f.state = types.FREE
    f.order = order
    list_add(k, k.free_area[z * types.NR_ORDERS + order], pfn)


@jit
def _set_used(k, z, pfn):
    """Remove the free block at ``pfn`` from its list; it belongs to the caller."""
    list_del(k, k.free_area[z * types.NR_ORDERS + order_of(k, pfn)], pfn)
    k.frame[pfn].state = types.TAKEN


@jit
def _take_block(k, z, order):
    """Take a block of exactly ``order`` from zone ``z``, which has a free block of at least it.

    Of a split block the lower half is used and the upper half stays free.
    """
    o = smallest_free(k, z, order)
    pfn = k.free_area[z * types.NR_ORDERS + o].head
    _set_used(k, z, pfn)
    while o > order:
        o -= 1
        k.vmstat.splits += 1
        _set_free(k, z, pfn + (1 << o), o)
    f = k.frame[pfn]
    f.order = order
    f.referenced = 0
    k.zone[z].free -= 1 << order
    k.vmstat.pgalloc += 1 << order
    return pfn


@jit(cold=True)
def alloc_frames(k, order, mark):
    """Allocate a block of 2**order frames, state TAKEN; return its first frame, -1 if none.

    Tries the upper zone first; skips a zone that would fall below watermark ``mark`` (WMARK_*).
    """
    for z in range(types.NR_ZONES - 1, -1, -1):
        if zone_watermark_ok(k, z, order, mark):
            return _take_block(k, z, order)
    return -1


@jit(cold=True)
def free_frames(k, pfn, order):
    """Free the block of 2**order frames at ``pfn``, which is on no list, and merge buddies."""
    z = zone_of(k, pfn)
    k.zone[z].free += 1 << order
    k.vmstat.pgfree += 1 << order
    while order < max_order():
        buddy = pfn ^ (1 << order)
        # A buddy in another zone or beyond the end is never a free block of this order.
        if k.frame[buddy].state != types.FREE or order_of(k, buddy) != order:
            break
        list_del(k, k.free_area[z * types.NR_ORDERS + order], buddy)
        k.frame[max(pfn, buddy)].state = types.INSIDE
        pfn = min(pfn, buddy)
        order += 1
        k.vmstat.merges += 1
    _set_free(k, z, pfn, order)


@jit
def _hold_frame(k, pfn):
    """Give the free frame ``pfn`` to others: split the block around it down to one frame."""
    z = zone_of(k, pfn)
    o = 0
    while k.frame[pfn >> o << o].state != types.FREE or order_of(k, pfn >> o << o) != o:
        o += 1
    block = pfn >> o << o
    _set_used(k, z, block)
    k.frame[block].state = types.INSIDE
    while o > 0:
        o -= 1
        if pfn & (1 << o):
            _set_free(k, z, block, o)
            block += 1 << o
        else:
            _set_free(k, z, block + (1 << o), o)
    f = k.frame[pfn]
    f.state = types.OTHERS
    f.order = 0
    k.zone[z].free -= 1
    k.zone[z].managed -= 1
    k.phys.others += 1


@jit
def _fragment(k, percent):
    """Give others one frame in each of ``percent`` % of all huge-page-sized blocks.

    The blocks are spread evenly; the frame in each is chosen by a fixed pseudo-random number.
    """
    size = pages_per_slot()
    for block in range((k.phys.nr_frames + size - 1) >> pmd_order()):
        if (block + 1) * percent // 100 > block * percent // 100:
            place = ((block * 2654435761 & 0xFFFFFFFF) * size) >> 32
            pfn = block * size + place
            if pfn < k.phys.nr_frames:
                _hold_frame(k, pfn)


@jit
def _clear_list(a):
    """Make list ``a`` empty."""
    a.head = -1
    a.tail = -1
    a.blocks = 0
    a.frames = 0


@jit
def init_frames(k, nr_frames, boundary, min_free, percent, nr_swap):
    """Initialise physical memory: every frame is free except those that others hold.

    ``boundary``: first frame of the upper zone, a multiple of the largest block; ``min_free``: sum
    of all min watermarks, frames; ``percent``: share of blocks in which others hold a frame;
    ``nr_swap``: swap slots.  The caller has zeroed ``k.vmstat``.
    """
    phys = k.phys
    # Also clear the frames of an earlier boot, which may have had more.
    for pfn in range(max(phys.nr_frames, nr_frames)):
        if k.frame[pfn].state:
            k.frame[pfn].state = types.INSIDE
    phys.nr_frames = nr_frames
    phys.others = 0
    phys.nr_swap = nr_swap
    phys.swap_used = 0
    phys.swap_free = -1
    phys.swap_fresh = 0
    for n in range(types.NR_ZONES * types.NR_ORDERS):
        _clear_list(k.free_area[n])
    for n in range(types.NR_STATES):
        _clear_list(k.lru[n])
    boundary = min(boundary, nr_frames)
    for z in range(types.NR_ZONES):
        zone = k.zone[z]
        zone.start = 0 if z == types.ZONE_DMA32 else boundary
        zone.end = boundary if z == types.ZONE_DMA32 else nr_frames
        zone.managed = zone.end - zone.start
        zone.free = zone.managed
        # From the top down, so that the lowest block is used first.
        pfn = zone.end
        while pfn > zone.start:
            order = 0
            while order < max_order() and pfn & (1 << order) == 0:
                order += 1
            pfn -= 1 << order
            _set_free(k, z, pfn, order)
    _fragment(k, percent)
    managed = k.zone[types.ZONE_DMA32].managed + k.zone[types.ZONE_NORMAL].managed
    for z in range(types.NR_ZONES):
        zone = k.zone[z]
        zone.lowmem_reserve = 0
        zone.wmark[types.WMARK_MIN] = min_free * zone.managed // max(managed, 1)
        # Linux's watermark_scale_factor: watermarks differ by at least a thousandth of the zone.
        gap = max(zone.wmark[types.WMARK_MIN] >> 2, zone.managed // 1000)
        zone.wmark[types.WMARK_LOW] = zone.wmark[types.WMARK_MIN] + gap
        zone.wmark[types.WMARK_HIGH] = zone.wmark[types.WMARK_LOW] + gap
    k.zone[types.ZONE_DMA32].lowmem_reserve = k.zone[types.ZONE_NORMAL].managed // 256


# --- Frames and the pages that they back --------------------------------------------------------


@jit
def pfn_of(k, page):
    """Return the frame to which folded page ``page`` is mapped, or the swap slot that holds it."""
    return load_word(k.pfn, page)


@jit
def set_pfn(k, page, pfn):
    """Set the frame or swap slot of folded page ``page``."""
    store_word(k.pfn, page, pfn)


@jit
def owner_of(k, pfn):
    """Return the number of the (first) page that is mapped to the block at ``pfn``."""
    f = k.frame[pfn]
    return (int(f.page_high) << _LOW_BITS) + int(f.page_low)


@jit
def _set_owner(k, pfn, page):
    """Set the number of the (first) page that is mapped to the block at ``pfn``."""
    f = k.frame[pfn]
    f.page_high = page >> _LOW_BITS
    f.page_low = page & ((1 << _LOW_BITS) - 1)


@jit
def move_to_list(k, pfn, state):
    """Move the mapped block at ``pfn`` to the head of the list of ``state``."""
    list_del(k, k.lru[k.frame[pfn].state], pfn)
    k.frame[pfn].state = state
    list_add(k, k.lru[state], pfn)


@jit(cold=True, when="FRAMES")
def map_frame(k, pfn, addr):
    """Record that ``addr`` maps the block at ``pfn``, state TAKEN; put it on the inactive list."""
    page = addr >> PAGE_SHIFT
    _set_owner(k, pfn, page)
    for n in range(1 << order_of(k, pfn)):
        set_pfn(k, fold_page(page) + n, pfn + n)
    k.frame[pfn].state = types.INACTIVE
    list_add(k, k.lru[types.INACTIVE], pfn)


@jit(cold=True, when="FRAMES")
def release_frame(k, page):
    """Free the frame, or block, whose (first) page is folded page ``page``, being unmapped."""
    pfn = pfn_of(k, page)
    list_del(k, k.lru[k.frame[pfn].state], pfn)
    free_frames(k, pfn, order_of(k, pfn))


@jit(cold=True, when="FRAMES")
def split_frame(k, page):
    """Split the block whose first page is folded page ``page`` into single mapped frames.

    They take its place on its list, the first page nearest to the tail.  Order 0: no effect.
    """
    pfn = pfn_of(k, page)
    order = order_of(k, pfn)
    if order == 0:
        return
    f = k.frame[pfn]
    a = k.lru[f.state]
    a.frames -= (1 << order) - 1
    f.order = 0
    first = owner_of(k, pfn)
    for n in range(1, 1 << order):
        part = k.frame[pfn + n]
        part.state = f.state
        part.order = 0
        part.referenced = 0
        _set_owner(k, pfn + n, first + n)
        list_add_before(k, a, pfn + n, pfn + n - 1)
    k.vmstat.thp_split_page += 1


@jit(cold=True)
def move_frame(k, old, addr):
    """Record that the frame of folded page ``old`` is now mapped at ``addr`` instead.

    The pages of a block are moved one by one, the first page first.
    """
    page = addr >> PAGE_SHIFT
    pfn = pfn_of(k, old)
    set_pfn(k, fold_page(page), pfn)
    if k.frame[pfn].state != types.INSIDE:
        _set_owner(k, pfn, page)


@jit(cold=True, when="FRAMES")
def munlock_frame(k, page):
    """Make the frame, or block, of the unlocked folded page ``page`` reclaimable again."""
    if k.pte[page] & types.PTE_FRAME and k.frame[pfn_of(k, page)].state == types.UNEVICTABLE:
        move_to_list(k, pfn_of(k, page), types.INACTIVE)


@jit
def enter_table(k, pfn):
    """Make frame ``pfn``, state TAKEN, a page-table page."""
    k.frame[pfn].state = types.TABLE
    list_add(k, k.lru[types.TABLE], pfn)


@jit(cold=True, when="FRAMES")
def free_table_frames(k, n):
    """Free the frames of ``n`` page-table pages."""
    for _ in range(n):
        pfn = k.lru[types.TABLE].head
        list_del(k, k.lru[types.TABLE], pfn)
        free_frames(k, pfn, 0)


# --- Settings and metrics (plain Python) -----------------------------------------------------


def default_min_free(memory: int) -> int:
    """Return the sum of the min watermarks, bytes, that Linux chooses for ``memory`` bytes."""
    return min(max(isqrt((memory >> 10) * 16), 128), 262144) << 10


def free_blocks(k: np.record) -> np.ndarray:
    """Return the number of free blocks of all zones by order, (NR_ORDERS,) int64."""
    return np.array(k.free_area["blocks"]).reshape(types.NR_ZONES, types.NR_ORDERS).sum(axis=0)


def unusable_free_index(blocks: np.ndarray, order: int) -> float:
    """Return the share of free memory that requests of 2**order frames cannot use, 0 to 1.

    ``blocks``: free blocks by order.  1 - N / (free // S), where N is the number of requests of S
    frames that fit; 1 if all free memory together is less than one request.
    """
    orders = np.arange(len(blocks))
    possible = int((blocks << orders).sum()) >> order
    fitting = int((blocks[order:] << orders[: len(blocks) - order]).sum())
    return 1.0 - fitting / possible if possible else 1.0


def fragmentation_index(blocks: np.ndarray, order: int) -> float:
    """Return why a request of 2**order frames fails: 0 lack of memory … 1 fragmentation.

    -1 if a block fits, 0 if nothing is free (Linux's extfrag_index).
    """
    total = int(blocks.sum())
    if total == 0:
        return 0.0
    if blocks[order:].any():
        return -1.0
    free = int((blocks << np.arange(len(blocks))).sum())
    return 1.0 - (1.0 + free / (1 << order)) / total
