"""System call entry: dispatch a call by its number and six arguments, as the hardware passes them.

Used where calls are data: random programs (kernel.linux.verify) and recorded programs
(kernel.linux.replay).  Allocators call the functions of the individual system calls directly.
"""

from kernel import uapi
from kernel.brk import brk
from kernel.engine.jit import jit
from kernel.limits import setrlimit
from kernel.madvise import madvise
from kernel.mlock import mlock, munlock
from kernel.mmap import mmap_file, munmap
from kernel.mprotect import mprotect
from kernel.mremap import mremap


@jit
def syscall(k, nr, a, b, c, d, e, f):
    """Run system call ``nr``; return the value of the result register: a value or negative errno.

    -ENOSYS for a call outside the model.  The second argument of setrlimit is the soft limit
    itself; Linux takes a pointer to it.
    """
    if nr == uapi.NR_MMAP:
        return mmap_file(k, a, b, c, d, e, f)
    if nr == uapi.NR_MUNMAP:
        return munmap(k, a, b)
    if nr == uapi.NR_BRK:
        return brk(k, a)
    if nr == uapi.NR_MREMAP:
        return mremap(k, a, b, c, d, e)
    if nr == uapi.NR_MPROTECT:
        return mprotect(k, a, b, c)
    if nr == uapi.NR_MADVISE:
        return madvise(k, a, b, c)
    if nr == uapi.NR_MLOCK:
        return mlock(k, a, b, 0)
    if nr == uapi.NR_MLOCK2:
        return mlock(k, a, b, c) if c & ~uapi.MLOCK_ONFAULT == 0 else -uapi.EINVAL
    if nr == uapi.NR_MUNLOCK:
        return munlock(k, a, b)
    if nr == uapi.NR_SETRLIMIT:
        return setrlimit(k, a, b)
    return -uapi.ENOSYS
