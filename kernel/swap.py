"""The swap area: one slot for each swapped-out page.

The contents of a page never leave the simulated window, so a slot only records the number of its
page.  Freed slots are reused first, the most recently freed one before the others.
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.frames import move_frame, pfn_of, set_pfn
from kernel.page import fold_page
from kernel.types import PTE_FRAME, PTE_SWAP, PTE_WORDS


@jit
def swap_full(k):
    """Return True if no slot is free."""
    return k.phys.swap_used >= k.phys.nr_swap


@jit(cold=True)
def alloc_slot(k, page):
    """Allocate a slot for page number ``page`` and return it; a free one exists (not swap_full)."""
    phys = k.phys
    slot = phys.swap_free
    if slot >= 0:
        phys.swap_free = -k.swap[slot] - 2
    else:
        slot = phys.swap_fresh
        phys.swap_fresh += 1
    k.swap[slot] = page
    phys.swap_used += 1
    if phys.swap_used > k.vmstat.swap_peak:
        k.vmstat.swap_peak = phys.swap_used
    return slot


@jit(cold=True)
def free_slot(k, page):
    """Free the slot of folded page ``page``, which is swapped out."""
    phys = k.phys
    slot = pfn_of(k, page)
    k.swap[slot] = -phys.swap_free - 2
    phys.swap_free = slot
    phys.swap_used -= 1


@jit(cold=True)
def move_slot(k, old, addr):
    """Record that the swapped-out folded page ``old`` has moved to ``addr``."""
    slot = pfn_of(k, old)
    k.swap[slot] = addr >> PAGE_SHIFT
    set_pfn(k, fold_page(addr >> PAGE_SHIFT), slot)


@jit(cold=True, when="FRAMES")
def move_backing(k, page, addr):
    """Update the frame or swap slot of folded page ``page``, which moves to ``addr``."""
    f = k.pte[page]
    if f & PTE_SWAP:
        move_slot(k, page, addr)
    elif f & PTE_FRAME:
        move_frame(k, page, addr)


@jit(cold=True, when="FRAMES")
def drop_slot(k, page):
    """Drop folded page ``page`` if it is swapped out: it reads as zeros afterwards."""
    if k.pte[page] & PTE_SWAP:
        free_slot(k, page)
        k.pte[page] &= PTE_WORDS
