"""Page-table pages: they cost memory too, and VmPTE shows them.

A table page (kernel.page says what each maps) comes with the first fault in its range and goes
when no area overlaps that any more, or (a PTE page) when MADV_DONTNEED empties the whole slot.  A
huge mapping takes the place of a PTE page, but keeps one deposited for the day it is split.  Tables
are indexed by real addresses, never folded, so that their number is exact.
"""

from kernel.engine.jit import jit
from kernel.frames import free_table_frames
from kernel.page import pgd_shift, pmd_shift, pud_addr_end, pud_shift, set_pmd, table_pages
from kernel.types import PMD_NONE, PMD_TABLE
from kernel.vmscan import take_table_frame


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
    if not k.pgd[addr >> pgd_shift()]:
        take_table_frame(k, addr)
        k.pgd[addr >> pgd_shift()] = 1
        mm.nr_puds += 1
        _grown(k)


@jit(cold=True)
def alloc_pmd(k, addr):
    """Make the PMD page that maps ``addr`` exist, and what is above it."""
    mm = k.mm
    alloc_pud(k, addr)
    if not k.pud[addr >> pud_shift()]:
        take_table_frame(k, addr)
        k.pud[addr >> pud_shift()] = 1
        mm.nr_pmds += 1
        _grown(k)


@jit(cold=True)
def alloc_tables(k, addr):
    """Make the table pages that map ``addr`` exist; called on every fault of a page."""
    if k.pmd[addr >> pmd_shift()]:
        return
    alloc_pmd(k, addr)
    take_table_frame(k, addr)
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
        stop = pud_addr_end(start, end)
        if k.pud[start >> pud_shift()]:
            freed += _free_level(k.pmd, pmd_shift(), start, stop, floor, ceiling)
        start = stop
    k.mm.nr_ptes -= freed
    free_table_frames(k, freed)


@jit(cold=True)
def free_tables(k, start, end, floor, ceiling):
    """Free every table page of the unmapped [start, end) that no other area can need.

    ``floor`` is the end of the area below, ``ceiling`` the start of the area above.
    """
    mm = k.mm
    free_ptes(k, start, end, floor, ceiling)
    pmds = _free_level(k.pud, pud_shift(), start, end, floor, ceiling)
    puds = _free_level(k.pgd, pgd_shift(), start, end, floor, ceiling)
    mm.nr_pmds -= pmds
    mm.nr_puds -= puds
    free_table_frames(k, pmds + puds)
