"""Where a new mapping goes: the search for a gap, from the top down or from the bottom up."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.page import offset_in_slot, page_align, page_start, pmd_size
from kernel.stack import vm_start_gap
from kernel.uapi import ENOMEM, EPERM, MAP_32BIT, MAP_ABOVE4G, MAP_PRIVATE, MAP_TYPE
from kernel.vma import find_vma

#: Where MAP_32BIT looks: the second gigabyte.
LOW_START, LOW_END = 0x40000000, 0x80000000
#: MAP_ABOVE4G keeps away from what a 32-bit pointer reaches.
ABOVE_4G = 1 << 32


@jit
def _top_down(k, length, floor):
    """Start of the highest gap below mmap_base and from ``floor`` on; 0 if there is none.

    A stack above a gap that would do keeps its guard, and then the guard bounds the whole search,
    whatever lies between; a stack above a smaller gap does not count.
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
    """The hint if it is free, else the start of the lowest gap in [low, high); 0 if none."""
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
    """The hint if it is free, else a gap that holds ``length`` by the process's layout; or 0."""
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
    """A gap at which ``pgoff`` and the address agree modulo a huge page; 0 if none was found.

    The search is for a huge page more; a result that happens to agree moves up by all of it.
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
    """Choose the address of a new mapping; -ENOMEM when none is free.

    A hint is rounded down to its page, and counts only if the whole range is free.  Since Linux 6.7
    a hintless anonymous mapping whose length is a multiple of the huge-page size is aligned to it;
    so is one of a file whose system asks for it (``align``), any length.
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
