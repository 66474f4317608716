"""mlock, mlock2 and munlock; and populate, which mmap, mremap and mprotect use too."""

from kernel import types
from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import lock_frames, populate_area
from kernel.merge import modify_vma
from kernel.page import offset_in_page, page_align, page_start
from kernel.uapi import EINVAL, ENOMEM, EPERM, MLOCK_ONFAULT
from kernel.vma import find_vma


@jit
def can_lock(k):
    """Return True if the process may lock memory at all (RLIMIT_MEMLOCK is not 0)."""
    return k.mm.rlim_memlock != 0


@jit(cold=True)
def populate(k, start, end, ignore_errors):
    """Fault in the mapped pages of [start, end): by a write if private and writable, else a read.

    Returns 0.  At an area without rights it stops and returns -ENOMEM, or skips the area if
    ``ignore_errors``.
    """
    i = find_vma(k, start)
    while start < end and i < k.mm.map_count and k.vma[i].vm_start < end:
        v = k.vma[i]
        flags = v.vm_flags
        if flags & (types.VM_SPECIAL | types.VM_LOCKONFAULT) == 0:
            if flags & (types.VM_READ | types.VM_WRITE | types.VM_EXEC):
                write = 1 if flags & (types.VM_WRITE | types.VM_SHARED) == types.VM_WRITE else 0
                populate_area(k, i, max(start, v.vm_start), min(end, v.vm_end), write)
            elif not ignore_errors:
                return -ENOMEM
        i += 1
    return 0


@jit(cold=True)
def _locked_within(k, start, end):
    """Return the number of pages of [start, end) in locked areas."""
    total = 0
    i = find_vma(k, start)
    while i < k.mm.map_count and k.vma[i].vm_start < end:
        v = k.vma[i]
        if v.vm_flags & types.VM_LOCKED:
            total += (min(end, v.vm_end) - max(start, v.vm_start)) >> PAGE_SHIFT
        i += 1
    return total


@jit(cold=True)
def _apply_lock_flags(k, start, size, lock):
    """Set the lock flags of every area in [start, start + size) to ``lock``.

    ``start`` and ``size`` are unsigned 64-bit numbers.  Returns 0, -ENOMEM at a hole, or -EINVAL if
    the sum overflows.
    """
    mm = k.mm
    end = start + size
    if (start < 0 and size < 0) or ((start < 0 or size < 0) and end >= 0 and size):
        return -EINVAL
    if size == 0:
        return 0
    if end < 0:
        return -ENOMEM
    i = find_vma(k, start)
    if i == mm.map_count or k.vma[i].vm_start > start:
        return -ENOMEM
    while start < end:
        if i == mm.map_count or k.vma[i].vm_start > start:
            return -ENOMEM
        stop = min(end, k.vma[i].vm_end)
        old = k.vma[i].vm_flags
        new = old & ~(types.VM_LOCKED | types.VM_LOCKONFAULT) | lock
        if new != old and not old & types.VM_SPECIAL:
            j = modify_vma(k, i, start, stop, new)
            if j < 0:
                return j
            if not new & types.VM_LOCKED:
                mm.locked_vm -= (stop - start) >> PAGE_SHIFT
            elif not old & types.VM_LOCKED:
                mm.locked_vm += (stop - start) >> PAGE_SHIFT
            lock_frames(k, start, stop, lock)
            # The part that it merged with already has these flags.
            stop = k.vma[j].vm_end
        start = stop
        i = find_vma(k, start)
    return 0


@jit
def _page_range(addr, length):
    """Return the size, bytes, of the pages that [addr, addr + length) overlaps; < 0 from 2**63."""
    return page_align(offset_in_page(addr) + length)


@jit(cold=True)
def do_mlock(k, addr, length, flags):
    """Lock the pages of [addr, addr + length) and fault them in; return 0 or a negative errno."""
    mm = k.mm
    if not can_lock(k):
        return -EPERM
    start = page_start(addr)
    size = _page_range(addr, length)
    if size < 0:
        return -ENOMEM
    end = start + size
    limit = mm.rlim_memlock >> PAGE_SHIFT
    locked = (size >> PAGE_SHIFT) + mm.locked_vm
    if locked > limit:
        locked -= _locked_within(k, start, end)
    if locked > limit:
        return -ENOMEM
    error = _apply_lock_flags(
        k, start, size, types.VM_LOCKED | (types.VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0)
    )
    if error < 0:
        return error
    return populate(k, start, end, 0)


@jit(cold=True)
def mlock(k, addr, length, flags):
    """Run and count the system call, mlock or mlock2 (``flags``): :func:`do_mlock`."""
    mm = k.mm
    mm.nr_mlock += 1
    result = do_mlock(k, addr, length, flags)
    if result < 0:
        mm.nr_failed += 1
    return result


@jit(cold=True)
def munlock(k, addr, length):
    """Run and count the system call: unlock [addr, addr + length); return 0 or a negative errno."""
    mm = k.mm
    mm.nr_mlock += 1
    start = page_start(addr)
    result = _apply_lock_flags(k, start, _page_range(addr, length), 0)
    if result < 0:
        mm.nr_failed += 1
    return result
