"""brk and libc's sbrk: the heap is the area above start_brk, and its end moves."""

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
    """Move the break to ``brk``; returns the break in force, the old one when refused."""
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
        # munmap may have taken the end of the heap already: nothing to shrink is a refusal.
        if not intersects(k, new_end, old_end) or do_munmap(k, new_end, old_end - new_end) < 0:
            return old
        mm.brk = brk
        return brk
    # One page above must stay free, and a stack its guard.
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
        # The heap's first area stays apart from what ends where it begins (a program's bss).
        insert_vma(k, i, old_end, new_end, flags, old_end >> PAGE_SHIFT, 0, 0)
    account_vm(k, flags, pages)
    mm.brk = brk
    return brk


@jit(cold=True)
def brk(k, addr):
    """The system call: the break in force afterwards (``addr`` when it worked), counted.

    brk(0) only asks.
    """
    mm = k.mm
    mm.nr_brk += 1
    result = do_brk(k, addr)
    if result != addr and addr:
        mm.nr_failed += 1
    return result


@jit(cold=True)
def sbrk(k, increment):
    """libc's sbrk: move the break by ``increment`` bytes; the old break, or -ENOMEM.

    sbrk(0) is answered by libc from its own record and is no system call.
    """
    old = k.mm.brk
    if increment == 0:
        return old
    if brk(k, old + increment) != old + increment:
        return -ENOMEM
    return old
