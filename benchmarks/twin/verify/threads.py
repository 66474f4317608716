"""Model of the C library's threads: their stacks, and the memory they take from the heap.

::

    stack of a thread, 8 MiB and a guard page, mapped PROT_NONE as a whole, then made accessible

    base │ guard │ … untouched … │ touched │ kept when it ends │ start │ descriptor │ end

pthread_create reuses the most recently cached stack.  If there is none, it maps one, writes the
descriptor at its end and allocates the thread's vector of pointers to thread-local storage by
calloc; a cached stack keeps its vector.  A thread that ends returns its tcache's chunks to malloc,
and all pages of its stack except the last ones to the kernel.  pthread_join caches the stack; if
more than 40 MiB of stacks are cached, the joining thread frees the oldest.

Observed on glibc 2.36 on x86-64 through its address space, like the rest of the twin.
"""

import numpy as np

from allocators.base.contract import calloc, free, thread_exit
from kernel import uapi
from kernel.access import touch
from kernel.engine.jit import jit
from kernel.linux.host.code import MAX_THREADS, THREAD_STACK
from kernel.madvise import madvise
from kernel.mmap import mmap, munmap
from kernel.mprotect import mprotect

_PAGE = 4096
#: Bytes of a stack with its guard; kernel.linux.host.process sets RLIMIT_STACK.
_GUARD = _PAGE
_STACK = (8 << 20) + _GUARD
#: Bytes of the vector: its length, a counter, one library with thread-local storage, 14 spare.
_VECTOR = 17 * 16
#: The descriptor is in the last page; the thread starts in the page before it and touches the
#: bytes below (kernel.linux.host.code).
_START = 2 * _PAGE
_TOUCHED = _START + THREAD_STACK
#: Bytes of its stack that a thread keeps when it ends.
_KEPT = _START + (16 << 10)
#: Maximum bytes of cached stacks.
_CACHE = 40 << 20

#: The threads by number, and the cached stacks, oldest first.
THREADS = np.dtype(
    [
        ("alive", "i8", (MAX_THREADS,)),
        ("stack", "i8", (MAX_THREADS,)),
        ("vector", "i8", (MAX_THREADS,)),
        ("cached", "i8"),
        ("cached_stack", "i8", (MAX_THREADS,)),
        ("cached_vector", "i8", (MAX_THREADS,)),
    ]
)


@jit
def note_second_thread(k, a):
    """Note that the process has a second thread; bound to the twin's function if it has one."""


@jit(cold=True)
def _new_stack(k, a, threads, number):
    """Map a new stack for thread ``number``.  Returns 0 or an error number."""
    stack = mmap(
        k, 0, _STACK, uapi.PROT_NONE, uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS | uapi.MAP_STACK
    )
    if stack < 0:
        return uapi.EAGAIN
    usable = _STACK - _GUARD
    if mprotect(k, stack + _GUARD, usable, uapi.PROT_READ | uapi.PROT_WRITE) < 0:
        munmap(k, stack, _STACK)
        return uapi.EAGAIN
    touch(k, stack + _STACK - _PAGE, 8, 1)
    vector = calloc(k, a, _VECTOR)
    if vector == 0:
        munmap(k, stack, _STACK)
        return uapi.EAGAIN
    threads.stack[number] = stack
    threads.vector[number] = vector
    return 0


@jit(cold=True)
def start_thread(k, a, threads, number):
    """Do pthread_create on the current thread.  Returns 0 or an error number."""
    note_second_thread(k, a)
    if threads.cached:
        threads.cached -= 1
        threads.stack[number] = threads.cached_stack[threads.cached]
        threads.vector[number] = threads.cached_vector[threads.cached]
    else:
        error = _new_stack(k, a, threads, number)
        if error:
            return error
    threads.alive[number] = 1
    touch(k, threads.stack[number] + _STACK - _TOUCHED, _TOUCHED, 1)
    return 0


@jit(cold=True)
def end_thread(k, a, threads, number):
    """Let thread ``number`` return, and join it from the current thread.  Returns 0."""
    joiner = k.task.tid
    k.task.tid = number
    thread_exit(k, a)
    k.task.tid = joiner
    stack = threads.stack[number]
    madvise(k, stack, _STACK - _KEPT, uapi.MADV_DONTNEED)
    threads.alive[number] = 0
    threads.cached_stack[threads.cached] = stack
    threads.cached_vector[threads.cached] = threads.vector[number]
    threads.cached += 1
    while threads.cached * _STACK > _CACHE:
        free(k, a, threads.cached_vector[0])
        munmap(k, threads.cached_stack[0], _STACK)
        threads.cached -= 1
        for i in range(threads.cached):
            threads.cached_stack[i] = threads.cached_stack[i + 1]
            threads.cached_vector[i] = threads.cached_vector[i + 1]
    return 0
