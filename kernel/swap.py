"""The swap area: one slot for each page that is out.

The contents of a page never leave the simulated window, so a slot is only a number: which page it
holds.  Freed slots are used again first, the last one freed before the others.
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.frames import move_frame, pfn_of, set_pfn
from kernel.page import fold_page
from kernel.types import PTE_FRAME, PTE_SWAP, PTE_WORDS


@jit
def swap_full(k):
    """Whether no slot is free."""
    return k.phys.swap_used >= k.phys.nr_swap


@jit(cold=True)
def alloc_slot(k, page):
    """Give page number ``page`` a slot, which exists (not swap_full); returns its number."""
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
    """Note that the page swapped out at folded page ``old`` has moved to ``addr``."""
    slot = pfn_of(k, old)
    k.swap[slot] = addr >> PAGE_SHIFT
    set_pfn(k, fold_page(addr >> PAGE_SHIFT), slot)


@jit(cold=True, when="FRAMES")
def move_backing(k, page, addr):
    """Let the frame or slot of folded page ``page`` know that the page moves to ``addr``."""
    f = k.pte[page]
    if f & PTE_SWAP:
        move_slot(k, page, addr)
    elif f & PTE_FRAME:
        move_frame(k, page, addr)


@jit(cold=True, when="FRAMES")
def drop_slot(k, page):
    """Forget what is swapped out of folded page ``page``, if it is: it reads as zeros again."""
    if k.pte[page] & PTE_SWAP:
        free_slot(k, page)
        k.pte[page] &= PTE_WORDS
