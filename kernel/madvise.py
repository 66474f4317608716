"""madvise: free, age, populate or make huge the pages of a range; the mapping stays."""

from kernel import types, uapi
from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import free_whole_pte_pages, populate_area, zap_pages
from kernel.huge import folio_id, folio_of, split_folio, split_huge_slot, split_partial_folios
from kernel.merge import modify_vma
from kernel.page import (
    next_slot,
    offset_in_page,
    page_align,
    page_of,
    page_size,
    pages_of,
    pages_per_slot,
    pmd_addr_end,
)
from kernel.swap import drop_slot
from kernel.tlb import flush_present
from kernel.vma import find_vma
from kernel.vmscan import cold_pages, lazy_page, page_out


@jit
def _advised_flags(flags, advice):
    """Return an area's flags after advice that only changes flags; -1 for other advice."""
    if advice == uapi.MADV_NORMAL:
        return flags & ~(types.VM_RAND_READ | types.VM_SEQ_READ)
    if advice == uapi.MADV_RANDOM:
        return flags & ~types.VM_SEQ_READ | types.VM_RAND_READ
    if advice == uapi.MADV_SEQUENTIAL:
        return flags & ~types.VM_RAND_READ | types.VM_SEQ_READ
    if advice == uapi.MADV_DONTFORK:
        return flags | types.VM_DONTCOPY
    if advice == uapi.MADV_DOFORK:
        return flags & ~types.VM_DONTCOPY
    if advice == uapi.MADV_DONTDUMP:
        return flags | types.VM_DONTDUMP
    if advice == uapi.MADV_DODUMP:
        return flags & ~types.VM_DONTDUMP
    if advice == uapi.MADV_WIPEONFORK:
        return flags | types.VM_WIPEONFORK
    if advice == uapi.MADV_KEEPONFORK:
        return flags & ~types.VM_WIPEONFORK
    if advice == uapi.MADV_HUGEPAGE:
        return flags & ~types.VM_NOHUGEPAGE | types.VM_HUGEPAGE
    if advice == uapi.MADV_NOHUGEPAGE:
        return flags & ~types.VM_HUGEPAGE | types.VM_NOHUGEPAGE
    return -1


@jit
def _refused(k, i, advice):
    """Return True if Linux refuses the advice for area ``i``."""
    v = k.vma[i]
    if advice == uapi.MADV_WIPEONFORK:
        return v.vm_file != 0 or v.vm_flags & types.VM_SHARED != 0
    if advice == uapi.MADV_DODUMP:
        return v.vm_flags & types.VM_SPECIAL != 0
    if advice in (uapi.MADV_DOFORK, uapi.MADV_DONTNEED_LOCKED):
        return v.vm_flags & types.VM_PFNMAP != 0
    if advice == uapi.MADV_FREE and v.vm_file:
        return True
    if advice in (uapi.MADV_DONTNEED, uapi.MADV_FREE, uapi.MADV_COLD, uapi.MADV_PAGEOUT):
        return v.vm_flags & (types.VM_LOCKED | types.VM_PFNMAP) != 0
    return False


@jit(cold=True)
def free_lazily(k, start, end):
    """Free the pages of [start, end) lazily (MADV_FREE).

    Reclaim may drop a page without saving it, unless the program writes to it before that.
    """
    flush_present(k, start, end)
    start = next_slot(k, start, end)
    while start < end:
        stop = pmd_addr_end(start, end)
        split_partial_folios(k, start, stop)
        for page in pages_of(start, stop):
            if k.pte[page] & types.PTE_FRAME:
                k.pte[page] &= types.PTE_ALL ^ (types.PTE_WRITE | types.PTE_STORE)
                k.pte[page] |= types.PTE_LAZY | types.PTE_UNBACKED
                lazy_page(k, page)
            else:
                drop_slot(k, page)
        start = next_slot(k, stop, end)


@jit(cold=True)
def deactivate(k, start, end, reclaim):
    """Age the pages of [start, end) (MADV_COLD), or reclaim them if ``reclaim`` (MADV_PAGEOUT).

    Reclaim drops lazily freed pages and swaps out the others.  Splits huge pages that are only
    partly in the range, and all that are swapped out.  Without FRAMES there are no swap area and no
    LRU lists: other pages stay, and MADV_COLD only splits.
    """
    start = next_slot(k, start, end)
    while start < end:
        stop = pmd_addr_end(start, end)
        split_partial_folios(k, start, stop)
        if reclaim:
            _reclaim(k, start, stop)
        else:
            cold_pages(k, start, stop)
        start = next_slot(k, stop, end)


@jit
def _lazy_pages(k, page, n):
    """Return the number of lazily freed pages among the ``n`` from folded ``page`` on."""
    lazy = 0
    for i in range(page, page + n):
        lazy += k.pte[i] & types.PTE_LAZY != 0
    return lazy


@jit(cold=True)
def _reclaim(k, start, end):
    """Reclaim [start, end), in one slot: drop lazily freed pages, swap out others if possible."""
    addr = start
    while addr < end:
        page = page_of(addr)
        n = 1
        if k.pte[page] & types.PTE_MLOCK:
            pass
        elif k.pte[page] & types.PTE_FRAME and folio_of(k, page):
            n = pages_per_slot()
            if k.pte[page] & types.PTE_UNBACKED == 0:
                split_folio(k, folio_id(k, page))
                page_out(k, page, n)
            elif _lazy_pages(k, page, n) < n:
                # Written to since MADV_FREE: the huge page stays, but is mapped page by page.
                split_huge_slot(k, addr)
                for i in range(page, page + n):
                    k.pte[i] &= types.PTE_ALL ^ (types.PTE_LAZY | types.PTE_UNBACKED)
            else:
                split_huge_slot(k, addr)  # the PTE page stays
                zap_pages(k, addr, addr + (n << PAGE_SHIFT))
        elif k.pte[page] & types.PTE_LAZY:
            zap_pages(k, addr, addr + page_size())
        else:
            page_out(k, page, n)
        addr += n << PAGE_SHIFT


@jit(cold=True)
def _advise_area(k, i, start, end, advice):
    """Apply advice to [start, end), a part of area ``i``.

    Returns the address at which to continue, or a negative errno.
    """
    if _refused(k, i, advice):
        return -uapi.EINVAL
    flags = _advised_flags(k.vma[i].vm_flags, advice)
    if flags >= 0:
        if flags == k.vma[i].vm_flags:
            return end
        j = modify_vma(k, i, start, end, flags)
        if j < 0:
            return -uapi.EAGAIN if j == -uapi.ENOMEM else j
        return k.vma[j].vm_end
    if advice in (uapi.MADV_DONTNEED, uapi.MADV_DONTNEED_LOCKED):
        zap_pages(k, start, end)
        free_whole_pte_pages(k, start, end)
    elif advice == uapi.MADV_FREE:
        free_lazily(k, start, end)
    elif advice in (uapi.MADV_COLD, uapi.MADV_PAGEOUT):
        deactivate(k, start, end, advice == uapi.MADV_PAGEOUT)
    return end


@jit(cold=True)
def _populate(k, start, end, write):
    """Fault in all of [start, end) (MADV_POPULATE_*).

    Returns 0, -ENOMEM at a hole, or -EINVAL at an area without the right.
    """
    need = types.VM_WRITE if write else types.VM_READ
    while start < end:
        i = find_vma(k, start)
        if i == k.mm.map_count or k.vma[i].vm_start > start:
            return -uapi.ENOMEM
        if not k.vma[i].vm_flags & need or k.vma[i].vm_flags & types.VM_PFNMAP:
            return -uapi.EINVAL
        stop = min(end, k.vma[i].vm_end)
        populate_area(k, i, start, stop, write)
        start = stop
    return 0


@jit
def _known(advice):
    """Return True if the model implements the advice."""
    return (
        _advised_flags(0, advice) >= 0
        or uapi.MADV_WILLNEED <= advice <= uapi.MADV_DONTNEED
        or advice == uapi.MADV_FREE
        or uapi.MADV_COLD <= advice <= uapi.MADV_DONTNEED_LOCKED
    )


@jit(cold=True)
def do_madvise(k, addr, length, advice):
    """Apply advice to [addr, addr + length); return 0 or a negative errno.

    A hole causes -ENOMEM, but only after the mapped parts have been served, as in Linux.
    """
    mm = k.mm
    if not _known(advice) or offset_in_page(addr):
        return -uapi.EINVAL
    if length == 0:
        return 0
    size = page_align(min(length, mm.task_size))
    # A length of 2**63 or more is negative here, and so is an address in the upper half.
    if size == 0 or (addr < 0 and size < 0) or ((addr < 0) != (size < 0) and addr + size >= 0):
        return -uapi.EINVAL
    if addr < 0:
        return -uapi.ENOMEM  # the upper half has no areas
    end = addr + size if size > 0 else mm.task_size
    if advice in (uapi.MADV_POPULATE_READ, uapi.MADV_POPULATE_WRITE):
        return _populate(k, addr, end, 1 if advice == uapi.MADV_POPULATE_WRITE else 0)
    result = 0
    while addr < end:
        i = find_vma(k, addr)
        if i == mm.map_count or k.vma[i].vm_start >= end:
            return -uapi.ENOMEM
        if k.vma[i].vm_start > addr:
            result = -uapi.ENOMEM
            addr = k.vma[i].vm_start
        addr = _advise_area(k, i, addr, min(end, k.vma[i].vm_end), advice)
        if addr < 0:
            return addr
    return result


@jit(cold=True)
def madvise(k, addr, length, advice):
    """Run and count the system call (:func:`do_madvise`)."""
    mm = k.mm
    mm.nr_madvise += 1
    result = do_madvise(k, addr, length, advice)
    if result < 0:
        mm.nr_failed += 1
    return result
