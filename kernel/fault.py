"""Demand paging: serve page faults, and unmap pages again.

                 read                    write
    untouched ──────────► zero page ──────────────► frame
        │                 (1 fault, not in RSS)     (1 more fault, in RSS)
        └──────────────────────write──────────────► frame (1 fault, in RSS)

The hook of every access (kernel.access) checks the rights in the page's state (PTE_READ,
PTE_WRITE).  A mapped page may lack them, for example after mprotect: its next access is handled
here but counts no fault.  An unmapped frame leaves its words in the window; the next fault clears
them.

With the switch FRAMES every page-table page and every page in RssAnon has a frame (kernel.frames),
and an anonymous page may be in the swap area instead.  Pages of files and of shared memory
(PTE_FILE) take no frame: they belong to the rest of the system.  Without FRAMES the calls to
kernel.frames, kernel.swap and kernel.vmscan are empty; without TLB so are those to kernel.tlb.
"""

from kernel import types
from kernel.engine.jit import jit
from kernel.engine.memory import clear_page
from kernel.engine.switches import FRAMES, PAGE_SHIFT
from kernel.frames import free_table_frames, map_frame, munlock_frame
from kernel.huge import (
    cancel_lazy_free,
    folio_batch,
    folio_of,
    huge_page_allowed,
    map_huge_page,
    map_huge_zero,
    set_folio,
    split_huge_slot,
)
from kernel.merge import anon_vma_prepare
from kernel.page import (
    next_slot,
    page_of,
    page_size,
    page_start,
    pages_of,
    pages_per_slot,
    pmd_addr_end,
    pmd_shift,
    pmd_size,
    slot_start,
)
from kernel.pgtable import alloc_tables, free_ptes
from kernel.stack import expand_stack
from kernel.task import kill
from kernel.tlb import flush_present, flush_tlb_page
from kernel.vma import add_rss, find_vma
from kernel.vmscan import get_frame, get_huge_frame, release_page, swap_in

#: Results of :func:`fault_page`: no fault, or the type of fault that was served.
NO_FAULT, FAULT_READ, FAULT_WRITE, FAULT_COW, FAULT_HUGE, FAULT_FILE, FAULT_SWAP = range(7)


@jit
def _fits(k, pages):
    """Return True if memory holds ``pages`` more; always True with FRAMES (see get_frame)."""
    mm = k.mm
    return FRAMES or mm.memory == 0 or mm.rss + mm.rss_file + pages <= mm.memory


@jit
def _check_memory(k, addr):
    """Kill the process if memory cannot hold one more page, the page of ``addr``."""
    if not _fits(k, 1):
        kill(k, types.SIGKILL, 0, addr, 1)


@jit
def _add_frame(k, addr, pfn):
    """Map the newly allocated frame ``pfn`` at the page of ``addr``: readable, writable, dirty."""
    map_frame(k, pfn, addr)
    k.pte[page_of(addr)] = types.PTE_READ | types.PTE_WRITE | types.PTE_FRAME | types.PTE_DIRTY
    add_rss(k, 1)


@jit(cold=True)
def _fault_huge(k, addr, write):
    """Serve a fault with a huge page; return False if memory has no room for one."""
    alloc_tables(k, addr)
    if not write:
        map_huge_zero(k, addr)
        return True
    pfn = get_huge_frame(k)
    if pfn < 0 or not _fits(k, pages_per_slot()):
        return False
    if k.pte[page_of(addr)] & types.PTE_HUGE:
        flush_tlb_page(k, addr)
    map_huge_page(k, addr)
    map_frame(k, pfn, slot_start(addr))
    return True


@jit(cold=True)
def _fault_file(k, i, addr, write):
    """Map a page of the file or shared memory that area ``i`` maps; a private write copies it."""
    mm = k.mm
    page = page_of(addr)
    alloc_tables(k, addr)
    if k.pte[page] & types.PTE_WORDS and not k.pte[page] & types.PTE_FILE:
        clear_page(k, page)
    if write and not k.vma[i].vm_flags & types.VM_SHARED:
        anon_vma_prepare(k, i)
        pfn = get_frame(k, addr)
        if k.pte[page] & types.PTE_FILE:
            flush_tlb_page(k, addr)
            mm.rss_file -= 1
        _check_memory(k, addr)
        _add_frame(k, addr, pfn)
        return FAULT_COW
    _check_memory(k, addr)
    k.pte[page] = types.PTE_READ | types.PTE_FILE
    mm.rss_file += 1
    return FAULT_FILE


@jit
def _is_served(k, i, f, write):
    """Return True if page state ``f`` in area ``i`` lacks at most rights for the access."""
    if f & types.PTE_FILE:
        return not write or k.vma[i].vm_flags & types.VM_SHARED != 0
    return f & types.PTE_FRAME != 0 or (f & types.PTE_ZERO != 0 and not write)


@jit
def _fault_page(k, i, addr, write):
    """Map the page of ``addr`` in area ``i``, for writing if ``write``; return the fault's type.

    The caller has checked that the area allows the access.  Kills the process when physical memory
    is exhausted.
    """
    page = page_of(addr)
    f = k.pte[page]
    if f & types.PTE_SWAP:
        swap_in(k, addr)
        return FAULT_SWAP
    if _is_served(k, i, f, write):
        return NO_FAULT
    if k.vma[i].vm_file:
        return _fault_file(k, i, addr, write)
    if k.pmd[addr >> pmd_shift()] == types.PMD_NONE:
        if huge_page_allowed(k, i, addr):
            anon_vma_prepare(k, i)
            if _fault_huge(k, addr, write):
                return FAULT_HUGE
    elif f & types.PTE_HUGE:
        if _fault_huge(k, addr, write):
            return FAULT_HUGE
        split_huge_slot(k, addr)
    alloc_tables(k, addr)
    if f & types.PTE_WORDS:
        clear_page(k, page)
    if not write:
        k.pte[page] = types.PTE_READ | types.PTE_ZERO
        return FAULT_READ
    anon_vma_prepare(k, i)
    pfn = get_frame(k, addr)
    _check_memory(k, addr)
    if f & types.PTE_ZERO:
        flush_tlb_page(k, addr)
    _add_frame(k, addr, pfn)
    return FAULT_COW if f & types.PTE_ZERO else FAULT_WRITE


@jit
def fault_page(k, i, addr, write):
    """Map the page of ``addr`` as :func:`_fault_page` does, and mark it locked in a locked area."""
    kind = _fault_page(k, i, addr, write)
    if kind != NO_FAULT and k.vma[i].vm_flags & types.VM_LOCKED:
        start = slot_start(addr) if kind == FAULT_HUGE else page_start(addr)
        size = pmd_size() if kind == FAULT_HUGE else page_size()
        for page in pages_of(start, start + size):
            if k.pte[page] & types.PTE_FRAME:
                k.pte[page] |= types.PTE_MLOCK
    return kind


@jit
def _is_minor(kind):
    """Return True if a fault of this type counts as a minor fault."""
    return kind not in (NO_FAULT, FAULT_SWAP)


@jit(cold=True)
def handle_mm_fault(k, addr, write):
    """Serve an access to ``addr`` (write: 1 or 0) that its page state does not allow.

    Kills the process with SIGSEGV if no area contains ``addr`` or the area forbids the access.
    """
    mm = k.mm
    if addr >> types.ADDRESS_BITS not in (0, -1):
        # Non-canonical: the hardware does not translate it, and Linux reports no address.
        kill(k, types.SIGSEGV, types.SI_KERNEL, 0, write)
    i = find_vma(k, addr)
    if i == mm.map_count or (k.vma[i].vm_start > addr and not expand_stack(k, i, addr)):
        kill(k, types.SIGSEGV, types.SEGV_MAPERR, addr, write)
    flags = k.vma[i].vm_flags
    # x86 cannot map write-only or execute-only pages: any right permits a read.
    allowed = types.VM_WRITE if write else types.VM_READ | types.VM_WRITE | types.VM_EXEC
    if not flags & allowed:
        kill(k, types.SIGSEGV, types.SEGV_ACCERR, addr, write)
    kind = fault_page(k, i, addr, write)
    if _is_minor(kind):
        mm.minflt += 1
    if kind == FAULT_READ:
        mm.flt_read += 1
    elif kind == FAULT_WRITE:
        mm.flt_write += 1
    elif kind == FAULT_COW:
        mm.flt_cow += 1
    elif kind == FAULT_HUGE:
        mm.flt_huge += 1
    elif kind == FAULT_FILE:
        mm.flt_file += 1
    page = page_of(addr)
    if write:
        if k.pte[page] & types.PTE_LAZY:
            cancel_lazy_free(k, page)
        k.pte[page] |= types.PTE_READ | types.PTE_WRITE | types.PTE_DIRTY
    else:
        k.pte[page] |= types.PTE_READ


@jit(cold=True)
def populate_area(k, i, start, end, write):
    """Fault in the pages [start, end) of area ``i`` in advance, as get_user_pages does."""
    mm = k.mm
    if mm.layout_only:
        return
    addr = start
    while addr < end:
        kind = fault_page(k, i, addr, write)
        if _is_minor(kind):
            mm.minflt += 1
            if kind == FAULT_HUGE:
                mm.flt_huge += 1
            else:
                mm.flt_populate += 1
        elif write and k.pte[page_of(addr)] & types.PTE_LAZY:
            cancel_lazy_free(k, page_of(addr))
        addr += page_size()


@jit(cold=True)
def zap_pages(k, start, end):
    """Unmap the pages of [start, end); the areas stay.  An empty slot takes one step."""
    mm = k.mm
    flush_present(k, start, end)
    start = next_slot(k, start, end)
    while start < end:
        stop = pmd_addr_end(start, end)
        if stop - start < pmd_size():
            split_huge_slot(k, start)
        before = mm.zapped
        for page in pages_of(start, stop):
            f = k.pte[page]
            if f:
                release_page(k, page, f)
                if f & types.PTE_FRAME:
                    mm.rss -= 1
                    mm.zapped += 1
                    if mm.folios and folio_of(k, page):
                        set_folio(k, page, 0)
                elif f & types.PTE_FILE:
                    mm.rss_file -= 1
                k.pte[page] = f & types.PTE_WORDS
        if k.pmd[start >> pmd_shift()] == types.PMD_HUGE:
            k.pmd[start >> pmd_shift()] = types.PMD_NONE
            mm.nr_ptes -= 1
            if mm.zapped > before:
                mm.zapped_huge += 1
            free_table_frames(k, 1)
        start = next_slot(k, stop, end)


@jit(cold=True)
def lock_frames(k, start, end, lock):
    """Mark the frames of [start, end) as locked in memory, or as unlocked if ``lock`` is 0.

    A huge page is locked only if all of its pages are in the range.
    """
    addr = next_slot(k, start, end)
    while addr < end:
        stop = pmd_addr_end(addr, end)
        page = page_of(addr)
        n = 1
        lockable = lock and k.pte[page] & types.PTE_FRAME
        if lockable and folio_of(k, page):
            n = folio_batch(k, addr, stop)
            lockable = n == pages_per_slot()
        for i in range(page, page + n):
            if lockable:
                k.pte[i] |= types.PTE_MLOCK
            else:
                k.pte[i] &= types.PTE_ALL ^ types.PTE_MLOCK
                munlock_frame(k, i)
        addr = next_slot(k, addr + (n << PAGE_SHIFT), end)


@jit
def free_whole_pte_pages(k, start, end):
    """Free the PTE pages of the slots that [start, end) contains entirely, after zap_pages."""
    free_ptes(k, start, end, start, end)


@jit(cold=True)
def drop_rights(k, start, end):
    """Remove the rights of all pages in [start, end), so that the next access checks the area.

    mprotect's effect on page tables.  Splits huge mappings that are only partly in the range.
    """
    flush_present(k, start, end)
    start = next_slot(k, start, end)
    while start < end:
        stop = pmd_addr_end(start, end)
        if stop - start < pmd_size():
            split_huge_slot(k, start)
        for page in pages_of(start, stop):
            k.pte[page] &= types.PTE_ALL ^ (types.PTE_READ | types.PTE_WRITE | types.PTE_STORE)
        start = next_slot(k, stop, end)
