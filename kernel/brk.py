"""brk and libc's sbrk: move the end of the heap, the area that begins at start_brk."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.limits import enough_memory, may_expand_vm
from kernel.merge import add_vma
from kernel.mmap import do_munmap, refuse_collision
from kernel.page import page_align, page_size
from kernel.stack import vm_start_gap
from kernel.types import VM_ACCOUNT, VM_MAYEXEC, VM_MAYREAD, VM_MAYWRITE, VM_READ, VM_WRITE
from kernel.uapi import ENOMEM, RLIM_INFINITY
from kernel.vma import account_vm, find_vma, insert_vma, intersects


@jit
def do_brk(k, brk):
    """Move the break to ``brk``; return the resulting break, the old one when refused."""
    mm = k.mm
    old = mm.brk
    if brk < mm.start_brk or brk > mm.task_size:
        return old
    data = brk - mm.start_brk + mm.end_data - mm.start_data
    if mm.rlim_data != RLIM_INFINITY and data > mm.rlim_data:
        return old
    old_end = page_align(old)
    new_end = page_align(brk)
    if new_end == old_end:
        mm.brk = brk
        return brk
    if new_end < old_end:
        # If munmap has already removed the end of the heap, Linux refuses to shrink it.
        if not intersects(k, new_end, old_end) or do_munmap(k, new_end, old_end - new_end) < 0:
            return old
        mm.brk = brk
        return brk
    # One page above must stay free, and so must the guard gap of a stack.
    i = find_vma(k, old_end)
    if i < mm.map_count and vm_start_gap(k, i) < new_end + page_size():
        return old
    pages = (new_end - old_end) >> PAGE_SHIFT
    flags = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_ACCOUNT
    if mm.map_count > mm.max_map_count or not may_expand_vm(k, flags, pages):
        return old
    if not enough_memory(k, pages):
        return old
    refuse_collision(k, old_end, new_end)
    mm.committed += pages
    if old_end > mm.start_brk:
        add_vma(k, old_end, new_end, flags, old_end >> PAGE_SHIFT, 0, 0)
    else:
        # The heap's first area never merges with an area that ends where it begins (bss).
        insert_vma(k, i, old_end, new_end, flags, old_end >> PAGE_SHIFT, 0, 0)
    account_vm(k, flags, pages)
    mm.brk = brk
    return brk


@jit(cold=True)
def brk(k, addr):
    """Run and count the system call; return the resulting break (``addr`` on success).

    brk(0) queries the break and is never counted as failed.
    """
    mm = k.mm
    mm.nr_brk += 1
    result = do_brk(k, addr)
    if result != addr and addr:
        mm.nr_failed += 1
    return result


@jit(cold=True)
def sbrk(k, increment):
    """Move the break by ``increment`` bytes, as libc's sbrk; return the old break or -ENOMEM.

    libc answers sbrk(0) from its own copy of the break, without a system call.
    """
    old = k.mm.brk
    if increment == 0:
        return old
    if brk(k, old + increment) != old + increment:
        return -ENOMEM
    return old
