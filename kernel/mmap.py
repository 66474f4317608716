"""mmap and munmap of anonymous memory, by Linux's rules; errors come back as negative errnos.

Order of an mmap with MAP_FIXED over existing areas, as observed: the boundaries are split, then
limits are checked, then the old pages and their tables go.  When a limit refuses, the splits stay.
"""

from kernel.fault import populate, zap_pages
from kernel.jit import jit
from kernel.pgtable import free_tables, pmd_shift
from kernel.switches import PAGE_SHIFT, WINDOW_BITS
from kernel.task import kill
from kernel.types import (
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_KNOWN,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    SIGSYS,
    SYS_WINDOW,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from kernel.vma import account_vm, add_vma, find_vma, intersects, remove_vmas, split_vma

#: Pages kept free below a stack (Linux's stack_guard_gap).
STACK_GUARD_PAGES = 256
#: Above the last area no address needs a table: more than any slot's end, even beyond task_size.
NO_CEILING = 1 << 62


@jit(inline=True)
def page_align(length):
    """Round ``length`` bytes up to whole pages."""
    return (length + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT << PAGE_SHIFT


@jit
def vm_start_gap(k, i):
    """Start of area ``i`` less the guard that a downward-growing stack keeps below it."""
    v = k.vma[i]
    if v.vm_flags & VM_GROWSDOWN:
        return v.vm_start - (STACK_GUARD_PAGES << PAGE_SHIFT)
    return v.vm_start


@jit
def _top_down(k, length):
    """Return the start of the highest gap below mmap_base that holds ``length``; 0 if none."""
    mm = k.mm
    end = mm.mmap_base
    i = find_vma(k, end - 1)
    if i < mm.map_count:
        end = min(end, vm_start_gap(k, i))
    while True:
        i -= 1
        low = k.vma[i].vm_end if i >= 0 else mm.mmap_min_addr
        if end - length >= max(low, mm.mmap_min_addr):
            return end - length
        if i < 0:
            return 0
        end = min(end, vm_start_gap(k, i))


@jit
def _bottom_up(k, length):
    """Return the lowest gap from task_size / 3 on, where Linux looks when top-down fails; or 0."""
    mm = k.mm
    addr = page_align(mm.task_size // 3)
    i = find_vma(k, addr)
    while addr + length <= mm.task_size:
        if i == mm.map_count or addr + length <= vm_start_gap(k, i):
            return addr
        addr = max(addr, k.vma[i].vm_end)
        i += 1
    return 0


@jit
def _search(k, length):
    """Return the start of a gap that holds ``length``, the best by Linux's order; 0 if none."""
    addr = _top_down(k, length)
    return addr if addr else _bottom_up(k, length)


@jit(cold=True)
def get_unmapped_area(k, hint, length):
    """Choose the address of a new mapping; -ENOMEM when none is free.

    A hint is rounded down to its page, up to mmap_min_addr, and counts only if the whole range is
    free.  Since Linux 6.7 a hintless length that is a multiple of the huge-page size is aligned to
    it.
    """
    mm = k.mm
    hint = hint >> PAGE_SHIFT << PAGE_SHIFT
    if hint:
        if 0 < hint < mm.mmap_min_addr:
            hint = mm.mmap_min_addr
        if 0 < hint <= mm.task_size - length:
            i = find_vma(k, hint)
            if i == mm.map_count or hint + length <= vm_start_gap(k, i):
                return hint
    else:
        huge = 1 << pmd_shift()
        if length & (huge - 1) == 0:
            addr = _search(k, length + huge)
            if addr:
                if addr & (huge - 1) == 0:
                    return addr + huge
                return (addr + huge - 1) & -huge
    addr = _search(k, length)
    return addr if addr else -ENOMEM


@jit(cold=True)
def refuse_collision(k, start, end):
    """Kill the process when [start, end) would share window slots with another area.

    The window cannot hold both; a larger kernel.window does.
    """
    mask = (1 << WINDOW_BITS) - 1
    if end - start > mask:
        kill(k, SIGSYS, SYS_WINDOW, start, 0)
    for i in range(k.mm.map_count):
        v = k.vma[i]
        # Circular intervals overlap when one starts inside the other.
        above = (v.vm_start - start) & mask
        below = (start - v.vm_start) & mask
        if above < end - start or below < v.vm_end - v.vm_start:
            kill(k, SIGSYS, SYS_WINDOW, start, 0)


@jit
def may_expand_vm(k, flags, pages):
    """Whether RLIMIT_AS, and RLIMIT_DATA for data, allow ``pages`` more (may be negative)."""
    mm = k.mm
    if mm.total_vm + pages > mm.rlim_as >> PAGE_SHIFT:
        return False
    is_data = flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE
    return not (is_data and mm.data_vm + pages > mm.rlim_data >> PAGE_SHIFT)


@jit
def enough_memory(k, pages):
    """Linux's overcommit rules: 0 refuses a single excess, 1 nothing, 2 keeps a strict account."""
    mm = k.mm
    if mm.memory == 0 or mm.overcommit == 1 or pages == 0:
        return True
    if mm.overcommit == 0:
        return pages <= mm.memory
    return mm.committed + pages <= mm.memory


@jit(cold=True)
def split_range(k, start, end):
    """Split the areas that straddle ``start`` or ``end``; -ENOMEM at the map count's limit."""
    mm = k.mm
    i = find_vma(k, start)
    if i < mm.map_count and k.vma[i].vm_start < start:
        # Punching a hole makes one area more in all: refused at the limit.
        if end < k.vma[i].vm_end and mm.map_count >= mm.max_map_count:
            return -ENOMEM
        split_vma(k, i, start)
    i = find_vma(k, end - 1)
    if i < mm.map_count and k.vma[i].vm_start < end < k.vma[i].vm_end:
        split_vma(k, i, end)
    return 0


@jit(cold=True)
def unmap_areas(k, start, end):
    """Remove the whole areas in [start, end), whose boundaries have been split, and their pages."""
    mm = k.mm
    i = find_vma(k, start)
    j = i
    while j < mm.map_count and k.vma[j].vm_start < end:
        v = k.vma[j]
        zap_pages(k, v.vm_start, v.vm_end)
        pages = (v.vm_end - v.vm_start) >> PAGE_SHIFT
        account_vm(k, v.vm_flags, -pages)
        if v.vm_flags & VM_ACCOUNT:
            mm.committed -= pages
        j += 1
    if i == j:
        return
    low = k.vma[i].vm_start
    high = k.vma[j - 1].vm_end
    remove_vmas(k, i, j - i)
    floor = k.vma[i - 1].vm_end if i > 0 else 0
    ceiling = k.vma[i].vm_start if i < mm.map_count else NO_CEILING
    free_tables(k, low, high, floor, ceiling)


@jit(cold=True)
def do_munmap(k, addr, length):
    """Unmap [addr, addr + length), splitting areas as needed; 0 or a negative errno."""
    mm = k.mm
    if addr & ((1 << PAGE_SHIFT) - 1) or length <= 0:
        return -EINVAL
    if addr < 0 or addr > mm.task_size or length > mm.task_size - addr:
        return -EINVAL
    end = addr + page_align(length)
    if not intersects(k, addr, end):
        return 0
    error = split_range(k, addr, end)
    if error < 0:
        return error
    unmap_areas(k, addr, end)
    return 0


@jit
def pages_within(k, start, end, need):
    """Pages of areas with the flags ``need`` in [start, end), whose boundaries have been split."""
    total = 0
    i = find_vma(k, start)
    while i < k.mm.map_count and k.vma[i].vm_start < end:
        v = k.vma[i]
        if v.vm_flags & need == need:
            total += (v.vm_end - v.vm_start) >> PAGE_SHIFT
        i += 1
    return total


@jit(cold=True)
def map_region(k, start, length, vm_flags):
    """Enter a new anonymous area at [start, start + length), replacing what is there.

    Returns ``start``, or -ENOMEM when a limit refuses.  Limits see what comes less what goes.
    """
    mm = k.mm
    end = start + length
    pages = length >> PAGE_SHIFT
    error = split_range(k, start, end)
    if error < 0:
        return error
    if not may_expand_vm(k, vm_flags, pages - pages_within(k, start, end, 0)):
        return -ENOMEM
    charged = pages - pages_within(k, start, end, VM_ACCOUNT)
    if vm_flags & VM_ACCOUNT and not enough_memory(k, charged):
        return -ENOMEM
    unmap_areas(k, start, end)
    refuse_collision(k, start, end)
    if vm_flags & VM_ACCOUNT:
        mm.committed += pages
    add_vma(k, start, end, vm_flags)
    account_vm(k, vm_flags, pages)
    return start


@jit
def do_mmap(k, addr, length, prot, flags):
    """mmap(2) of private anonymous memory: the address, or a negative errno.

    -EOPNOTSUPP for a flag that the model does not know, and for mappings that are shared or of
    files.
    """
    mm = k.mm
    if length == 0:
        return -EINVAL
    if length < 0 or length > mm.task_size or mm.map_count > mm.max_map_count:
        return -ENOMEM
    length = page_align(length)
    if flags & ~MAP_KNOWN or flags & MAP_SHARED or not flags & MAP_ANONYMOUS:
        return -EOPNOTSUPP
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if addr < 0 or length > mm.task_size - addr:
            return -ENOMEM
        if addr & ((1 << PAGE_SHIFT) - 1):
            return -EINVAL
        if addr < mm.mmap_min_addr:
            return -EPERM
        if flags & MAP_FIXED_NOREPLACE and intersects(k, addr, addr + length):
            return -EEXIST
    else:
        addr = get_unmapped_area(k, addr, length)
        if addr < 0:
            return addr
    if not flags & MAP_PRIVATE:
        return -EINVAL
    vm_flags = prot & 7
    if flags & MAP_NORESERVE and mm.overcommit != 2:
        vm_flags |= VM_NORESERVE
    elif vm_flags & VM_WRITE:
        vm_flags |= VM_ACCOUNT
    addr = map_region(k, addr, length, vm_flags)
    if addr >= 0 and flags & MAP_POPULATE:
        populate(k, find_vma(k, addr), addr, addr + length)
    return addr


@jit(cold=True)
def mmap(k, addr, length, prot, flags):
    """The system call: :func:`do_mmap`, counted."""
    mm = k.mm
    mm.nr_mmap += 1
    result = do_mmap(k, addr, length, prot, flags)
    if result < 0:
        mm.nr_failed += 1
    return result


@jit(cold=True)
def munmap(k, addr, length):
    """The system call: :func:`do_munmap`, counted."""
    mm = k.mm
    mm.nr_munmap += 1
    result = do_munmap(k, addr, length)
    if result < 0:
        mm.nr_failed += 1
    return result
