"""Areas that grow downwards (stacks, MAP_GROWSDOWN): an access below the area extends it."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.limits import enough_memory, may_expand_vm, may_lock
from kernel.merge import anon_vma_prepare
from kernel.page import page_start
from kernel.types import VM_ACCOUNT, VM_EXEC, VM_GROWSDOWN, VM_LOCKED, VM_READ, VM_WRITE
from kernel.vma import account_vm, move_start

#: Pages kept free below a stack (Linux's stack_guard_gap).
STACK_GUARD_PAGES = 256


@jit
def vm_start_gap(k, i):
    """Return the start of area ``i``, for a downward-growing area minus its guard gap."""
    v = k.vma[i]
    if v.vm_flags & VM_GROWSDOWN:
        return v.vm_start - (STACK_GUARD_PAGES << PAGE_SHIFT)
    return v.vm_start


@jit(cold=True)
def expand_stack(k, i, addr):
    """Grow area ``i`` down to the page of ``addr``; return False if that is not allowed.

    Refused if the area does not grow down, if an accessible area below would be within the guard
    gap, or if RLIMIT_STACK, RLIMIT_AS, RLIMIT_MEMLOCK or overcommit forbids it.
    """
    mm = k.mm
    flags = k.vma[i].vm_flags
    start = page_start(addr)
    if not flags & VM_GROWSDOWN or start < mm.mmap_min_addr:
        return False
    if i > 0:
        below = k.vma[i - 1]
        accessible = below.vm_flags & (VM_READ | VM_WRITE | VM_EXEC)
        if not below.vm_flags & VM_GROWSDOWN and accessible:
            if start - below.vm_end < STACK_GUARD_PAGES << PAGE_SHIFT:
                return False
    anon_vma_prepare(k, i)
    pages = (k.vma[i].vm_start - start) >> PAGE_SHIFT
    if pages > k.vma[i].vm_pgoff or k.vma[i].vm_end - start > mm.rlim_stack:
        return False
    if not may_expand_vm(k, flags, pages) or not may_lock(k, flags, pages):
        return False
    if not enough_memory(k, pages):
        return False
    if flags & VM_ACCOUNT:
        mm.committed += pages
    if flags & VM_LOCKED:
        mm.locked_vm += pages
    account_vm(k, flags, pages)
    move_start(k, i, start)
    return True
