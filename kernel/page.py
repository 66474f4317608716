"""Pages and slots: the arithmetic of addresses, and the walk over what is mapped.

    an entry of   maps, at 4 KiB   log2 of that   and points at
    PTE           4 KiB, a page    PAGE_SHIFT     a frame, or the zero page
    PMD           2 MiB, a slot    pmd_shift()    a PTE page, or a huge page
    PUD           1 GiB            pud_shift()    a PMD page
    PGD           512 GiB          pgd_shift()    a PUD page

A table page has page size / 8 entries.  ``k.pmd``, ``k.pud`` and ``k.pgd`` hold the entries of the
upper levels, by address >> shift.  The page states, ``k.pte``, are indexed by *folded* page number:
a window of 2**WINDOW_BITS bytes stands for the whole address space (kernel.access).
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT, WINDOW_BITS

# --- Sizes -------------------------------------------------------------------------------------


@jit(inline=True)
def page_size():
    """Bytes of a page."""
    return 1 << PAGE_SHIFT


@jit(inline=True)
def pmd_order():
    """log2 of the pages of a slot: the order of a huge page."""
    return PAGE_SHIFT - 3


@jit(inline=True)
def pages_per_slot():
    """Pages that one PMD entry maps: those of a PTE page, or of a huge page."""
    return 1 << pmd_order()


@jit(inline=True)
def pmd_shift():
    """log2 of the bytes that one PMD entry maps."""
    return PAGE_SHIFT + pmd_order()


@jit(inline=True)
def pud_shift():
    """log2 of the bytes that one PUD entry maps."""
    return pmd_shift() + pmd_order()


@jit(inline=True)
def pgd_shift():
    """log2 of the bytes that one PGD entry maps."""
    return pud_shift() + pmd_order()


@jit(inline=True)
def pmd_size():
    """Bytes that one PMD entry maps: those of a slot, or of a huge page."""
    return 1 << pmd_shift()


@jit(inline=True)
def pud_size():
    """Bytes that one PUD entry maps."""
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
    """Bytes from the start of its page to ``addr``; 0 when it is aligned."""
    return addr & (page_size() - 1)


@jit(inline=True)
def slot_start(addr):
    """Round an address down to the start of its slot."""
    return addr >> pmd_shift() << pmd_shift()


@jit(inline=True)
def offset_in_slot(addr):
    """Bytes from the start of its slot to ``addr``; 0 when it is aligned."""
    return addr & (pmd_size() - 1)


@jit(inline=True)
def pmd_addr_end(addr, end):
    """End of the slot of ``addr``, or ``end`` where that is lower."""
    return min(end, ((addr >> pmd_shift()) + 1) << pmd_shift())


@jit(inline=True)
def pud_addr_end(addr, end):
    """End of what the PUD entry of ``addr`` maps, or ``end`` where that is lower."""
    return min(end, ((addr >> pud_shift()) + 1) << pud_shift())


# --- Page numbers ------------------------------------------------------------------------------


@jit(inline=True)
def fold(addr):
    """Offset of ``addr`` in the window, bytes."""
    return addr & ((1 << WINDOW_BITS) - 1)


@jit(inline=True)
def fold_page(page):
    """Folded number of page number ``page``."""
    return page & ((1 << (WINDOW_BITS - PAGE_SHIFT)) - 1)


@jit(inline=True)
def page_of(addr):
    """Folded number of the page of ``addr``: the index of its state in k.pte."""
    return fold(addr) >> PAGE_SHIFT


@jit(inline=True)
def pages_of(start, end):
    """Folded numbers of the pages of [start, end), both aligned, all in one slot: a range."""
    return range(page_of(start), page_of(start) + ((end - start) >> PAGE_SHIFT))


@jit(inline=True)
def pages_around(page):
    """Folded numbers of all pages of the slot of folded page ``page``: a range."""
    first = page >> pmd_order() << pmd_order()
    return range(first, first + pages_per_slot())


# --- The walk ----------------------------------------------------------------------------------


@jit(cold=True)
def set_pmd(k, addr, entry):
    """Let the slot of ``addr`` hold ``entry`` (PMD_*), and remember it as one to reset."""
    k.pmd[addr >> pmd_shift()] = entry
    slot = page_of(addr) >> pmd_order()
    if not k.slot_seen[slot]:
        k.slot_seen[slot] = 1
        k.touched[k.mm.nr_touched] = slot
        k.mm.nr_touched += 1


@jit
def next_slot(k, addr, end):
    """Start of the next slot that may hold pages, at or above ``addr``; ``end`` if none is below.

    Skips whole PMD pages that do not exist.  The result may lie inside a slot only if it is
    ``addr`` itself.
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
    """Pages of page tables, of every level."""
    return mm.nr_ptes + mm.nr_pmds + mm.nr_puds
