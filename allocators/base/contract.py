"""Contract of an allocator: module-level ``@jit`` functions of a kernel ``k`` and a state ``a``.

A plugin file gives

    STATE        np.dtype, its static variables (what libc keeps in .data); one record, zeroed
    init         (k, a)                  once per process, before the first request
    malloc       (k, a, size)            address, or 0 when memory is exhausted
    free         (k, a, p)               p is never 0
    usable_size  (k, a, p)               bytes the program may use at p, >= what was asked

and may give (defaults are below)

    realloc      (k, a, p, size)         p != 0, size > 0; the new address, or 0 with p kept
    calloc       (k, a, size)            zeroed memory
    aligned_alloc(k, a, alignment, size) alignment: a power of two; its default serves <= 16 only
    walk         (k, a, rows)            every block, see below
    check        (k, a)                  0, or the key of CHECKS that says which invariant broke
    thread_exit  (k, a)                  the running thread ends
    trim         (k, a)                  give back to the kernel what can be given
    reset        (k, a)                  drop every object at once (arenas)
    CHECKS       {code: meaning}
    promises     (settings) -> Promises  what the design detects and gives back
    check_settings (settings)            raise ValueError for impossible combinations

All metadata lives in simulated memory, through :func:`kernel.access.load` and ``store`` (8 bytes;
``load_half`` and ``store_half``: 2); the fields of STATE stand for the library's static variables.
Compiled code makes no objects, calls only ``@jit`` functions imported by name, and reports a broken
call with :func:`kernel.task.abort`.

``walk`` writes one row (address, bytes, kind) per piece of the heap through :func:`emit`, in any
order, and returns how many rows there are, which may be more than fit: the caller then asks again
with more room.  A USED row is exactly what malloc returned and its usable bytes.
"""

from dataclasses import dataclass

import numpy as np

from allocators.base import operation as ops
from kernel.access import clear, copy
from kernel.engine.jit import jit

#: Addresses returned are multiples of this, bytes (x86-64's and arm64's max_align_t).
ALIGNMENT = 16
#: No allocator serves a larger request, bytes: a process has 2**47 in all.
MAX_REQUEST = 1 << 46

#: A plugin sees thread numbers (``k.task.tid``) from 0 to MAX_THREADS - 1.
MAX_THREADS = 4096

#: Kinds of a walk row.
BLOCK_USED, BLOCK_FREE, BLOCK_HEADER = 1, 2, 3

#: The names that a plugin may define; build() binds them in every function that mentions them.
CONTRACT = (
    "init",
    "malloc",
    "free",
    "usable_size",
    "realloc",
    "calloc",
    "aligned_alloc",
    "walk",
    "check",
    "thread_exit",
    "trim",
    "reset",
)
REQUIRED = ("init", "malloc", "free", "usable_size")


@dataclass(frozen=True)
class Promises:
    """Misuse that a design detects, and memory that it returns; allocators.verify tests both.

    ``retains`` is the largest number of bytes still mapped after the last object was freed (and
    after ``trim``); None where the design never gives memory back.  ``settles`` is False where the
    design moves its own limits, so that the heap may grow while the same work is repeated.
    """

    double_free: bool = False
    wild_free: bool = False
    retains: int | None = None
    settles: bool = True


@jit(inline=True)
def align_up(n, alignment):
    """Round ``n`` up to a multiple of ``alignment``, a power of two."""
    return (n + alignment - 1) & -alignment


@jit
def emit(rows, n, address, size, kind):
    """Write row ``n`` of a walk if it fits; returns ``n + 1``."""
    if n < rows.shape[0]:
        rows[n, 0] = address
        rows[n, 1] = size
        rows[n, 2] = kind
    return n + 1


# --- What a plugin must give (bound to the plugin's own by build) --------------------------------


@jit
def init(k, a):
    """Prepare the heap.  Must not fail: memory that is lacking shows at the first malloc."""


@jit
def malloc(k, a, size) -> int:
    """Return the address of ``size`` >= 0 bytes, a multiple of ALIGNMENT, or 0."""
    raise NotImplementedError


@jit
def free(k, a, p):
    """Take back the block at ``p`` != 0."""
    raise NotImplementedError


@jit
def usable_size(k, a, p) -> int:
    """Return the bytes that the program may use at ``p``."""
    raise NotImplementedError


# --- Defaults -----------------------------------------------------------------------------------


@jit
def move(k, a, p, old, size):
    """Serve a realloc by a new block: ``old`` usable bytes at ``p`` go there, ``p`` is freed.

    0 when the kernel refuses; ``p`` is kept then.
    """
    q = malloc(k, a, size)
    if q:
        copy(k, q, p, min(old, size))
        free(k, a, p)
    return q


@jit
def realloc(k, a, p, size) -> int:
    """Keep a block that still fits and is not twice too large; else move it."""
    old = usable_size(k, a, p)
    if old // 2 <= size <= old:
        return p
    return move(k, a, p, old, size)


@jit
def calloc(k, a, size) -> int:
    """malloc, then clear."""
    p = malloc(k, a, size)
    if p:
        clear(k, p, size)
    return p


@jit
def aligned_alloc(k, a, alignment, size) -> int:
    """Serve what malloc's own alignment covers, refuse the rest."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    return 0


@jit
def walk(k, a, rows) -> int:
    """List nothing."""
    return 0


@jit
def check(k, a) -> int:
    """Find nothing wrong."""
    return 0


@jit
def thread_exit(k, a):
    """Keep nothing per thread."""


@jit
def trim(k, a):
    """Give nothing back."""


@jit
def reset(k, a):
    """Have no way to drop all objects at once."""


# --- Operations -----------------------------------------------------------------------------------


@jit
def perform(k, a, op, p, size, alignment):
    """Do operation ``op`` (allocators.base.operation) as the C library: its answer, or 0.

    ``p``: the block that it is about; of NULL, realloc is malloc and free nothing.  A realloc to
    size 0 frees.
    """
    if op == ops.MALLOC or (op == ops.REALLOC and p == 0):
        return malloc(k, a, size)
    if op == ops.FREE or (op == ops.REALLOC and size == 0):
        if p:
            free(k, a, p)
        return 0
    if op == ops.REALLOC:
        return realloc(k, a, p, size)
    if op == ops.CALLOC:
        return calloc(k, a, size)
    if op == ops.ALIGNED:
        return aligned_alloc(k, a, alignment, size)
    if op == ops.USABLE:
        return usable_size(k, a, p) if p else 0
    if op == ops.TRIM:
        trim(k, a)
    elif op == ops.THREAD_END:
        thread_exit(k, a)
    return 0


#: STATE of a plugin without static variables (a record cannot be empty).
NO_STATE = np.dtype([("unused", "i8")])
