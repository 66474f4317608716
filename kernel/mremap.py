"""mremap: grow, shrink or move a mapping together with its pages.

Checks and effects have the order of Linux 6.17 and later: a range that was unmapped to make room
stays unmapped if a later step fails.
"""

from kernel import types, uapi
from kernel.engine.jit import jit
from kernel.engine.memory import clear_page, copy_page
from kernel.engine.switches import PAGE_SHIFT
from kernel.huge import folio_of, set_folio, split_huge_slot
from kernel.limits import enough_memory, may_expand_vm, may_lock
from kernel.merge import add_vma
from kernel.mlock import populate
from kernel.mmap import do_munmap, place_mapping, refuse_collision
from kernel.page import (
    offset_in_page,
    offset_in_slot,
    page_align,
    page_of,
    pmd_shift,
    pmd_size,
    pud_shift,
    pud_size,
    set_pmd,
    slot_start,
)
from kernel.pgtable import alloc_pmd, alloc_pud, alloc_tables
from kernel.swap import move_backing
from kernel.tlb import flush_present
from kernel.vma import account_vm, find_vma, intersects, pgoff_at


@jit(cold=True)
def _move_page(k, dst, src):
    """Move the state, words and huge page of folded page ``src`` to the unmapped ``dst``."""
    f = k.pte[src]
    if f & (types.PTE_ALL ^ types.PTE_WORDS) == 0:
        return
    if f & types.PTE_WORDS:
        copy_page(k, dst, src)
    elif k.pte[dst] & types.PTE_WORDS:
        clear_page(k, dst)
    k.pte[dst] = f
    k.pte[src] = f & types.PTE_WORDS
    if f & types.PTE_FRAME and k.mm.folios and folio_of(k, src):
        set_folio(k, dst, folio_of(k, src))
        set_folio(k, src, 0)


@jit(cold=True)
def _move_pages(k, new, old, length):
    """Move the pages of [old, old + length), all in one slot, to ``new``."""
    flush_present(k, old, old + length)
    for n in range(length >> PAGE_SHIFT):
        move_backing(k, page_of(old) + n, new + (n << PAGE_SHIFT))
        _move_page(k, page_of(new) + n, page_of(old) + n)


@jit(cold=True)
def _move_slot(k, new, old):
    """Move a whole slot: its PTE page, or its huge page with the deposited PTE page."""
    entry = k.pmd[old >> pmd_shift()]
    if entry == types.PMD_NONE:
        return
    _move_pages(k, new, old, pmd_size())
    set_pmd(k, new, entry)
    k.pmd[old >> pmd_shift()] = types.PMD_NONE


@jit
def _extent(shift, old, new, old_end):
    """Return the bytes from ``old`` on that one entry of 2**shift bytes maps at both addresses."""
    size = 1 << shift
    extent = min(size - (old & (size - 1)), old_end - old)
    return min(extent, size - (new & (size - 1)))


@jit
def _can_align_down(k, addr, start):
    """Return True if ``addr`` starts its area and the slot is free from ``start`` up to ``addr``.

    ``start`` is the start of the slot of ``addr``.
    """
    i = find_vma(k, addr)
    return k.vma[i].vm_start == addr and not intersects(k, start, addr)


@jit(cold=True)
def _move_some(k, new, old, old_end):
    """Move the first part of [old, old_end), at most one table, to ``new``; return its bytes."""
    extent = _extent(pud_shift(), old, new, old_end)
    if not k.pud[old >> pud_shift()]:
        return extent
    alloc_pud(k, new)
    if extent == pud_size():
        for n in range(0, extent, pmd_size()):
            _move_slot(k, new + n, old + n)
        k.pud[new >> pud_shift()] = 1
        k.pud[old >> pud_shift()] = 0
        return extent
    extent = _extent(pmd_shift(), old, new, old_end)
    if k.pmd[old >> pmd_shift()] == types.PMD_NONE:
        return extent
    alloc_pmd(k, new)
    if extent == pmd_size():
        _move_slot(k, new, old)
    else:
        split_huge_slot(k, old)
        alloc_tables(k, new)
        _move_pages(k, new, old, extent)
    return extent


@jit(cold=True)
def move_page_tables(k, old, new, length):
    """Move the pages of [old, old + length) to ``new``: whole tables if both are aligned.

    A partial first slot counts as whole if the range reaches its end and the rest of the slot is
    free at both addresses.  Page-table pages are allocated at the new address for those that exist
    at the old one.  With FRAMES, allocating their frames may reclaim pages of the old range, or
    kill the process.
    """
    end = old + length
    inside = offset_in_slot(old)
    if inside and inside == offset_in_slot(new) and length >= pmd_size() - inside:
        if _can_align_down(k, old, slot_start(old)) and _can_align_down(k, new, slot_start(new)):
            old -= inside
            new -= inside
    while old < end:
        done = _move_some(k, new, old, end)
        old += done
        new += done


@jit
def _charge(k, flags, pages):
    """Commit ``pages`` more for an area with ``flags``; return False if overcommit refuses."""
    if flags & types.VM_ACCOUNT:
        if not enough_memory(k, pages):
            return False
        k.mm.committed += pages
    return True


@jit(cold=True)
def _account(k, flags, pages):
    """Add ``pages`` of an area with ``flags`` to the mapped and locked pages."""
    account_vm(k, flags, pages)
    if flags & types.VM_LOCKED:
        k.mm.locked_vm += pages


@jit(cold=True)
def _copy_vma(k, i, addr, new_addr, length):
    """Add a copy of area ``i`` from ``addr`` on at ``new_addr``, merged where possible.

    An anonymous area that was never written takes the page offset of its new address, so that it
    can merge there.
    """
    v = k.vma[i]
    pgoff = pgoff_at(k, i, addr)
    if v.vm_file == 0 and v.anon_vma == 0:
        pgoff = new_addr >> PAGE_SHIFT
    add_vma(k, new_addr, new_addr + length, v.vm_flags, pgoff, v.anon_vma, v.vm_file)


@jit(cold=True)
def _forget_source(k, addr, length, whole):
    """Keep the old area, empty and unlocked (MREMAP_DONTUNMAP).

    ``whole``: the copy did not merge with its source.  An area whose bounds are then exactly
    [addr, addr + length) loses its anon_vma.
    """
    i = find_vma(k, addr)
    v = k.vma[i]
    v.vm_flags &= ~(types.VM_LOCKED | types.VM_LOCKONFAULT)
    if whole and v.vm_start == addr and v.vm_end == addr + length:
        v.anon_vma = 0


@jit(cold=True)
def _unmap_source(k, addr, length):
    """Unmap the range that has moved away; its committed pages moved with it."""
    k.mm.committed += _accounted_within(k, addr, length)
    do_munmap(k, addr, length)


@jit
def _accounted_within(k, addr, length):
    """Return the pages of [addr, addr + length), in one area, if the area is accounted, else 0."""
    i = find_vma(k, addr)
    return length >> PAGE_SHIFT if k.vma[i].vm_flags & types.VM_ACCOUNT else 0


@jit(cold=True)
def _move_vma(k, addr, old_len, new_addr, new_len, flags):
    """Move [addr, addr + old_len), in one area, to the free ``new_addr``; return ``new_addr``.

    Returns a negative errno on failure.
    """
    mm = k.mm
    if mm.map_count >= mm.max_map_count - 3:
        return -uapi.ENOMEM
    i = find_vma(k, addr)
    vm_flags = k.vma[i].vm_flags
    part = k.vma[i].vm_start < addr or k.vma[i].vm_end > addr + old_len
    if vm_flags & types.VM_SPECIAL and part:
        return -uapi.EINVAL
    pages = (new_len if flags & uapi.MREMAP_DONTUNMAP else new_len - old_len) >> PAGE_SHIFT
    if not _charge(k, vm_flags, pages):
        return -uapi.ENOMEM
    refuse_collision(k, new_addr, new_addr + new_len)
    _copy_vma(k, i, addr, new_addr, new_len)
    # The copy may have merged with its source if neither was ever written.
    apart = (
        k.vma[find_vma(k, addr)].vm_start > new_addr or k.vma[find_vma(k, addr)].vm_end <= new_addr
    )
    move_page_tables(k, addr, new_addr, old_len)
    _account(k, vm_flags, new_len >> PAGE_SHIFT)
    if flags & uapi.MREMAP_DONTUNMAP:
        _forget_source(k, addr, old_len, apart)
    else:
        _unmap_source(k, addr, old_len)
    if vm_flags & types.VM_LOCKED and new_len > old_len:
        populate(k, new_addr + old_len, new_addr + new_len, 1)
    return new_addr


@jit
def _place(k, i, addr, new_addr, length, flags):
    """Return the address to which area ``i`` from ``addr`` on is to move, or a negative errno."""
    v = k.vma[i]
    where = uapi.MAP_FIXED if flags & uapi.MREMAP_FIXED else 0
    where |= uapi.MAP_SHARED if v.vm_flags & types.VM_MAYSHARE else uapi.MAP_PRIVATE
    align = 1 if v.vm_flags & types.VM_FILE_ALIGN else 0
    pgoff = pgoff_at(k, i, addr) if v.vm_file else 0
    return place_mapping(k, new_addr, length, pgoff, where, v.vm_file, align)


@jit(cold=True)
def _check_area(k, i, addr, old_len, new_len, flags):
    """Return 0 if area ``i`` can be remapped as requested, else a negative errno."""
    mm = k.mm
    if i == mm.map_count or k.vma[i].vm_start > addr:
        return -uapi.EFAULT
    implied = flags & (uapi.MREMAP_FIXED | uapi.MREMAP_DONTUNMAP)
    if new_len <= old_len and not implied:
        return 0
    v = k.vma[i]
    if old_len == 0 and not v.vm_flags & types.VM_MAYSHARE:
        return -uapi.EINVAL
    if flags & uapi.MREMAP_DONTUNMAP and v.vm_flags & types.VM_SPECIAL:
        return -uapi.EINVAL
    if min(old_len, new_len) > v.vm_end - addr:
        return -uapi.EFAULT
    if new_len <= old_len:
        return 0
    if v.vm_flags & types.VM_SPECIAL:
        return -uapi.EFAULT
    pages = (new_len - old_len) >> PAGE_SHIFT
    if not may_lock(k, v.vm_flags, pages):
        return -uapi.EAGAIN
    return 0 if may_expand_vm(k, v.vm_flags, pages) else -uapi.ENOMEM


@jit(cold=True)
def _mremap_to(k, addr, old_len, new_addr, new_len, flags):
    """Move to ``new_addr``: a hint, or with MREMAP_FIXED the exact address, unmapped first."""
    if flags & uapi.MREMAP_FIXED:
        error = do_munmap(k, new_addr, new_len)
        if error < 0:
            return error
        i = find_vma(k, addr)
        if i == k.mm.map_count or k.vma[i].vm_start > addr:
            return -uapi.EFAULT
    if new_len < old_len:
        error = do_munmap(k, addr + new_len, old_len - new_len)
        if error < 0:
            return error
        old_len = new_len
    i = find_vma(k, addr)
    if flags & uapi.MREMAP_DONTUNMAP:
        if not may_expand_vm(k, k.vma[i].vm_flags, old_len >> PAGE_SHIFT):
            return -uapi.ENOMEM
    new_addr = _place(k, i, addr, new_addr, new_len, flags)
    if new_addr < 0:
        return new_addr
    return _move_vma(k, addr, old_len, new_addr, new_len, flags)


@jit(cold=True)
def _move_areas(k, addr, length, new_addr, flags):
    """Move all areas in [addr, addr + length) to ``new_addr``, with their gaps (Linux 6.17)."""
    end = addr + length
    first = -1
    target = new_addr
    last_end = addr
    i = find_vma(k, addr)
    while i < k.mm.map_count and k.vma[i].vm_start < end:
        start = max(k.vma[i].vm_start, addr)
        stop = min(k.vma[i].vm_end, end)
        if first < 0 and start > addr:
            return -uapi.EFAULT
        if first >= 0:
            target += start - last_end
        last_end = stop
        moved = _check_area(k, i, start, stop - start, stop - start, flags)
        if moved == 0:
            moved = _mremap_to(k, start, stop - start, target, stop - start, flags)
        if moved < 0:
            return moved
        if first < 0:
            first = moved
        target = moved + stop - start
        i = find_vma(k, stop)
        if i < k.mm.map_count and k.vma[i].vm_start < stop:
            i += 1  # part of an area was moved, and MREMAP_DONTUNMAP left the area in place
    return first if first >= 0 else -uapi.EFAULT


@jit(cold=True)
def _expand(k, i, addr, old_len, new_len, flags):
    """Grow area ``i``: in place if possible, else elsewhere with MREMAP_MAYMOVE."""
    mm = k.mm
    end = k.vma[i].vm_end
    more = new_len - old_len
    vm_flags = k.vma[i].vm_flags
    if end - addr == old_len and more <= mm.task_size - end and not intersects(k, end, end + more):
        if not _charge(k, vm_flags, more >> PAGE_SHIFT):
            return -uapi.ENOMEM
        refuse_collision(k, end, end + more)
        v = k.vma[i]
        add_vma(k, end, end + more, vm_flags, pgoff_at(k, i, end), v.anon_vma, v.vm_file)
        _account(k, vm_flags, more >> PAGE_SHIFT)
        if vm_flags & types.VM_LOCKED:
            populate(k, end, end + more, 1)
        return addr
    if not flags & uapi.MREMAP_MAYMOVE:
        return -uapi.ENOMEM
    new_addr = _place(k, i, addr, 0, new_len, flags)
    if new_addr < 0:
        return new_addr
    return _move_vma(k, addr, old_len, new_addr, new_len, flags)


@jit(cold=True)
def _check_arguments(k, addr, old_len, new_len, flags, new_addr):
    """Check the arguments that do not depend on an area; return 0 or a negative errno."""
    mm = k.mm
    known = uapi.MREMAP_FIXED | uapi.MREMAP_MAYMOVE | uapi.MREMAP_DONTUNMAP
    if flags & ~known or offset_in_page(addr):
        return -uapi.EINVAL
    if new_len <= 0 or new_len > mm.task_size:
        return -uapi.EINVAL
    if not flags & (uapi.MREMAP_FIXED | uapi.MREMAP_DONTUNMAP):
        return 0
    if new_addr < 0 or new_addr > mm.task_size - new_len or offset_in_page(new_addr):
        return -uapi.EINVAL
    if not flags & uapi.MREMAP_MAYMOVE:
        return -uapi.EINVAL
    if flags & uapi.MREMAP_DONTUNMAP and old_len != new_len:
        return -uapi.EINVAL
    # As unsigned numbers: a negative value here is above all user space.
    end = addr + old_len
    if (end > new_addr or end < 0) and 0 <= addr < new_addr + new_len:
        return -uapi.EINVAL
    return -uapi.ENOMEM if mm.map_count + 2 >= mm.max_map_count - 3 else 0


@jit(cold=True)
def do_mremap(k, addr, old_len, new_len, flags, new_addr):
    """Remap memory, see mremap(2); return the address of the mapping or a negative errno."""
    old_len = page_align(old_len)
    new_len = page_align(new_len)
    error = _check_arguments(k, addr, old_len, new_len, flags, new_addr)
    if error < 0:
        return error
    if old_len < 0:  # 2**63 or more: same effect as any length beyond user space
        old_len = 1 << 62
    if flags & uapi.MREMAP_FIXED and old_len == new_len:
        return _move_areas(k, addr, old_len, new_addr, flags)
    i = find_vma(k, addr)
    error = _check_area(k, i, addr, old_len, new_len, flags)
    if error < 0:
        return error
    if flags & (uapi.MREMAP_FIXED | uapi.MREMAP_DONTUNMAP):
        return _mremap_to(k, addr, old_len, new_addr, new_len, flags)
    if new_len < old_len:
        error = do_munmap(k, addr + new_len, old_len - new_len)
        return error if error < 0 else addr
    if new_len == old_len:
        return addr
    return _expand(k, i, addr, old_len, new_len, flags)


@jit(cold=True)
def mremap(k, addr, old_len, new_len, flags, new_addr):
    """Run and count the system call (:func:`do_mremap`)."""
    mm = k.mm
    mm.nr_mremap += 1
    result = do_mremap(k, addr, old_len, new_len, flags, new_addr)
    if result < 0:
        mm.nr_failed += 1
    return result
