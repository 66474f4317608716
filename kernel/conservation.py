"""Check that every frame is accounted for exactly once; can run after every operation.

:func:`check_frames` checks every frame, list and page: O(frames + pages of the touched slots).
:func:`check_counts` compares sums only, O(1): it detects errors that change a count.  Both return 0
or a code of CHECKS; ``k.phys.bad`` identifies the frame, page, slot or list.
"""

from kernel import types
from kernel.engine.jit import jit
from kernel.frames import max_order, order_of, owner_of, pfn_of, zone_of
from kernel.page import fold_page, pages_around, pmd_order, table_pages

#: Meaning of each code; in parentheses the value of ``k.phys.bad``.
CHECKS = {
    1: "a frame's record is invalid (frame)",
    2: "a frame is part of two blocks (frame)",
    3: "two free buddies were not merged (frame)",
    4: "an allocated frame is neither mapped nor a page table (frame)",
    5: "a list is broken (first wrong frame, or -1 for wrong totals)",
    6: "a list does not hold all blocks in its state (FREE, or TABLE for any other state)",
    7: "a zone's count of free frames is wrong (zone)",
    8: "the number of frames held by others has changed (number now)",
    9: "a frame and the page that it records do not refer to each other (frame)",
    10: "the number of pages with a frame differs from rss (number of pages)",
    11: "the number of mapped frames differs from rss (number of frames)",
    12: "the number of page-table frames differs from that of page tables (number of frames)",
    13: "a swap slot and the page that it records do not refer to each other (slot)",
    14: "the number of swapped-out pages differs from that of used slots (number of pages)",
    15: "the chain of free swap slots is broken or incomplete (slot)",
    16: "a frame is on the unevictable list but its page is not locked (frame)",
    17: "free + tables + mapped + others is not the number of frames (sum)",
}


@jit
def _bad(k, code, what):
    """Record ``what`` in ``k.phys.bad`` and return ``code``."""
    k.phys.bad = what
    return code


@jit(cold=True)
def check_counts(k):
    """Compare the counts of frames; return 0 or a code of CHECKS."""
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
    """Check list ``a`` of blocks in ``state`` (and of ``order``, unless -1); return 0 or a code."""
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
    """Check all lists; return 0 or a code."""
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
    """Return True if the mapped block at ``pfn`` and its pages refer to each other."""
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
    """Check the block that starts at ``pfn``; return 0 or a code."""
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
    """Check physical memory block by block, and that the lists hold as many blocks as it has."""
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
    """Compare the number of pages with a frame or slot with the number of frames and slots.

    The reverse maps have been checked before, so equal numbers mean a one-to-one relation.
    """
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
    """Check that every swap slot holds a page that refers to it, or is on the free chain."""
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
    """Run all checks; return 0 or the first code of CHECKS."""
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
