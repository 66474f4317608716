"""mprotect: change the rights of a range, area by area; changes before an error stay."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.fault import drop_rights
from kernel.limits import enough_memory, may_expand_vm
from kernel.merge import modify_vma
from kernel.mlock import populate
from kernel.page import offset_in_page, page_align
from kernel.types import VM_ACCOUNT, VM_GROWSDOWN, VM_LOCKED, VM_NORESERVE, VM_SHARED, VM_WRITE
from kernel.uapi import EACCES, EINVAL, ENOMEM, PROT_GROWSDOWN, PROT_GROWSUP
from kernel.vma import account_vm, find_vma


@jit(cold=True)
def _protect(k, i, start, end, flags):
    """Set the flags of [start, end), a part of area ``i``; return the end of its area now.

    Returns -ENOMEM if a limit is exceeded.  A private range is charged as committed when it first
    becomes writable.  Becoming read-only undoes the charge only if nothing was ever written.
    """
    mm = k.mm
    old = k.vma[i].vm_flags
    if flags == old:
        return end
    pages = (end - start) >> PAGE_SHIFT
    charged = 0
    if flags & VM_WRITE:
        if not may_expand_vm(k, flags, pages) and may_expand_vm(k, old, pages):
            return -ENOMEM
        if not old & (VM_ACCOUNT | VM_WRITE | VM_SHARED | VM_NORESERVE):
            if not enough_memory(k, pages):
                return -ENOMEM
            charged = pages
            flags |= VM_ACCOUNT
    elif old & VM_ACCOUNT and not k.vma[i].vm_file and not k.vma[i].anon_vma:
        flags &= ~VM_ACCOUNT
    j = modify_vma(k, i, start, end, flags)
    if j < 0:
        return j
    mm.committed += charged
    drop_rights(k, start, end)
    if old & VM_ACCOUNT and not flags & VM_ACCOUNT:
        mm.committed -= pages
    if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
        populate(k, start, end, 1)
    account_vm(k, old, -pages)
    account_vm(k, flags, pages)
    return k.vma[j].vm_end


@jit(cold=True)
def do_mprotect(k, start, length, prot):
    """Change the rights of [start, start + length); return 0 or a negative errno."""
    mm = k.mm
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP or offset_in_page(start):
        return -EINVAL
    if length == 0:
        return 0
    end = start + page_align(min(length, 1 << 62))
    if length < 0 and end < 0 <= start:
        end = 1 << 62  # a length of 2**63 or more whose sum with start does not overflow
    if start < 0 or end <= start:
        return -ENOMEM
    if prot & ~0xF:
        return -EINVAL
    i = find_vma(k, start)
    if i == mm.map_count or k.vma[i].vm_start >= end:
        return -ENOMEM
    if grows & PROT_GROWSDOWN:
        start = k.vma[i].vm_start
        if not k.vma[i].vm_flags & VM_GROWSDOWN:
            return -EINVAL
    elif grows and k.vma[i].vm_start <= start:
        return -EINVAL  # x86-64 has no areas that grow upwards
    while start < end:
        if i == mm.map_count or k.vma[i].vm_start > start:
            return -ENOMEM
        flags = k.vma[i].vm_flags & ~7 | prot & 7
        # VM_MAYREAD, VM_MAYWRITE and VM_MAYEXEC are four bits above the rights that they allow.
        if flags & ~(flags >> 4) & 7:
            return -EACCES
        stop = _protect(k, i, start, min(end, k.vma[i].vm_end), flags)
        if stop < 0:
            return stop
        start = stop
        i = find_vma(k, start)
    return 0


@jit(cold=True)
def mprotect(k, addr, length, prot):
    """Run and count the system call (:func:`do_mprotect`)."""
    mm = k.mm
    mm.nr_mprotect += 1
    result = do_mprotect(k, addr, length, prot)
    if result < 0:
        mm.nr_failed += 1
    return result
