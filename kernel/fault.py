"""Demand paging: what happens when memory is touched, and how pages are taken away again.

                 read                    write
    untouched ──────────► zero page ──────────────► frame
        │                 (1 fault, not in RSS)     (1 more fault, in RSS)
        └──────────────────────write──────────────► frame (1 fault, in RSS)

A frame that is taken away leaves its words in the window: they are cleared at the next fault.
"""

from kernel.jit import jit
from kernel.memory import store_word
from kernel.pgtable import alloc_tables, free_ptes, pmd_shift
from kernel.switches import PAGE_SHIFT, WINDOW_BITS
from kernel.task import kill
from kernel.types import (
    PTE_FRAME,
    PTE_READ,
    PTE_STALE,
    PTE_STORE,
    PTE_WRITE,
    PTE_ZERO,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGKILL,
    SIGSEGV,
    VM_EXEC,
    VM_READ,
    VM_WRITE,
)
from kernel.vma import find_vma


@jit(cold=True)
def clear_page(k, page):
    """Zero the words of folded page number ``page``."""
    words = 1 << (PAGE_SHIFT - 3)
    first = page << (PAGE_SHIFT - 3)
    for w in range(first, first + words):
        store_word(k.window, w, 0)


@jit
def _may_share(k, i):
    """Whether areas ``i`` and ``i + 1`` could be one but for their protection."""
    v = k.vma[i]
    w = k.vma[i + 1]
    return (
        v.vm_end == w.vm_start
        and (v.vm_flags ^ w.vm_flags) & ~(VM_READ | VM_WRITE | VM_EXEC) == 0
        and v.vm_file == w.vm_file
        and v.vm_pgoff + ((w.vm_start - v.vm_start) >> PAGE_SHIFT) == w.vm_pgoff
    )


@jit(cold=True)
def anon_vma_prepare(k, i):
    """Give area ``i`` an anon_vma: the next, else the previous neighbour's, else a new one.

    Neighbours that differ in protection share too: a later change of it can then merge them.
    """
    mm = k.mm
    v = k.vma[i]
    if i + 1 < mm.map_count and k.vma[i + 1].anon_vma and _may_share(k, i):
        v.anon_vma = k.vma[i + 1].anon_vma
    elif i > 0 and k.vma[i - 1].anon_vma and _may_share(k, i - 1):
        v.anon_vma = k.vma[i - 1].anon_vma
    else:
        mm.anon_vmas += 1
        v.anon_vma = mm.anon_vmas


@jit
def map_page(k, i, addr, write):
    """Map a page of area ``i`` at ``addr`` that lacks the access; counts the minor fault.

    Returns 0 for the zero page, 1 for a fresh frame, 2 for a frame in place of the zero page.
    Kills the process when physical memory is exhausted.
    """
    mm = k.mm
    page = (addr & ((1 << WINDOW_BITS) - 1)) >> PAGE_SHIFT
    f = k.pte[page]
    alloc_tables(k, addr)
    if f & PTE_STALE:
        clear_page(k, page)
    if not write:
        mm.minflt += 1
        k.pte[page] = PTE_READ | PTE_ZERO
        return 0
    if k.vma[i].anon_vma == 0:
        anon_vma_prepare(k, i)
    if mm.memory and mm.rss >= mm.memory:
        kill(k, SIGKILL, 0, addr, 1)
    mm.minflt += 1
    k.pte[page] = PTE_READ | PTE_WRITE | PTE_FRAME
    mm.rss += 1
    if mm.rss > mm.hiwater_rss:
        mm.hiwater_rss = mm.rss
    if f & PTE_ZERO:
        return 2
    return 1


@jit(cold=True)
def handle_mm_fault(k, addr, write):
    """Serve a touch of ``addr`` (write: 1 or 0) that its page state does not allow.

    Kills the process with SIGSEGV outside any area or against its protection.
    """
    mm = k.mm
    i = find_vma(k, addr)
    if i == mm.map_count or k.vma[i].vm_start > addr:
        kill(k, SIGSEGV, SEGV_MAPERR, addr, write)
    flags = k.vma[i].vm_flags
    # x86 cannot map write-only or execute-only pages: any right lets a read through.
    allowed = VM_WRITE if write else VM_READ | VM_WRITE | VM_EXEC
    if not flags & allowed:
        kill(k, SIGSEGV, SEGV_ACCERR, addr, write)
    kind = map_page(k, i, addr, write)
    if kind == 0:
        mm.flt_read += 1
    elif kind == 1:
        mm.flt_write += 1
    else:
        mm.flt_cow += 1


@jit(cold=True)
def populate(k, i, start, end):
    """Map every page of the fresh [start, end) in area ``i`` now, as MAP_POPULATE does."""
    flags = k.vma[i].vm_flags
    if not flags & (VM_READ | VM_WRITE | VM_EXEC):
        return
    write = 1 if flags & VM_WRITE else 0
    for addr in range(start, end, 1 << PAGE_SHIFT):
        map_page(k, i, addr, write)
        k.mm.flt_populate += 1


@jit(cold=True)
def zap_pages(k, start, end):
    """Take the pages of [start, end) away; the areas stay.  An empty slot costs one step."""
    mm = k.mm
    mask = (1 << WINDOW_BITS) - 1
    while start < end:
        stop = min(end, ((start >> pmd_shift()) + 1) << pmd_shift())
        if k.pte_table[start >> pmd_shift()]:
            first = (start & mask) >> PAGE_SHIFT
            for page in range(first, first + ((stop - start) >> PAGE_SHIFT)):
                f = k.pte[page]
                if f:
                    if f & PTE_FRAME:
                        mm.rss -= 1
                        mm.zapped += 1
                    k.pte[page] = PTE_STALE if f & (PTE_STORE | PTE_STALE) else 0
        start = stop


@jit
def zap_whole_slots(k, start, end):
    """Free the PTE pages of the slots that lie wholly in [start, end), after zap_pages."""
    free_ptes(k, start, end, start, end)
