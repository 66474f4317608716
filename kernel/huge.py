"""Transparent huge pages: a slot of the page tables mapped by one PMD entry.

    PMD_HUGE    all pages of the slot have PTE_HUGE: frames of one huge page, or the huge zero page
        │ split_huge_pmd: the deposited PTE page is used; same frames, now mapped one by one
        ▼
    PMD_TABLE   pages still record their huge page (k.folio) until split_folio splits it

Splitting only the mapping leaves the huge page itself (the folio) whole.  Freeing or ageing a part
of it (MADV_FREE, MADV_COLD, MADV_PAGEOUT) splits the folio too; then each page that was never
written (all zeros) frees its frame and maps the zero page.  Rules as observed on Linux 6.18.

With the switch FRAMES a huge page's block of frames becomes single frames as soon as its mapping is
split.  Linux keeps that block whole for longer, but its frames are allocated in both cases.
"""

from kernel import types
from kernel.engine.jit import jit
from kernel.engine.memory import clear_page, load_word, store_word
from kernel.engine.switches import PAGE_SHIFT
from kernel.frames import munlock_frame, release_frame, split_frame
from kernel.page import (
    next_slot,
    offset_in_slot,
    page_of,
    pages_around,
    pages_of,
    pages_per_slot,
    pmd_addr_end,
    pmd_order,
    pmd_shift,
    pmd_size,
    set_pmd,
    slot_start,
)
from kernel.tlb import flush_tlb_page
from kernel.vma import add_rss, find_vma


@jit
def folio_of(k, page):
    """Return the huge page of folded page ``page``, id << pmd_order() | position; 0 for none."""
    return load_word(k.folio, page)


@jit
def folio_id(k, page):
    """Return the id of the huge page that contains folded page ``page``; 0 for none."""
    return folio_of(k, page) >> pmd_order()


@jit
def set_folio(k, page, folio):
    """Record the huge page and position of folded page ``page`` (see :func:`folio_of`)."""
    store_word(k.folio, page, folio)


@jit
def huge_page_allowed(k, i, addr):
    """Return True if a fault at ``addr``, in an empty slot of anonymous area ``i``, may be huge.

    The THP mode and the area's advice must allow it, and the area must contain the whole slot.
    """
    mm = k.mm
    flags = k.vma[i].vm_flags
    if flags & types.VM_NOHUGEPAGE:
        return False
    least = types.THP_MADVISE if flags & types.VM_HUGEPAGE else types.THP_ALWAYS
    if mm.thp < least:
        return False
    start = slot_start(addr)
    return start >= k.vma[i].vm_start and start + pmd_size() <= k.vma[i].vm_end


@jit(cold=True)
def _fill_slot(k, addr, state, folio):
    """Set all pages of the slot of ``addr`` to ``state``, and to huge page ``folio`` unless 0."""
    for page in pages_around(page_of(addr)):
        if k.pte[page] & types.PTE_WORDS:
            clear_page(k, page)
        k.pte[page] = state
        if folio:
            set_folio(k, page, folio + (page & (pages_per_slot() - 1)))


@jit(cold=True)
def map_huge_zero(k, addr):
    """Map the huge zero page over the empty slot of ``addr``, whose PTE page is deposited."""
    set_pmd(k, addr, types.PMD_HUGE)
    _fill_slot(k, addr, types.PTE_READ | types.PTE_ZERO | types.PTE_HUGE, 0)


@jit(cold=True)
def map_huge_page(k, addr):
    """Map a new huge page over the slot of ``addr``, which is empty or maps the huge zero page.

    The slot's PTE page exists already and stays as the deposited one.
    """
    mm = k.mm
    set_pmd(k, addr, types.PMD_HUGE)
    mm.folios += 1
    _fill_slot(k, addr, types.PTE_READ | types.PTE_FRAME | types.PTE_HUGE, mm.folios << pmd_order())
    add_rss(k, pages_per_slot())


@jit(cold=True)
def cancel_lazy_free(k, page):
    """Cancel MADV_FREE for folded page ``page``, or its huge page, because it was written."""
    if k.pte[page] & types.PTE_HUGE:
        for i in pages_around(page):
            k.pte[i] &= types.PTE_ALL ^ types.PTE_LAZY
    else:
        k.pte[page] &= types.PTE_ALL ^ types.PTE_LAZY


@jit(cold=True)
def _split_mapping(k, addr, lost):
    """Replace the huge mapping of the slot of ``addr`` by its PTE page; clear the bits ``lost``."""
    k.pmd[addr >> pmd_shift()] = types.PMD_TABLE
    first = page_of(slot_start(addr))
    flush_tlb_page(k, addr)  # one entry maps the whole slot
    if k.pte[first] & types.PTE_FRAME:
        if lost & types.PTE_MLOCK:
            munlock_frame(k, first)
        split_frame(k, first)
    for page in pages_around(first):
        k.pte[page] &= types.PTE_ALL ^ lost


@jit(cold=True)
def split_huge_slot(k, addr):
    """Split the huge mapping of the slot of ``addr``, if it is one, into a PTE page.

    In a locked area its pages lose PTE_MLOCK: a huge page is locked in memory only as a whole.
    """
    if k.pmd[addr >> pmd_shift()] == types.PMD_HUGE:
        locked = k.vma[find_vma(k, addr)].vm_flags & types.VM_LOCKED
        _split_mapping(k, addr, types.PTE_HUGE | types.PTE_MLOCK if locked else types.PTE_HUGE)


@jit
def split_huge_pmd(k, addr):
    """Split the huge mapping around ``addr``, unless it starts there, so that an area can end."""
    if offset_in_slot(addr):
        split_huge_slot(k, addr)


@jit(cold=True)
def _split_folio_in(k, i, start, end, folio):
    """Split huge page ``folio`` (an id) for its pages in the part [start, end) of area ``i``."""
    mm = k.mm
    for page in pages_of(start, end):
        if folio_id(k, page) != folio:
            continue
        set_folio(k, page, 0)
        f = k.pte[page]
        locked = f & types.PTE_MLOCK or k.vma[i].vm_flags & types.VM_LOCKED
        if f & types.PTE_FRAME and not f & types.PTE_DIRTY and not locked:
            release_frame(k, page)
            flush_tlb_page(k, start + ((page - page_of(start)) << PAGE_SHIFT))
            k.pte[page] = f & (types.PTE_READ | types.PTE_WORDS) | types.PTE_ZERO
            mm.rss -= 1
            mm.zapped += 1


@jit(cold=True)
def split_folio(k, folio):
    """Split huge page ``folio`` (an id) wherever its pages are mapped.

    Pages that were never written then map the zero page, unless they are locked.
    """
    for i in range(k.mm.map_count):
        start = k.vma[i].vm_start
        end = k.vma[i].vm_end
        start = next_slot(k, start, end)
        while start < end:
            stop = pmd_addr_end(start, end)
            if k.pmd[start >> pmd_shift()] == types.PMD_HUGE:
                if folio_id(k, page_of(start)) == folio:
                    _split_mapping(k, start, types.PTE_HUGE)  # locked pages stay locked in memory
            _split_folio_in(k, i, start, stop, folio)
            start = next_slot(k, stop, end)


@jit(cold=True)
def folio_batch(k, addr, end):
    """Return how many pages from ``addr`` on, below ``end``, map one huge page in order."""
    page = page_of(addr)
    folio = folio_of(k, page)
    n = 0
    while addr + (n << PAGE_SHIFT) < end:
        if not k.pte[page + n] & types.PTE_FRAME or folio_of(k, page + n) != folio + n:
            break
        if n and folio + n & (pages_per_slot() - 1) == 0:
            break
        n += 1
    return n


@jit(cold=True)
def split_partial_folios(k, addr, end):
    """Split every huge page that has some but not all of its pages in [addr, end), in one slot.

    A slot that is mapped huge and entirely in the range stays.
    """
    whole = end - addr == pmd_size()
    if k.pmd[addr >> pmd_shift()] == types.PMD_HUGE:
        page = page_of(addr)
        if not whole and k.pte[page] & types.PTE_FRAME:
            split_folio(k, folio_id(k, page))
        return
    while addr < end:
        page = page_of(addr)
        n = 1
        if k.pte[page] & types.PTE_FRAME and folio_of(k, page):
            n = folio_batch(k, addr, end)
            if n < pages_per_slot():
                split_folio(k, folio_id(k, page))
                n = 1
        addr += n << PAGE_SHIFT
