"""Arena: carve objects out of regions; release a region as a whole when its last object dies.

    alignment 16 · no overhead a block, region_size / 32 + 64 bytes a region · smallest block 16
    requests above mmap_threshold are mapped · malloc: 2 loads, 2 stores · free: 2 loads, 2 stores
    both O(1), and neither touches the object

    region of region_size bytes, aligned to its size, found by masking an address

    │ live │ next │ prev │ … │ edges │ alive │ object │ object │ object …  │ not carved │
    0      8      16     24  64              first                         ▲ carve

    edges, alive: one bit per 16 bytes of the region, 32 bits per word
    ┌──object──┬object┬────object────┬────────     edges: starts of objects, and end of the last
    1 0 0 0 0 0 1 0 0 0 1 0 0 0 0 0 0 0 1 0 0 0
    1 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0     alive: starts of live objects (one is dead)

An object belongs to the region that was *current* when it was allocated: malloc advances the carve
pointer and counts ``born`` in a static variable.  free clears the alive bit and decrements the
region's ``live``, which starts at 0 and so is negative while the region is current; when the region
is full, its ``born`` is added, and from then on 0 means that all its objects are dead.  A dead
region is kept for reuse, or unmapped if ``keep`` regions are kept already.  A current region that
is full and dead is reused at once.  ``reset`` drops every object, alive or not, and unmaps all dead
regions except ``keep``: the program must not use any address from before.  Large objects are mapped
at multiples of region_size, an address that no object in a region has.

Invariants: alive is a subset of edges; live of a full region = its alive bits > 0; live + born of
the current region = its alive bits; the last edge of the current region is carve.  ("live" is
stored as NONE_LIVE + count, so that a word that is not a count is recognised.)
Ross, "The AED free storage package", CACM 10(8), 1967; Hanson, "Fast allocation and deallocation of
memory based on object lifetimes", SP&E 20(1), 1990; counting a region's survivors: Barrett & Zorn,
"Using lifetime predictors to improve memory allocation performance", PLDI 1993.
"""

import numpy as np

from allocators.base.aligned import map_aligned
from allocators.base.contract import (
    ALIGNMENT,
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    Promises,
    align_up,
    emit,
    move,
)
from allocators.base.mapped import (
    mapped_alloc,
    mapped_free,
    mapped_free_checked,
    mapped_usable,
    mapped_walk,
)
from allocators.base.settings import number
from allocators.base.settings import size as size_setting
from kernel.access import clear, load, store
from kernel.engine.bits import trailing_zeros
from kernel.engine.jit import jit
from kernel.mmap import munmap
from kernel.page import page_size
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE
from kernel.uapi import PROT_READ, PROT_WRITE

REGION_SIZE = size_setting(
    64 << 10, low=4096, high=256 << 20, text="bytes of a region, a power of two; at least a page"
)
KEEP = number(16, text="dead regions kept for reuse; more are unmapped")
MMAP_THRESHOLD = size_setting(
    16 << 10, low=16, high=128 << 20, text="requests above this many bytes are mapped"
)

NEXT, PREV = 8, 16
HEADER = 64
#: A region's first word when it has no live object; also the tag before a large object.
NONE_LIVE = 0x5BD1 << 48 | 1 << 40
#: Bits that NONE_LIVE shares with every count of live objects.
MAGIC_MASK = 0x7FFF << 48

STATE = np.dtype(
    [
        ("carve", "i8"),  # address of the next object, if it fits
        ("limit", "i8"),  # highest address at which an object of the current region may end
        ("born", "i8"),  # objects carved from the current region
        ("region", "i8"),  # the current region, 0 if none
        ("clean", "i8"),  # 1: the part of the current region not carved yet is zero
        ("full", "i8"),  # first region that holds objects, except the current one
        ("dead", "i8"),  # first dead region kept
        ("dead_regions", "i8"),  # number of dead regions kept
        ("mapped", "i8"),  # first large object
    ]
)
CHECKS = {
    1: "a backward link in a list of regions is broken",
    2: "an alive bit is set where no object starts",
    3: "a region's live count differs from its alive bits",
    4: "carve is not the current region's last edge",
    5: "a region without live objects is not on the list of dead ones",
    6: "the count of dead regions is wrong",
}


def check_settings(s):
    """Refuse a region size that is no power of two or has no room for the largest object."""
    if s["region_size"] & (s["region_size"] - 1):
        raise ValueError(f"region_size ({s['region_size']}) is not a power of two")
    room = s["region_size"] - s["region_size"] // 32 - HEADER - ALIGNMENT
    if s["mmap_threshold"] > room:
        raise ValueError(
            f"mmap_threshold ({s['mmap_threshold']}) exceeds the {room} bytes for objects in a "
            f"region of {s['region_size']}"
        )


def promises(settings):
    """Promise to detect bad frees (by the alive bits) and to unmap all dead regions in trim."""
    return Promises(double_free=True, wild_free=True, retains=0)


@jit
def init(k, a):
    """Do nothing: the first request maps the first region."""


# --- Addresses ------------------------------------------------------------------------------------


@jit(inline=True)
def region_size():
    """Return the size of a region in bytes, at least a page."""
    return max(REGION_SIZE, page_size())


@jit(inline=True)
def map_size():
    """Return the size of each of a region's two bit maps, bytes."""
    return region_size() >> 6


@jit(inline=True)
def region_of(p):
    """Return the region that holds the object ``p``."""
    return p & -region_size()


@jit(inline=True)
def edge_word(p):
    """Return the address of the edge-map word that has the bit for ``p``."""
    return region_of(p) + HEADER + ((p & (region_size() - 1)) >> 9 << 3)


@jit(inline=True)
def alive_word(p):
    """Return the address of the alive-map word that has the bit for ``p``."""
    return edge_word(p) + map_size()


@jit(inline=True)
def bit_of(p):
    """Return the bit for ``p`` in its word of either map."""
    return 1 << ((p >> 4) & 31)


@jit(inline=True)
def set_bit(k, word, p):
    """Set the bit for ``p`` in a word of either map."""
    store(k, word, load(k, word) | bit_of(p))


@jit(inline=True)
def clear_bit(k, word, p):
    """Clear the bit for ``p`` in a word of either map."""
    store(k, word, load(k, word) & ~bit_of(p))


@jit(inline=True)
def is_count(live):
    """Return True if a word can be a region's count of live objects."""
    return live & MAGIC_MASK == NONE_LIVE & MAGIC_MASK


@jit(inline=True)
def first_object(region):
    """Return the address at which carving starts."""
    return region + HEADER + 2 * map_size()


@jit(inline=True)
def rounded(size):
    """Return the size of the object for a request of ``size`` bytes."""
    return align_up(max(size, 1), ALIGNMENT)


@jit
def next_edge(k, p):
    """Return the first edge above ``p`` in its region, or 0 if there is none."""
    end = region_of(p) + region_size()
    p += ALIGNMENT
    while p < end:
        bits = load(k, edge_word(p)) >> ((p >> 4) & 31)
        if bits:
            return p + 16 * trailing_zeros(bits)
        p = ((p >> 9) + 1) << 9
    return 0


# --- Regions --------------------------------------------------------------------------------------


@jit
def link(k, head, region):
    """Put ``region`` at the front of the list that starts at ``head``; return the new head."""
    store(k, region + NEXT, head)
    store(k, region + PREV, 0)
    if head:
        store(k, head + PREV, region)
    return region


@jit
def unlink(k, head, region):
    """Take ``region`` out of the list that starts at ``head``; return the new head."""
    after = load(k, region + NEXT)
    before = load(k, region + PREV)
    if after:
        store(k, after + PREV, before)
    if before:
        store(k, before + NEXT, after)
        return head
    return after


@jit(cold=True)
def bury(k, a, region):
    """Keep a dead region for reuse, or unmap it if enough are kept."""
    if a.dead_regions < KEEP or munmap(k, region, region_size()) < 0:
        a.dead = link(k, a.dead, region)
        a.dead_regions += 1


@jit(cold=True)
def region_died(k, a, region):
    """Move a full region whose last object was freed to the dead ones."""
    a.full = unlink(k, a.full, region)
    bury(k, a, region)


@jit(cold=True)
def enter(k, a, region, clean):
    """Make ``region`` the current one, with nothing carved."""
    first = first_object(region)
    if not clean:
        for word in range(region + HEADER, first, 8):
            store(k, word, 0)
    store(k, region, NONE_LIVE)
    set_bit(k, edge_word(first), first)
    a.region = region
    a.carve = first
    a.limit = region + region_size() - ALIGNMENT
    a.born = 0
    a.clean = clean


@jit(cold=True)
def next_region(k, a):
    """Retire the current region and start another.

    Return False, and keep the old one, if the kernel refuses memory.
    """
    old = a.region
    live = load(k, old) + a.born if old else 0
    if live == NONE_LIVE:
        enter(k, a, old, 0)
        return True
    region = a.dead
    clean = 0
    if region:
        a.dead = unlink(k, a.dead, region)
        a.dead_regions -= 1
    else:
        region = map_aligned(k, region_size(), region_size(), 0, PROT_READ | PROT_WRITE)
        if region == 0:
            return False
        clean = 1
    if old:
        store(k, old, live)
        a.full = link(k, a.full, old)
    enter(k, a, region, clean)
    return True


# --- The contract ---------------------------------------------------------------------------------


@jit
def malloc(k, a, size):
    """Carve an object off the current region; map a large one."""
    if size > MMAP_THRESHOLD:
        return mapped_alloc(k, a, region_size(), size, NONE_LIVE)
    need = rounded(size)
    if a.carve + need > a.limit and not next_region(k, a):
        return 0
    p = a.carve
    q = p + need
    a.carve = q
    a.born += 1
    set_bit(k, alive_word(p), p)
    set_bit(k, edge_word(q), q)
    return p


@jit(cold=True)
def abort_bad_free(k, p, live):
    """End the process: ``p`` is no live object.  ``live``: the first word of its region."""
    if is_count(live) and p & 15 == 0 and load(k, edge_word(p)) & bit_of(p):
        abort(k, ABORT_DOUBLE_FREE, p)
    abort(k, ABORT_BAD_POINTER, p)


@jit
def free(k, a, p):
    """Clear the alive bit, decrement the region's count, and retire the region at zero."""
    if p & (region_size() - 1) == 0:
        mapped_free_checked(k, a, p, NONE_LIVE)
        return
    region = region_of(p)
    live = load(k, region)
    alive = load(k, alive_word(p))
    bit = bit_of(p)
    if not alive & bit or not is_count(live) or p & 15:
        abort_bad_free(k, p, live)
    store(k, alive_word(p), alive - bit)
    store(k, region, live - 1)
    if live - 1 == NONE_LIVE:
        region_died(k, a, region)


@jit
def usable_size(k, a, p):
    """Return the bytes from ``p`` to the next edge."""
    if p & (region_size() - 1) == 0:
        return mapped_usable(k, p)
    return next_edge(k, p) - p


@jit
def resize_last(k, a, p, need):
    """Resize the object carved last, ``p``: move its end and the carve pointer to ``p + need``."""
    q = p + need
    if q < a.carve:
        a.clean = 0
    clear_bit(k, edge_word(a.carve), a.carve)
    set_bit(k, edge_word(q), q)
    a.carve = q


@jit
def realloc(k, a, p, size):
    """Resize the object carved last in place; keep an object at most twice too large; else move."""
    old = usable_size(k, a, p)
    if p + old == a.carve and size <= MMAP_THRESHOLD and p + rounded(size) <= a.limit:
        if not load(k, alive_word(p)) & bit_of(p):
            abort_bad_free(k, p, load(k, a.region))
        resize_last(k, a, p, rounded(size))
        return p
    if old // 2 <= size <= old:
        return p
    return move(k, a, p, old, size)


@jit
def calloc(k, a, size):
    """Allocate, and clear unless the memory is fresh from the kernel."""
    p = malloc(k, a, size)
    if p and size <= MMAP_THRESHOLD and not a.clean:
        clear(k, p, size)
    return p


@jit
def aligned_alloc(k, a, alignment, size):
    """Carve a gap up to the alignment, as a dead object; map a request that no region can hold."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    lead = align_up(first_object(0), alignment)
    if size > MMAP_THRESHOLD or lead + rounded(size) > region_size() - ALIGNMENT:
        return mapped_alloc(k, a, max(alignment, region_size()), size, NONE_LIVE)
    if align_up(a.carve, alignment) + rounded(size) > a.limit and not next_region(k, a):
        return 0
    p = align_up(a.carve, alignment)
    set_bit(k, edge_word(p), p)
    a.carve = p
    return malloc(k, a, size)


@jit
def trim(k, a):
    """Unmap the dead regions, and the current one if it has no live object."""
    while a.dead:
        region = a.dead
        a.dead = unlink(k, a.dead, region)
        if munmap(k, region, region_size()) < 0:
            a.dead = link(k, a.dead, region)
            return
        a.dead_regions -= 1
    if a.region == 0 or load(k, a.region) + a.born != NONE_LIVE:
        return
    if munmap(k, a.region, region_size()) == 0:
        a.region = 0
        a.carve = 0
        a.limit = 0
        a.born = 0


@jit
def reset(k, a):
    """Drop all objects: restart the current region, bury the full ones, unmap large objects."""
    while a.mapped:
        mapped_free(k, a, a.mapped)
    if a.region:
        enter(k, a, a.region, 0)
    while a.full:
        region = a.full
        a.full = unlink(k, a.full, region)
        for word in range(region + HEADER + map_size(), first_object(region), 8):
            store(k, word, 0)
        bury(k, a, region)


# --- Walk and check -------------------------------------------------------------------------------


@jit
def walk_region(k, a, rows, n, region):
    """List a region's header and objects; list the rest as free."""
    p = first_object(region)
    n = emit(rows, n, region, p - region, BLOCK_HEADER)
    q = next_edge(k, p)
    while q:
        kind = BLOCK_USED if load(k, alive_word(p)) & bit_of(p) else BLOCK_FREE
        n = emit(rows, n, p, q - p, kind)
        p = q
        q = next_edge(k, p)
    return emit(rows, n, p, region + region_size() - p, BLOCK_FREE)


@jit
def walk(k, a, rows):
    """List the regions that hold objects, each dead region as one free block, the large objects."""
    n = 0
    if a.region:
        n = walk_region(k, a, rows, n, a.region)
    region = a.full
    while region:
        n = walk_region(k, a, rows, n, region)
        region = load(k, region + NEXT)
    region = a.dead
    while region:
        n = emit(rows, n, region, region_size(), BLOCK_FREE)
        region = load(k, region + NEXT)
    return mapped_walk(k, a, rows, n)


@jit
def list_length(k, region):
    """Return the number of regions on a list, or -1 if a link is broken."""
    count = 0
    before = 0
    while region:
        if load(k, region + PREV) != before:
            return -1
        count += 1
        before = region
        region = load(k, region + NEXT)
    return count


@jit
def check_region(k, a, region, live):
    """Compare a region's maps with each other and with ``live``; return 0 or a CHECKS key."""
    alive = 0
    for word in range(region + HEADER, region + HEADER + map_size(), 8):
        bits = load(k, word + map_size())
        if bits & ~load(k, word):
            return 2
        while bits:
            alive += 1
            bits &= bits - 1
    return 0 if live == NONE_LIVE + alive else 3


@jit
def check(k, a):
    """Check the lists, the counts against the bit maps, and that no full region is dead."""
    if list_length(k, a.full) < 0:
        return 1
    dead = list_length(k, a.dead)
    if dead < 0:
        return 1
    if dead != a.dead_regions:
        return 6
    if a.region:
        code = check_region(k, a, a.region, load(k, a.region) + a.born)
        if code:
            return code
        if not load(k, edge_word(a.carve)) & bit_of(a.carve) or next_edge(k, a.carve):
            return 4
    region = a.full
    while region:
        live = load(k, region)
        if live == NONE_LIVE:
            return 5
        code = check_region(k, a, region, live)
        if code:
            return code
        region = load(k, region + NEXT)
    return 0
