"""Pages and slots: address arithmetic, and the walk over mapped slots.

    an entry of   maps (4 KiB)     log2 of that   and points to
    PTE           4 KiB, a page    PAGE_SHIFT     a frame, or the zero page
    PMD           2 MiB, a slot    pmd_shift()    a PTE page, or a huge page
    PUD           1 GiB            pud_shift()    a PMD page
    PGD           512 GiB          pgd_shift()    a PUD page

A table page has page size / 8 entries.  ``k.pmd``, ``k.pud`` and ``k.pgd`` hold the entries of the
upper levels, indexed by address >> shift.  The page states, ``k.pte``, are indexed by *folded* page
number: a window of 2**WINDOW_BITS bytes represents the whole address space (kernel.access).
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT, WINDOW_BITS

# --- Sizes -------------------------------------------------------------------------------------


@jit(inline=True)
def page_size():
    """Return the page size, bytes."""
    return 1 << PAGE_SHIFT


@jit(inline=True)
def pmd_order():
    """Return log2 of the pages of a slot: the order of a huge page."""
    return PAGE_SHIFT - 3


@jit(inline=True)
def pages_per_slot():
    """Return the number of pages that one PMD entry maps, by a PTE page or as a huge page."""
    return 1 << pmd_order()


@jit(inline=True)
def pmd_shift():
    """Return log2 of the bytes that one PMD entry maps."""
    return PAGE_SHIFT + pmd_order()


@jit(inline=True)
def pud_shift():
    """Return log2 of the bytes that one PUD entry maps."""
    return pmd_shift() + pmd_order()


@jit(inline=True)
def pgd_shift():
    """Return log2 of the bytes that one PGD entry maps."""
    return pud_shift() + pmd_order()


@jit(inline=True)
def pmd_size():
    """Return the bytes that one PMD entry maps: the size of a slot and of a huge page."""
    return 1 << pmd_shift()


@jit(inline=True)
def pud_size():
    """Return the bytes that one PUD entry maps."""
    return 1 << pud_shift()


# --- Rounding ----------------------------------------------------------------------------------


@jit(inline=True)
def page_align(addr):
    """Round an address or length, bytes, up to whole pages."""
    return (addr + page_size() - 1) >> PAGE_SHIFT << PAGE_SHIFT


@jit(inline=True)
def page_start(addr):
    """Round an address down to the start of its page."""
    return addr >> PAGE_SHIFT << PAGE_SHIFT


@jit(inline=True)
def offset_in_page(addr):
    """Return the offset of ``addr`` in its page, bytes; 0 if it is aligned."""
    return addr & (page_size() - 1)


@jit(inline=True)
def slot_start(addr):
    """Round an address down to the start of its slot."""
    return addr >> pmd_shift() << pmd_shift()


@jit(inline=True)
def offset_in_slot(addr):
    """Return the offset of ``addr`` in its slot, bytes; 0 if it is aligned."""
    return addr & (pmd_size() - 1)


@jit(inline=True)
def pmd_addr_end(addr, end):
    """Return the end of the slot of ``addr``, or ``end`` if that is lower."""
    return min(end, ((addr >> pmd_shift()) + 1) << pmd_shift())


@jit(inline=True)
def pud_addr_end(addr, end):
    """Return the end of the range that the PUD entry of ``addr`` maps, or ``end`` if lower."""
    return min(end, ((addr >> pud_shift()) + 1) << pud_shift())


# --- Page numbers ------------------------------------------------------------------------------


@jit(inline=True)
def fold(addr):
    """Return the offset of ``addr`` in the window, bytes."""
    return addr & ((1 << WINDOW_BITS) - 1)


@jit(inline=True)
def fold_page(page):
    """Return the folded number of page number ``page``."""
    return page & ((1 << (WINDOW_BITS - PAGE_SHIFT)) - 1)


@jit(inline=True)
def page_of(addr):
    """Return the folded number of the page of ``addr``: the index of its state in k.pte."""
    return fold(addr) >> PAGE_SHIFT


@jit(inline=True)
def pages_of(start, end):
    """Return the range of folded page numbers of [start, end), aligned and all in one slot."""
    return range(page_of(start), page_of(start) + ((end - start) >> PAGE_SHIFT))


@jit(inline=True)
def pages_around(page):
    """Return the range of folded page numbers of the slot that contains folded page ``page``."""
    first = page >> pmd_order() << pmd_order()
    return range(first, first + pages_per_slot())


# --- The walk ----------------------------------------------------------------------------------


@jit(cold=True)
def set_pmd(k, addr, entry):
    """Set the PMD entry of ``addr`` to ``entry`` (PMD_*) and list the slot for the next reset."""
    k.pmd[addr >> pmd_shift()] = entry
    slot = page_of(addr) >> pmd_order()
    if not k.slot_seen[slot]:
        k.slot_seen[slot] = 1
        k.touched[k.mm.nr_touched] = slot
        k.mm.nr_touched += 1


@jit
def next_slot(k, addr, end):
    """Return the first address >= ``addr`` in a slot that may hold pages; ``end`` if none is below.

    The result is the start of a slot, or ``addr`` itself.  Skips ranges without a PMD page.
    """
    while addr < end:
        if not k.pud[addr >> pud_shift()]:
            addr = pud_addr_end(addr, end)
        elif k.pmd[addr >> pmd_shift()]:
            return addr
        else:
            addr = pmd_addr_end(addr, end)
    return end


@jit(inline=True)
def table_pages(mm):
    """Return the number of page-table pages of all levels."""
    return mm.nr_ptes + mm.nr_pmds + mm.nr_puds
