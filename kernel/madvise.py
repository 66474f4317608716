"""madvise(MADV_DONTNEED): the pages go, the mapping stays, the next read sees zeros."""

from kernel.fault import zap_pages, zap_whole_slots
from kernel.jit import jit
from kernel.mmap import page_align
from kernel.switches import PAGE_SHIFT
from kernel.types import EINVAL, ENOMEM, MADV_DONTNEED, VM_LOCKED
from kernel.vma import find_vma


@jit
def do_madvise(k, addr, length, advice):
    """Advise about [addr, addr + length); 0 or a negative errno.

    A hole gives -ENOMEM, but only after the mapped parts have been served, as Linux does.
    """
    if advice != MADV_DONTNEED or addr & ((1 << PAGE_SHIFT) - 1) or length < 0:
        return -EINVAL
    if length and addr < 0:
        return -ENOMEM  # the upper half of the address space: no area there
    end = addr + page_align(min(length, k.mm.task_size))
    result = 0
    i = find_vma(k, addr)
    while addr < end:
        if i == k.mm.map_count or k.vma[i].vm_start >= end:
            return -ENOMEM
        v = k.vma[i]
        if v.vm_start > addr:
            result = -ENOMEM
            addr = v.vm_start
        if v.vm_flags & VM_LOCKED:
            return -EINVAL
        stop = min(end, v.vm_end)
        zap_pages(k, addr, stop)
        zap_whole_slots(k, addr, stop)
        addr = stop
        i += 1
    return result


@jit(cold=True)
def madvise(k, addr, length, advice):
    """The system call: :func:`do_madvise`, counted."""
    mm = k.mm
    mm.nr_madvise += 1
    result = do_madvise(k, addr, length, advice)
    if result < 0:
        mm.nr_failed += 1
    return result
