"""Resource limits of a process, and the machine's limit of committed memory (overcommit)."""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.types import VM_GROWSDOWN, VM_LOCKED, VM_NORESERVE, VM_SHARED, VM_WRITE
from kernel.uapi import EINVAL, RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK


@jit
def may_expand_vm(k, flags, pages):
    """Return True if RLIMIT_AS, and RLIMIT_DATA for data, allow ``pages`` more (may be negative).

    Ignores an RLIMIT_DATA of 0, as Linux does to support Valgrind.
    """
    mm = k.mm
    if mm.total_vm + pages > mm.rlim_as >> PAGE_SHIFT:
        return False
    is_data = flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE
    over = mm.data_vm + pages > mm.rlim_data >> PAGE_SHIFT
    return not (is_data and over and mm.rlim_data)


@jit
def may_lock(k, flags, pages):
    """Return True if RLIMIT_MEMLOCK allows ``pages`` more of an area with ``flags``."""
    mm = k.mm
    return not flags & VM_LOCKED or mm.locked_vm + pages <= mm.rlim_memlock >> PAGE_SHIFT


@jit
def accountable(flags):
    """Return True if a new mapping with ``flags`` counts as committed memory."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE


@jit
def enough_memory(k, pages):
    """Return True if overcommit allows ``pages`` more committed pages.

    Mode 0 refuses one request larger than RAM + swap, mode 1 refuses nothing, mode 2 refuses a
    request that exceeds the commit limit.  Without a memory limit nothing is refused.
    """
    mm = k.mm
    if mm.memory == 0 or mm.overcommit == 1 or pages == 0:
        return True
    if mm.overcommit == 0:
        return pages <= mm.memory + mm.swap
    allowed = mm.commit_limit - min(mm.total_vm // 32, mm.user_reserve)
    return mm.committed + pages < allowed


@jit(cold=True)
def setrlimit(k, resource, soft):
    """Set a soft limit, bytes; return 0, or -EINVAL for a resource outside the model."""
    mm = k.mm
    if resource == RLIMIT_AS:
        mm.rlim_as = soft
    elif resource == RLIMIT_DATA:
        mm.rlim_data = soft
    elif resource == RLIMIT_MEMLOCK:
        mm.rlim_memlock = soft
    elif resource == RLIMIT_STACK:
        mm.rlim_stack = soft
    else:
        return -EINVAL
    return 0
