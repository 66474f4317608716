"""Page-table pages: they use memory too, and VmPTE reports them.

A table page (kernel.page lists what each level maps) is allocated by the first fault in its range.
It is freed when no area overlaps its range any more; a PTE page also when MADV_DONTNEED empties the
whole slot.  A huge mapping replaces a PTE page but keeps one deposited for a later split.  Tables
are indexed by real addresses, never folded ones, so that their number is exact.
"""

from kernel.engine.jit import jit
from kernel.frames import free_table_frames
from kernel.page import pgd_shift, pmd_shift, pud_addr_end, pud_shift, set_pmd, table_pages
from kernel.types import PMD_NONE, PMD_TABLE
from kernel.vmscan import take_table_frame


@jit
def _update_hiwater(k):
    """Update the largest number of page-table pages."""
    mm = k.mm
    total = table_pages(mm)
    if total > mm.hiwater_pgtables:
        mm.hiwater_pgtables = total


@jit(cold=True)
def alloc_pud(k, addr):
    """Allocate the PUD page that maps ``addr`` if it does not exist."""
    mm = k.mm
    if not k.pgd[addr >> pgd_shift()]:
        take_table_frame(k, addr)
        k.pgd[addr >> pgd_shift()] = 1
        mm.nr_puds += 1
        _update_hiwater(k)


@jit(cold=True)
def alloc_pmd(k, addr):
    """Allocate the PMD page that maps ``addr``, and its PUD page, if they do not exist."""
    mm = k.mm
    alloc_pud(k, addr)
    if not k.pud[addr >> pud_shift()]:
        take_table_frame(k, addr)
        k.pud[addr >> pud_shift()] = 1
        mm.nr_pmds += 1
        _update_hiwater(k)


@jit(cold=True)
def alloc_tables(k, addr):
    """Allocate the missing table pages that map ``addr``; called on every page fault."""
    if k.pmd[addr >> pmd_shift()]:
        return
    alloc_pmd(k, addr)
    take_table_frame(k, addr)
    set_pmd(k, addr, PMD_TABLE)
    k.mm.nr_ptes += 1
    _update_hiwater(k)


@jit
def _free_level(table, shift, start, end, floor, ceiling):
    """Free the tables of one level in [start, end) that map only addresses in [floor, ceiling).

    Returns their number.
    """
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
    """Free the PTE pages in [start, end) that map only addresses in [floor, ceiling)."""
    freed = 0
    while start < end:
        stop = pud_addr_end(start, end)
        if k.pud[start >> pud_shift()]:
            freed += _free_level(k.pmd, pmd_shift(), start, stop, floor, ceiling)
        start = stop
    k.mm.nr_ptes -= freed
    free_table_frames(k, freed)


@jit(cold=True)
def free_tables(k, start, end, floor, ceiling):
    """Free all table pages of the unmapped [start, end) that no remaining area needs.

    ``floor`` is the end of the area below, ``ceiling`` the start of the area above.
    """
    mm = k.mm
    free_ptes(k, start, end, floor, ceiling)
    pmds = _free_level(k.pud, pud_shift(), start, end, floor, ceiling)
    puds = _free_level(k.pgd, pgd_shift(), start, end, floor, ceiling)
    mm.nr_pmds -= pmds
    mm.nr_puds -= puds
    free_table_frames(k, pmds + puds)
