"""mmap and munmap by Linux's rules; errors are returned as negative errnos.

mmap with MAP_FIXED over existing areas, in the observed order: split areas at the boundaries, check
limits, free the old pages and their tables.  If a limit is exceeded, the splits stay.
"""

from kernel import types, uapi
from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT, WINDOW_BITS
from kernel.fault import zap_pages
from kernel.layout import get_unmapped_area
from kernel.limits import accountable, enough_memory, may_expand_vm, may_lock
from kernel.merge import add_vma, split_vma
from kernel.mlock import can_lock, populate
from kernel.page import offset_in_page, page_align, page_start
from kernel.pgtable import free_tables
from kernel.task import kill
from kernel.vma import account_vm, find_vma, intersects, remove_vmas

#: Upper limit for freeing tables above the last area: beyond the end of any slot.
NO_CEILING = 1 << 62
#: All rights that mprotect may grant later.
_MAY_ALL = types.VM_MAYREAD | types.VM_MAYWRITE | types.VM_MAYEXEC
#: The flags that MAP_SHARED_VALIDATE accepts; plain MAP_SHARED and MAP_PRIVATE ignore others.
_VALIDATED_FLAGS = (
    uapi.MAP_SHARED
    | uapi.MAP_PRIVATE
    | uapi.MAP_SHARED_VALIDATE
    | uapi.MAP_FIXED
    | uapi.MAP_ANONYMOUS
    | uapi.MAP_DENYWRITE
    | uapi.MAP_EXECUTABLE
    | uapi.MAP_GROWSDOWN
    | uapi.MAP_LOCKED
    | uapi.MAP_NORESERVE
    | uapi.MAP_POPULATE
    | uapi.MAP_NONBLOCK
    | uapi.MAP_STACK
    | uapi.MAP_HUGETLB
    | uapi.MAP_32BIT
    | uapi.MAP_ABOVE4G
)


@jit(cold=True)
def refuse_collision(k, start, end):
    """Kill the process (SIGSYS) if [start, end) would overlap another area in the folded window.

    The window cannot hold both; a larger kernel.window_bits can.
    """
    if k.mm.layout_only:
        return
    mask = (1 << WINDOW_BITS) - 1
    if end - start > mask:
        kill(k, types.SIGSYS, types.SYS_WINDOW, start, 0)
    for i in range(k.mm.map_count):
        v = k.vma[i]
        # Circular intervals overlap when one starts inside the other.
        above = (v.vm_start - start) & mask
        below = (start - v.vm_start) & mask
        if above < end - start or below < v.vm_end - v.vm_start:
            kill(k, types.SIGSYS, types.SYS_WINDOW, start, 0)


@jit(cold=True)
def split_range(k, start, end):
    """Split the areas that straddle ``start`` or ``end``.

    Returns 0, -ENOMEM if the split would exceed max_map_count, or -EINVAL if one of them cannot be
    split.
    """
    mm = k.mm
    i = find_vma(k, start)
    if i < mm.map_count and k.vma[i].vm_start < start:
        if k.vma[i].vm_flags & types.VM_SPECIAL:
            return -uapi.EINVAL
        # Punching a hole adds one area: refused at the limit.
        if end < k.vma[i].vm_end and mm.map_count >= mm.max_map_count:
            return -uapi.ENOMEM
        split_vma(k, i, start)
    i = find_vma(k, end - 1)
    if i < mm.map_count and k.vma[i].vm_start < end < k.vma[i].vm_end:
        if k.vma[i].vm_flags & types.VM_SPECIAL:
            return -uapi.EINVAL
        split_vma(k, i, end)
    return 0


@jit(cold=True)
def unmap_areas(k, start, end):
    """Remove the areas in [start, end), already split at its bounds, and free their pages."""
    mm = k.mm
    i = find_vma(k, start)
    j = i
    while j < mm.map_count and k.vma[j].vm_start < end:
        v = k.vma[j]
        zap_pages(k, v.vm_start, v.vm_end)
        pages = (v.vm_end - v.vm_start) >> PAGE_SHIFT
        account_vm(k, v.vm_flags, -pages)
        if v.vm_flags & types.VM_ACCOUNT:
            mm.committed -= pages
        if v.vm_flags & types.VM_LOCKED:
            mm.locked_vm -= pages
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
    """Unmap [addr, addr + length), splitting areas as needed; return 0 or a negative errno."""
    mm = k.mm
    if offset_in_page(addr) or length <= 0:
        return -uapi.EINVAL
    if addr < 0 or addr > mm.task_size or length > mm.task_size - addr:
        return -uapi.EINVAL
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
    """Return the number of pages of [start, end) in areas with all flags of ``need``.

    The areas have been split at ``start`` and ``end``.
    """
    total = 0
    i = find_vma(k, start)
    while i < k.mm.map_count and k.vma[i].vm_start < end:
        v = k.vma[i]
        if v.vm_flags & need == need:
            total += (v.vm_end - v.vm_start) >> PAGE_SHIFT
        i += 1
    return total


@jit(cold=True)
def map_region(k, start, length, vm_flags, pgoff, file):
    """Map a new area at [start, start + length), replacing existing areas.

    Returns ``start``, -ENOMEM if a limit is exceeded, or another negative errno.  Limits count the
    new pages minus the replaced ones.
    """
    mm = k.mm
    end = start + length
    pages = length >> PAGE_SHIFT
    error = split_range(k, start, end)
    if error < 0:
        return error
    if not may_expand_vm(k, vm_flags, pages - pages_within(k, start, end, 0)):
        return -uapi.ENOMEM
    if accountable(vm_flags):
        vm_flags |= types.VM_ACCOUNT
        if not enough_memory(k, pages - pages_within(k, start, end, types.VM_ACCOUNT)):
            return -uapi.ENOMEM
    unmap_areas(k, start, end)
    # Linux calls the file system last, after the old areas have gone; no device supports MAP_SYNC.
    if vm_flags & types.VM_SYNC and vm_flags & types.VM_FILE_ALIGN:
        return -uapi.EOPNOTSUPP
    refuse_collision(k, start, end)
    if vm_flags & types.VM_ACCOUNT:
        mm.committed += pages
    if vm_flags & types.VM_LOCKED:
        mm.locked_vm += pages
    add_vma(k, start, end, vm_flags, pgoff, 0, file)
    account_vm(k, vm_flags, pages)
    return start


@jit
def _check_fixed(k, addr, length):
    """Check the fixed address of MAP_FIXED or MREMAP_FIXED; return 0 or a negative errno."""
    mm = k.mm
    if addr < 0 or length > mm.task_size - addr:
        return -uapi.ENOMEM
    if offset_in_page(addr):
        return -uapi.EINVAL
    if addr < mm.dac_mmap_min_addr:
        return -uapi.EPERM
    return 0


@jit(cold=True)
def place_mapping(k, addr, length, pgoff, flags, file, align):
    """Return the address of a new mapping with hint ``addr`` (exactly ``addr`` with MAP_FIXED).

    Returns a negative errno on failure.  ``align``: the file system aligns large mappings to huge
    pages.
    """
    if flags & uapi.MAP_FIXED:
        error = _check_fixed(k, addr, length)
        return error if error < 0 else addr
    return get_unmapped_area(k, addr, length, pgoff, flags, file, align)


@jit(cold=True)
def _file_flags(k, fd, prot, flags):
    """Return the vm_flags that a mapping of descriptor ``fd`` adds, or a negative errno."""
    may = k.file[fd].may
    kind = flags & uapi.MAP_TYPE
    vm_flags = _MAY_ALL
    if k.file[fd].thp_align:
        vm_flags |= types.VM_FILE_ALIGN
    if kind in (uapi.MAP_SHARED, uapi.MAP_SHARED_VALIDATE):
        sync = uapi.MAP_SYNC if k.file[fd].thp_align else 0
        if kind == uapi.MAP_SHARED_VALIDATE and flags & ~(_VALIDATED_FLAGS | sync):
            return -uapi.EOPNOTSUPP
        if prot & uapi.PROT_WRITE and not may & types.VM_MAYWRITE:
            return -uapi.EACCES
        vm_flags |= types.VM_SHARED | types.VM_MAYSHARE
        if not may & types.VM_MAYWRITE:
            vm_flags &= ~(types.VM_MAYWRITE | types.VM_SHARED)
    elif kind != uapi.MAP_PRIVATE:
        return -uapi.EINVAL
    if not may & types.VM_MAYREAD:
        return -uapi.EACCES
    if not may & types.VM_MAYEXEC:
        if prot & types.VM_EXEC:
            return -uapi.EPERM
        vm_flags &= ~types.VM_MAYEXEC
    if flags & uapi.MAP_GROWSDOWN:
        return -uapi.EINVAL
    return vm_flags


@jit
def _anonymous_flags(flags):
    """Return the vm_flags that an anonymous mapping adds, or a negative errno."""
    kind = flags & uapi.MAP_TYPE
    if kind == uapi.MAP_SHARED:
        if flags & uapi.MAP_GROWSDOWN:
            return -uapi.EINVAL
        return _MAY_ALL | types.VM_SHARED | types.VM_MAYSHARE
    if kind == uapi.MAP_PRIVATE:
        return _MAY_ALL
    return -uapi.EINVAL


@jit
def _flag_bits(flags):
    """Return the vm_flags that MAP_* flags imply.  MAP_STACK: no huge pages, since Linux 6.7."""
    bits = 0
    if flags & uapi.MAP_GROWSDOWN:
        bits |= types.VM_GROWSDOWN
    if flags & uapi.MAP_LOCKED:
        bits |= types.VM_LOCKED
    if flags & uapi.MAP_STACK:
        bits |= types.VM_NOHUGEPAGE
    if flags & uapi.MAP_SYNC:
        bits |= types.VM_SYNC
    return bits


@jit
def do_mmap(k, addr, length, prot, flags, fd, offset):
    """Map memory, see mmap(2); return the address or a negative errno.

    -EOPNOTSUPP for an anonymous MAP_HUGETLB mapping, which the model does not have.
    """
    mm = k.mm
    anonymous = flags & uapi.MAP_ANONYMOUS
    file = 0
    align = 0
    if offset_in_page(offset):
        return -uapi.EINVAL
    if not anonymous:
        if fd < 0 or fd >= types.NR_OPEN or not k.file[fd].id:
            return -uapi.EBADF
        file = k.file[fd].id
        align = k.file[fd].thp_align
    if flags & uapi.MAP_HUGETLB:
        return -uapi.EINVAL if not anonymous else -uapi.EOPNOTSUPP
    if length == 0:
        return -uapi.EINVAL
    if length < 0 or length > mm.task_size or mm.map_count > mm.max_map_count:
        return -uapi.ENOMEM
    length = page_align(length)
    if flags & uapi.MAP_FIXED_NOREPLACE:
        flags |= uapi.MAP_FIXED
    if not flags & uapi.MAP_FIXED and 0 < page_start(addr) < mm.mmap_min_addr:
        addr = page_align(mm.mmap_min_addr)
    vm_flags = prot & 7 | _flag_bits(flags)
    pgoff = 0 if anonymous else offset >> PAGE_SHIFT
    addr = place_mapping(k, addr, length, pgoff, flags, file, align)
    if addr < 0:
        return addr
    if flags & uapi.MAP_FIXED_NOREPLACE and intersects(k, addr, addr + length):
        return -uapi.EEXIST
    if flags & uapi.MAP_LOCKED and not can_lock(k):
        return -uapi.EPERM
    if not may_lock(k, vm_flags, length >> PAGE_SHIFT):
        return -uapi.EAGAIN
    more = _anonymous_flags(flags) if anonymous else _file_flags(k, fd, prot, flags)
    if more < 0:
        return more
    vm_flags |= more
    if flags & uapi.MAP_NORESERVE and mm.overcommit != 2:
        vm_flags |= types.VM_NORESERVE
    if anonymous and vm_flags & types.VM_SHARED:
        mm.files += 1
        file = mm.files
    elif anonymous:
        pgoff = addr >> PAGE_SHIFT
    addr = map_region(k, addr, length, vm_flags, pgoff, file)
    if addr >= 0 and (
        vm_flags & types.VM_LOCKED
        or flags & (uapi.MAP_POPULATE | uapi.MAP_NONBLOCK) == uapi.MAP_POPULATE
    ):
        populate(k, addr, addr + length, 1)
    return addr


@jit(cold=True)
def mmap_file(k, addr, length, prot, flags, fd, offset):
    """Run and count the system call (:func:`do_mmap`)."""
    mm = k.mm
    mm.nr_mmap += 1
    result = do_mmap(k, addr, length, prot, flags, fd, offset)
    if result < 0:
        mm.nr_failed += 1
    return result


@jit
def mmap(k, addr, length, prot, flags):
    """Run and count an mmap without a file, as allocators call it."""
    return mmap_file(k, addr, length, prot, flags, -1, 0)


@jit(cold=True)
def munmap(k, addr, length):
    """Run and count the system call (:func:`do_munmap`)."""
    mm = k.mm
    mm.nr_munmap += 1
    result = do_munmap(k, addr, length)
    if result < 0:
        mm.nr_failed += 1
    return result
