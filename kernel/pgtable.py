"""Page-table pages: they cost memory too, and VmPTE shows them.

A table page has page size / 8 entries, so at 4 KiB a PTE page maps 2 MiB, a PMD page 1 GiB and a
PUD page 512 GiB.  A table comes with the first fault in its slot and goes when no area overlaps
the slot any more, or (a PTE page) when MADV_DONTNEED empties the whole slot.  A huge mapping takes
the place of a PTE page, but keeps one deposited for the day it is split.  Tables are indexed by
real addresses, never folded, so that their number is exact.
"""

from kernel.engine.jit import jit
from kernel.engine.switches import FRAMES, PAGE_SHIFT, WINDOW_BITS
from kernel.frames import free_table_frames
from kernel.types import PMD_NONE, PMD_TABLE


@jit(inline=True)
def pmd_shift():
    """log2 of the bytes that one PTE page maps (also the size of a huge page)."""
    return PAGE_SHIFT + PAGE_SHIFT - 3


@jit(inline=True)
def pud_shift():
    """log2 of the bytes that one PMD page maps."""
    return pmd_shift() + PAGE_SHIFT - 3


@jit(inline=True)
def pgd_shift():
    """log2 of the bytes that one PUD page maps."""
    return pud_shift() + PAGE_SHIFT - 3


@jit(inline=True)
def page_of(addr):
    """Folded page number of ``addr``: the index of its state in k.pte."""
    return (addr & ((1 << WINDOW_BITS) - 1)) >> PAGE_SHIFT


@jit(inline=True)
def table_pages(mm):
    """Pages of page tables, of every level."""
    return mm.nr_ptes + mm.nr_pmds + mm.nr_puds


@jit
def _grown(k):
    """Keep the largest size of the page tables."""
    mm = k.mm
    total = table_pages(mm)
    if total > mm.hiwater_pgtables:
        mm.hiwater_pgtables = total


@jit(cold=True)
def alloc_pud(k, addr):
    """Make the PUD page that maps ``addr`` exist."""
    mm = k.mm
    if not k.pud_table[addr >> pgd_shift()]:
        k.pud_table[addr >> pgd_shift()] = 1
        mm.nr_puds += 1
        _grown(k)


@jit(cold=True)
def alloc_pmd(k, addr):
    """Make the PMD page that maps ``addr`` exist, and what is above it."""
    mm = k.mm
    alloc_pud(k, addr)
    if not k.pmd_table[addr >> pud_shift()]:
        k.pmd_table[addr >> pud_shift()] = 1
        mm.nr_pmds += 1
        _grown(k)


@jit(cold=True)
def set_pmd(k, addr, entry):
    """Let the slot of ``addr`` hold ``entry`` (PMD_*), and remember it as one to reset."""
    k.pte_table[addr >> pmd_shift()] = entry
    slot = page_of(addr) >> (PAGE_SHIFT - 3)
    if not k.slot_seen[slot]:
        k.slot_seen[slot] = 1
        k.touched[k.mm.nr_touched] = slot
        k.mm.nr_touched += 1


@jit(cold=True)
def alloc_tables(k, addr):
    """Make the table pages that map ``addr`` exist; called on every fault of a page."""
    if k.pte_table[addr >> pmd_shift()]:
        return
    alloc_pmd(k, addr)
    set_pmd(k, addr, PMD_TABLE)
    k.mm.nr_ptes += 1
    _grown(k)


@jit
def _free_level(table, shift, start, end, floor, ceiling):
    """Free the tables of one level in [start, end) whose slot lies in [floor, ceiling)."""
    freed = 0
    first = start >> shift
    last = (end - 1) >> shift
    for slot in range(first, last + 1):
        if table[slot] and (slot << shift) >= floor and ((slot + 1) << shift) <= ceiling:
            table[slot] = PMD_NONE
            freed += 1
    return freed


@jit(cold=True)
def free_ptes(k, start, end, floor, ceiling):
    """Free PTE pages of [start, end), skipping whole PMD slots that have none."""
    freed = 0
    while start < end:
        stop = min(end, ((start >> pud_shift()) + 1) << pud_shift())
        if k.pmd_table[start >> pud_shift()]:
            freed += _free_level(k.pte_table, pmd_shift(), start, stop, floor, ceiling)
        start = stop
    k.mm.nr_ptes -= freed
    if FRAMES:
        free_table_frames(k, freed)


@jit(cold=True)
def free_tables(k, start, end, floor, ceiling):
    """Free every table page of the unmapped [start, end) that no other area can need.

    ``floor`` is the end of the area below, ``ceiling`` the start of the area above.
    """
    mm = k.mm
    free_ptes(k, start, end, floor, ceiling)
    pmds = _free_level(k.pmd_table, pud_shift(), start, end, floor, ceiling)
    puds = _free_level(k.pud_table, pgd_shift(), start, end, floor, ceiling)
    mm.nr_pmds -= pmds
    mm.nr_puds -= puds
    if FRAMES:
        free_table_frames(k, pmds + puds)


@jit
def next_slot(k, addr, end):
    """Start of the next slot that may hold pages, at or above ``addr``; ``end`` if none is below.

    Skips whole PMD pages that do not exist.  The result may lie inside a slot only if it is
    ``addr`` itself.
    """
    while addr < end:
        if not k.pmd_table[addr >> pud_shift()]:
            addr = ((addr >> pud_shift()) + 1) << pud_shift()
        elif k.pte_table[addr >> pmd_shift()]:
            return addr
        else:
            addr = ((addr >> pmd_shift()) + 1) << pmd_shift()
    return end
