"""Placement of new mappings: the search for a free gap, top-down or bottom-up."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.page import offset_in_slot, page_align, page_start, pmd_size
from kernel.stack import vm_start_gap
from kernel.uapi import ENOMEM, EPERM, MAP_32BIT, MAP_ABOVE4G, MAP_PRIVATE, MAP_TYPE
from kernel.vma import find_vma

#: Range that MAP_32BIT searches: the second gigabyte.
LOW_START, LOW_END = 0x40000000, 0x80000000
#: Lowest address for MAP_ABOVE4G: the first that a 32-bit pointer cannot reach.
ABOVE_4G = 1 << 32


@jit
def _top_down(k, length, floor):
    """Return the highest address for ``length`` bytes in [floor, mmap_base); 0 if no gap fits.

    A stack above a gap that is large enough keeps its guard, and from then on the start of the
    guard is the upper limit of the search.  A stack above a smaller gap has no effect.
    """
    limit = k.mm.mmap_base
    i = find_vma(k, limit - 1)
    while i >= 0:
        low = max(k.vma[i - 1].vm_end, floor) if i > 0 else floor
        end = min(limit, k.vma[i].vm_start) if i < k.mm.map_count else limit
        if end - low < length:
            i -= 1
        elif i < k.mm.map_count and vm_start_gap(k, i) < end:
            limit = vm_start_gap(k, i)
        else:
            return end - length
    return 0


@jit
def _bottom_up(k, hint, length, low, high):
    """Return the hint if it is free, else the start of the lowest gap in [low, high); 0 if none."""
    if hint:
        hint = page_align(hint)
        i = find_vma(k, hint)
        fits = i == k.mm.map_count or hint + length <= vm_start_gap(k, i)
        if 0 < hint <= high - length and fits:
            return hint
    addr = low
    i = find_vma(k, addr)
    while addr + length <= high:
        if i == k.mm.map_count or addr + length <= vm_start_gap(k, i):
            return addr
        addr = max(addr, k.vma[i].vm_end)
        i += 1
    return 0


@jit(cold=True)
def _search(k, hint, length, flags):
    """Return the hint if it is free, else a gap by the process's layout; 0 if no gap fits."""
    mm = k.mm
    if flags & MAP_32BIT:
        return _bottom_up(k, hint, length, LOW_START, LOW_END)
    if mm.legacy:
        return _bottom_up(k, hint, length, mm.mmap_legacy_base, mm.task_size)
    floor = page_start(hint)
    if 0 < floor <= mm.task_size - length:
        i = find_vma(k, floor)
        if i == mm.map_count or floor + length <= vm_start_gap(k, i):
            return floor
    addr = _top_down(k, length, ABOVE_4G if flags & MAP_ABOVE4G else mm.mmap_min_addr)
    if addr:
        return addr
    return _bottom_up(k, hint, length, mm.mmap_legacy_base, mm.task_size)


@jit(cold=True)
def _search_aligned(k, hint, length, pgoff, flags):
    """Return an address congruent to ``pgoff`` modulo the huge-page size; 0 if none is found.

    Searches for a gap one huge page longer and moves the address up inside it; a result that is
    already aligned moves up by a whole huge page in the top-down layout, as in Linux.
    """
    huge = pmd_size()
    offset = pgoff << PAGE_SHIFT
    if offset + length < ((offset + huge - 1) & -huge) + huge:
        return 0
    addr = _search(k, hint, length + huge, flags)
    if addr == 0 or addr == hint:
        return addr
    shift = (offset - addr) & (huge - 1)
    if shift == 0 and not k.mm.legacy:
        return addr + huge
    return addr + shift


@jit(cold=True)
def get_unmapped_area(k, hint, length, pgoff, flags, file, align):
    """Return the address of a new mapping; -ENOMEM if no gap fits, -EPERM if it is too low.

    The hint is rounded down to its page and used only if the whole range is free.  Since Linux 6.7
    an anonymous mapping without a hint whose length is a multiple of the huge-page size is aligned
    to it; so is a mapping of any length of a file whose file system requests it (``align``).
    """
    mm = k.mm
    hint = page_start(hint)
    addr = 0
    plain = file == 0 and flags & MAP_TYPE == MAP_PRIVATE
    if align or (plain and hint == 0 and offset_in_slot(length) == 0):
        addr = _search_aligned(k, hint, length, pgoff, flags)
    if addr == 0:
        addr = _search(k, hint, length, flags)
    if addr == 0 or addr > mm.task_size - length:
        return -ENOMEM
    return -EPERM if addr < mm.dac_mmap_min_addr else addr
