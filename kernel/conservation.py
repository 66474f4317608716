"""Is every frame somewhere, and only there?  For after every operation of a run.

:func:`check_frames` looks at everything: O(frames + pages of the touched slots).
:func:`check_counts` compares sums only, O(1), and notices what changes a number.  Both return 0 or
a code of CHECKS; ``k.phys.bad`` names the frame, page, slot or list.
"""

from kernel import types
from kernel.engine.jit import jit
from kernel.frames import max_order, order_of, owner_of, pfn_of, zone_of
from kernel.page import fold_page, pages_around, pmd_order, table_pages

#: What a code means; ``bad`` is what the last column names.
CHECKS = {
    1: "a frame's record is no possible one (frame)",
    2: "a frame is part of two blocks (frame)",
    3: "two free buddies were not merged (frame)",
    4: "a frame was taken by nobody (frame)",
    5: "a list is broken (first frame that is wrong, or -1)",
    6: "a list has not all the blocks of its kind (state, or order past the states)",
    7: "free frames of a zone are miscounted (zone)",
    8: "frames held by others have changed in number (their number now)",
    9: "a frame belongs to a page that is not mapped to it (frame)",
    10: "pages are mapped that have no frame of their own (their number)",
    11: "rss is not the number of mapped frames (that number)",
    12: "frames of page tables are not as many as page tables (their number)",
    13: "a swap slot belongs to a page that is not in it (slot)",
    14: "pages are swapped out that have no slot of their own (their number)",
    15: "a free swap slot is lost, or on no chain (slot)",
    16: "a page is set aside as locked that is not (frame)",
    17: "frames are lost or there twice: free + tables + mapped + others (the sum)",
}


@jit
def _bad(k, code, what):
    """Note what was wrong; returns ``code``."""
    k.phys.bad = what
    return code


@jit(cold=True)
def check_counts(k):
    """Compare the sums; 0 or a code of CHECKS."""
    phys = k.phys
    total = phys.others
    for z in range(types.NR_ZONES):
        free = 0
        for o in range(types.NR_ORDERS):
            free += k.free_area[z * types.NR_ORDERS + o].frames
        if free != k.zone[z].free:
            return _bad(k, 7, z)
        total += free
    mapped = 0
    for state in range(types.INACTIVE, types.NR_STATES):
        mapped += k.lru[state].frames
    mm = k.mm
    if mapped != mm.rss:
        return _bad(k, 11, mapped)
    tables = k.lru[types.TABLE].frames
    if tables != table_pages(k.mm):
        return _bad(k, 12, tables)
    total += mapped + tables
    if total != phys.nr_frames:
        return _bad(k, 17, total)
    return 0


@jit
def _check_list(k, a, state, order):
    """Walk list ``a`` of blocks in ``state`` (and of ``order``, unless -1)."""
    blocks = 0
    frames = 0
    before = -1
    pfn = int(a.head)
    while pfn >= 0:
        f = k.frame[pfn]
        if f.prev != before or f.state != state or blocks > a.blocks:
            return _bad(k, 5, pfn)
        if order >= 0 and f.order != order:
            return _bad(k, 5, pfn)
        blocks += 1
        frames += 1 << order_of(k, pfn)
        before = pfn
        pfn = int(f.next)
    if a.tail != before or a.blocks != blocks or a.frames != frames:
        return _bad(k, 5, -1)
    return 0


@jit
def _check_lists(k):
    """Walk all lists."""
    for n in range(types.NR_ZONES * types.NR_ORDERS):
        code = _check_list(k, k.free_area[n], types.FREE, n % types.NR_ORDERS)
        if code:
            return code
    for state in range(types.TABLE, types.NR_STATES):
        code = _check_list(k, k.lru[state], state, -1)
        if code:
            return code
    return 0


@jit
def _check_owner(k, pfn):
    """Whether the mapped block at ``pfn`` and its pages point at each other."""
    order = order_of(k, pfn)
    owner = owner_of(k, pfn)
    if order and (order != pmd_order() or owner & ((1 << order) - 1)):
        return False
    for n in range(1 << order):
        page = fold_page(owner + n)
        f = int(k.pte[page])
        if f & (types.PTE_PRESENT | types.PTE_SWAP) != types.PTE_FRAME:
            return False
        if pfn_of(k, page) != pfn + n or (f & types.PTE_HUGE != 0) != (order != 0):
            return False
    return True


@jit
def _check_block(k, pfn):
    """Look at the block that starts at ``pfn``."""
    state = int(k.frame[pfn].state)
    order = order_of(k, pfn)
    if state <= types.INSIDE or state >= types.NR_STATES or order < 0 or order > max_order():
        return _bad(k, 1, pfn)
    if state == types.TAKEN:
        return _bad(k, 4, pfn)
    z = zone_of(k, pfn)
    if pfn & ((1 << order) - 1) or pfn + (1 << order) > k.zone[z].end:
        return _bad(k, 1, pfn)
    if state in (types.OTHERS, types.TABLE) and order:
        return _bad(k, 1, pfn)
    for n in range(pfn + 1, pfn + (1 << order)):
        if k.frame[n].state != types.INSIDE:
            return _bad(k, 2, n)
    if state == types.FREE and order < max_order():
        buddy = pfn ^ (1 << order)
        if k.frame[buddy].state == types.FREE and order_of(k, buddy) == order:
            return _bad(k, 3, pfn)
    if state >= types.INACTIVE:
        if not _check_owner(k, pfn):
            return _bad(k, 9, pfn)
        if state == types.UNEVICTABLE and not k.pte[fold_page(owner_of(k, pfn))] & types.PTE_MLOCK:
            return _bad(k, 16, pfn)
    return 0


@jit
def _check_blocks(k):
    """Walk physical memory block by block; every list must hold as many as are found."""
    free = 0
    others = 0
    listed = 0
    pfn = 0
    while pfn < k.phys.nr_frames:
        code = _check_block(k, pfn)
        if code:
            return code
        state = k.frame[pfn].state
        if state == types.FREE:
            free += 1
        elif state == types.OTHERS:
            others += 1
        else:
            listed += 1
        pfn += 1 << order_of(k, pfn)
    if others != k.phys.others:
        return _bad(k, 8, others)
    for n in range(types.NR_ZONES * types.NR_ORDERS):
        free -= k.free_area[n].blocks
    if free:
        return _bad(k, 6, types.FREE)
    for state in range(types.TABLE, types.NR_STATES):
        listed -= k.lru[state].blocks
    if listed:
        return _bad(k, 6, types.TABLE)
    return 0


@jit
def _check_pages(k):
    """Count the pages with a frame or a slot; with the reverse maps checked, none has two."""
    frames = 0
    swapped = 0
    for t in range(k.mm.nr_touched):
        slot = k.touched[t]
        for page in pages_around(slot << pmd_order()):
            f = k.pte[page]
            if f & types.PTE_FRAME:
                frames += 1
            if f & types.PTE_SWAP:
                swapped += 1
    if frames != k.mm.rss:
        return _bad(k, 10, frames)
    if swapped != k.phys.swap_used:
        return _bad(k, 14, swapped)
    return 0


@jit
def _check_swap(k):
    """Every slot holds a page that knows it, or is on the chain of the free ones."""
    phys = k.phys
    free = 0
    for slot in range(phys.swap_fresh):
        page = k.swap[slot]
        if page < 0:
            free += 1
        else:
            p = fold_page(page)
            if not k.pte[p] & types.PTE_SWAP or pfn_of(k, p) != slot:
                return _bad(k, 13, slot)
    slot = int(phys.swap_free)
    while slot >= 0:
        free -= 1
        if k.swap[slot] >= 0 or free < 0:
            return _bad(k, 15, slot)
        slot = -int(k.swap[slot]) - 2
    if free or phys.swap_fresh > phys.nr_swap:
        return _bad(k, 15, phys.swap_fresh)
    return 0


@jit(cold=True)
def check_frames(k):
    """Check everything; 0 or a code of CHECKS."""
    code = _check_lists(k)
    if code == 0:
        code = _check_blocks(k)
    if code == 0:
        code = check_counts(k)
    if code == 0:
        code = _check_swap(k)
    if code == 0:
        code = _check_pages(k)
    return code
