"""Reclaim: free frames when memory is short, and kill the process when none can be freed.

                 fault                        second access seen
    (new page) ────────► INACTIVE ◄────────────────────────► ACTIVE
                            │  tail: not accessed since the last scan
                            ▼
                         swapped out, or dropped if lazily freed

Both lists are scanned from the tail.  A real MMU sets an accessed bit in the page-table entry; here
the page's rights (PTE_READ, PTE_WRITE) replace it: the scan removes them and the next access
restores them without counting a fault.  When an allocation would bring memory below the low
watermark, reclaim runs up to the high watermark, at once and completely, like a kswapd that takes
no time.  Lazily freed pages (MADV_FREE) have a separate list and are reclaimed first.  Pages of
locked areas are never reclaimed: the scan marks them and moves them to the unevictable list.  A
huge page is split before its pages are reclaimed; pages of it that were never written map the zero
page instead.  The swap area has no read-ahead.  The functions that other modules call are hooks of
the switch FRAMES: empty without it.
"""

from kernel import types
from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.frames import (
    alloc_frames,
    enter_table,
    map_frame,
    move_to_list,
    order_of,
    owner_of,
    pfn_of,
    release_frame,
    set_pfn,
    zone_watermark_ok,
)
from kernel.huge import folio_id, split_folio
from kernel.page import fold_page, pages_of, pmd_order
from kernel.swap import alloc_slot, free_slot, swap_full
from kernel.task import kill
from kernel.tlb import flush_tlb_page
from kernel.vma import add_rss, find_vma

#: A page that was accessed since the last scan has one of these bits.
_YOUNG = types.PTE_READ | types.PTE_WRITE
#: Mask that removes the rights from a page's state.
_OLD = types.PTE_ALL ^ (types.PTE_READ | types.PTE_WRITE | types.PTE_STORE)

#: Decisions about a page at the tail of the inactive list.
_KEEP, _ACTIVATE, _RECLAIM = range(3)


@jit
def _locked(k, page):
    """Return True if page number ``page`` is locked or in a locked area."""
    if k.pte[fold_page(page)] & types.PTE_MLOCK:
        return True
    return k.vma[find_vma(k, page << PAGE_SHIFT)].vm_flags & types.VM_LOCKED != 0


@jit
def _set_aside(k, pfn):
    """Mark the block at ``pfn`` as locked and move it to the unevictable list."""
    page = fold_page(owner_of(k, pfn))
    for p in range(page, page + (1 << order_of(k, pfn))):
        k.pte[p] |= types.PTE_MLOCK
    move_to_list(k, pfn, types.UNEVICTABLE)


@jit
def _test_and_clear_young(k, pfn):
    """Return True if the block at ``pfn`` was accessed since the last scan; clear that state."""
    page = fold_page(owner_of(k, pfn))
    young = False
    for p in range(page, page + (1 << order_of(k, pfn))):
        f = int(k.pte[p])
        if f & _YOUNG:
            young = True
            k.pte[p] = f & _OLD
    return young


@jit
def _references(k, pfn):
    """Decide about the block at ``pfn``: a first access keeps it, a second activates it."""
    if not _test_and_clear_young(k, pfn):
        return _RECLAIM
    f = k.frame[pfn]
    was = f.referenced
    f.referenced = 1
    return _ACTIVATE if was else _KEEP


@jit
def _drop(k, pfn):
    """Drop the page of frame ``pfn`` without saving it: it reads as zeros afterwards."""
    owner = owner_of(k, pfn)
    page = fold_page(owner)
    k.pte[page] = int(k.pte[page]) & types.PTE_WORDS
    release_frame(k, page)
    flush_tlb_page(k, owner << PAGE_SHIFT)
    k.mm.rss -= 1
    k.vmstat.pgsteal += 1
    k.vmstat.pglazyfreed += 1


@jit
def _swap_out(k, pfn):
    """Swap out the page of frame ``pfn``; a swap slot is free."""
    owner = owner_of(k, pfn)
    page = fold_page(owner)
    k.pte[page] = int(k.pte[page]) & (types.PTE_WORDS | types.PTE_DIRTY) | types.PTE_SWAP
    release_frame(k, page)
    set_pfn(k, page, alloc_slot(k, owner))
    flush_tlb_page(k, owner << PAGE_SHIFT)
    k.mm.rss -= 1
    k.vmstat.pgsteal += 1
    k.vmstat.pswpout += 1


@jit
def _huge_part(k, pfn):
    """Return the id of the huge page that the block at ``pfn`` is (part of); 0 for none."""
    return folio_id(k, fold_page(owner_of(k, pfn)))


@jit
def _split(k, pfn):
    """Split the huge page that the block at ``pfn`` is (part of); this may free its frames."""
    split_folio(k, _huge_part(k, pfn))


@jit
def _shrink_lazy(k):
    """Scan the tail of the lazy list: drop it unless it is locked or was accessed or written."""
    pfn = k.lru[types.LAZY].tail
    k.vmstat.pgscan += 1 << order_of(k, pfn)
    owner = owner_of(k, pfn)
    if not k.pte[fold_page(owner)] & types.PTE_LAZY:
        k.frame[pfn].referenced = 0
        move_to_list(k, pfn, types.ACTIVE)
    elif _locked(k, owner):
        _set_aside(k, pfn)
    elif _references(k, pfn) != _RECLAIM:
        move_to_list(k, pfn, types.LAZY)
    elif _huge_part(k, pfn):
        _split(k, pfn)
    else:
        _drop(k, pfn)


@jit
def _shrink_active(k):
    """Move the tail of the active list to the inactive list, or aside if it is locked."""
    pfn = k.lru[types.ACTIVE].tail
    if _locked(k, owner_of(k, pfn)):
        _set_aside(k, pfn)
        return
    _test_and_clear_young(k, pfn)
    k.vmstat.pgdeactivate += 1 << order_of(k, pfn)
    move_to_list(k, pfn, types.INACTIVE)


@jit
def _shrink_inactive(k):
    """Scan the tail of the inactive list: reclaim it unless it is locked or was accessed.

    A swap slot is free.
    """
    pfn = k.lru[types.INACTIVE].tail
    frames = 1 << order_of(k, pfn)
    k.vmstat.pgscan += frames
    owner = owner_of(k, pfn)
    if _locked(k, owner):
        _set_aside(k, pfn)
        return
    verdict = _references(k, pfn)
    if verdict == _KEEP:
        move_to_list(k, pfn, types.INACTIVE)
    elif verdict == _ACTIVATE:
        k.vmstat.pgactivate += frames
        move_to_list(k, pfn, types.ACTIVE)
    elif _huge_part(k, pfn):
        _split(k, pfn)
    elif k.pte[fold_page(owner)] & types.PTE_LAZY:
        _drop(k, pfn)
    else:
        _swap_out(k, pfn)


@jit
def _inactive_is_low(k):
    """Return True if active : inactive exceeds its target, √(10 × GiB) : 1 but at least 1 : 1."""
    inactive = k.lru[types.INACTIVE].frames
    active = k.lru[types.ACTIVE].frames
    gib = (inactive + active) >> (30 - PAGE_SHIFT)
    ratio = 1
    while (ratio + 1) * (ratio + 1) <= 10 * gib:
        ratio += 1
    return inactive * ratio < active


@jit
def _balanced(k):
    """Return True if any zone is above its high watermark."""
    return zone_watermark_ok(k, types.ZONE_NORMAL, 0, types.WMARK_HIGH) or zone_watermark_ok(
        k, types.ZONE_DMA32, 0, types.WMARK_HIGH
    )


@jit(cold=True)
def balance(k):
    """Reclaim until memory is balanced or nothing reclaimable is left.

    The loop ends: no access happens in between, so each page loses its rights at most once, and
    after that it only moves towards the tail of the inactive list.
    """
    k.vmstat.kswapd_wake += 1
    while not _balanced(k):
        if k.lru[types.LAZY].blocks:
            _shrink_lazy(k)
        elif swap_full(k):
            return
        elif _inactive_is_low(k):
            _shrink_active(k)
        elif k.lru[types.INACTIVE].blocks:
            _shrink_inactive(k)
        else:
            return


@jit(when="FRAMES")
def get_frame(k, addr):
    """Allocate a frame for the page of ``addr``, state TAKEN, reclaiming others if needed.

    Kills the process if neither frames nor swap slots are left.
    """
    pfn = alloc_frames(k, 0, types.WMARK_LOW)
    if pfn >= 0:
        return pfn
    balance(k)
    pfn = alloc_frames(k, 0, types.WMARK_MIN)
    if pfn < 0:
        k.vmstat.oom_kill += 1
        kill(k, types.SIGKILL, 0, addr, 1)
    return pfn


@jit(cold=True, when="FRAMES")
def get_huge_frame(k):
    """Allocate frames for a huge page without reclaim; return the first, state TAKEN, or -1."""
    pfn = alloc_frames(k, pmd_order(), types.WMARK_LOW)
    if pfn >= 0:
        k.vmstat.thp_fault_alloc += 1
    else:
        k.vmstat.thp_fault_fallback += 1
    return pfn


@jit(cold=True, when="FRAMES")
def take_table_frame(k, addr):
    """Allocate a frame for a page-table page that maps ``addr``; may reclaim or kill."""
    enter_table(k, get_frame(k, addr))


@jit(cold=True, when="FRAMES")
def swap_in(k, addr):
    """Read the page of ``addr`` back from its swap slot, without rights yet: a major fault.

    May swap out other pages, or kill the process.
    """
    page = fold_page(addr >> PAGE_SHIFT)
    pfn = get_frame(k, addr)
    free_slot(k, page)
    map_frame(k, pfn, addr)
    k.pte[page] = int(k.pte[page]) & (types.PTE_WORDS | types.PTE_DIRTY) | types.PTE_FRAME
    add_rss(k, 1)
    k.mm.majflt += 1
    k.vmstat.pswpin += 1


@jit(cold=True, when="FRAMES")
def release_page(k, page, f):
    """Free the frame or swap slot of folded page ``page``, in state ``f``, which is unmapped.

    The block of a huge mapping is freed as a whole, with its first page.
    """
    if f & types.PTE_SWAP:
        free_slot(k, page)
    elif f & types.PTE_FRAME and k.frame[pfn_of(k, page)].state != types.INSIDE:
        release_frame(k, page)


@jit(cold=True, when="FRAMES")
def lazy_page(k, page):
    """Move the frame, or block, of folded page ``page`` to the lazy list (MADV_FREE)."""
    pfn = pfn_of(k, page)
    k.pte[page] &= types.PTE_ALL ^ types.PTE_READ  # so that a scan sees the next access
    if k.frame[pfn].state == types.INACTIVE or k.frame[pfn].state == types.ACTIVE:
        k.frame[pfn].referenced = 0
        move_to_list(k, pfn, types.LAZY)


@jit
def _deactivate(k, pfn):
    """Mark the block at ``pfn`` as not recently accessed and make it inactive."""
    _test_and_clear_young(k, pfn)
    k.frame[pfn].referenced = 0
    if k.frame[pfn].state == types.ACTIVE:
        k.vmstat.pgdeactivate += 1 << order_of(k, pfn)
        move_to_list(k, pfn, types.INACTIVE)


@jit(cold=True, when="FRAMES")
def cold_pages(k, start, end):
    """Deactivate the pages of [start, end), all in one slot (MADV_COLD)."""
    for page in pages_of(start, end):
        if k.pte[page] & types.PTE_FRAME and k.frame[pfn_of(k, page)].state != types.INSIDE:
            _deactivate(k, pfn_of(k, page))


@jit(cold=True, when="FRAMES")
def page_out(k, page, n):
    """Swap out ``n`` pages from folded ``page`` on, single frames, while swap slots are free.

    Locked pages stay.
    """
    for p in range(page, page + n):
        if k.pte[p] & (types.PTE_FRAME | types.PTE_MLOCK) == types.PTE_FRAME and not swap_full(k):
            _swap_out(k, pfn_of(k, p))
