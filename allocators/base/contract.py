"""Contract of an allocator: module-level ``@jit`` functions of a kernel ``k`` and a state ``a``.

A plugin file must define

    STATE        np.dtype of its static variables (a C library's .data); one record, zeroed
    init         (k, a)                  once per process, before the first request
    malloc       (k, a, size)            address, or 0 when memory is exhausted
    free         (k, a, p)               p is never 0
    usable_size  (k, a, p)               bytes the program may use at p, >= the requested size

and may define (the defaults are below)

    realloc      (k, a, p, size)         p != 0, size > 0; the new address, or 0 with p kept
    calloc       (k, a, size)            zeroed memory
    aligned_alloc(k, a, alignment, size) alignment: a power of two; its default serves <= 16 only
    walk         (k, a, rows)            list every block, see below
    check        (k, a)                  0, or the key in CHECKS of a broken invariant
    thread_exit  (k, a)                  the running thread ends
    trim         (k, a)                  return free memory to the kernel
    reset        (k, a)                  drop every object at once (arenas)
    CHECKS       {code: meaning}
    promises     (settings) -> Promises  the misuse it detects, the memory it returns
    check_settings (settings)            raise ValueError for invalid combinations

All metadata is in simulated memory, accessed with :func:`kernel.access.load` and ``store`` (8
bytes; ``load_half`` and ``store_half``: 2).  The fields of STATE are the library's static
variables.  Compiled code makes no objects, calls only ``@jit`` functions imported by name, and
reports an invalid call with :func:`kernel.task.abort`.

``walk`` writes one row (address, bytes, kind) per piece of the heap with :func:`emit`, in any
order, and returns the number of rows.  If there are more rows than fit, the caller repeats the call
with a larger table.  A USED row has the address that malloc returned and the usable bytes.
"""

from dataclasses import dataclass

import numpy as np

from allocators.base import operation as ops
from kernel.access import clear, copy
from kernel.engine.jit import jit

#: Alignment of every returned address, bytes (that of max_align_t on x86-64 and arm64).
ALIGNMENT = 16
#: Largest request that an allocator serves, bytes; the address space has 2**47.
MAX_REQUEST = 1 << 46

#: Number of threads; ``k.task.tid`` is 0 to MAX_THREADS - 1.
MAX_THREADS = 4096

#: Kinds of a walk row.
BLOCK_USED, BLOCK_FREE, BLOCK_HEADER = 1, 2, 3

#: Functions that a plugin may define; build() binds these names in every function that uses them.
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
    after ``trim``); None if the design never returns memory.  ``settles`` is False if the design
    adapts its limits, so that the heap may grow while the same work is repeated.
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
    """Write row ``n`` of a walk if it fits; return ``n + 1``."""
    if n < rows.shape[0]:
        rows[n, 0] = address
        rows[n, 1] = size
        rows[n, 2] = kind
    return n + 1


# --- Functions that a plugin must define; build binds these names to them -------------------------


@jit
def init(k, a):
    """Prepare the heap.  Must not fail: without memory, the first malloc returns 0."""


@jit
def malloc(k, a, size) -> int:
    """Return the address of ``size`` >= 0 bytes, a multiple of ALIGNMENT, or 0."""
    raise NotImplementedError


@jit
def free(k, a, p):
    """Free the block at ``p`` != 0."""
    raise NotImplementedError


@jit
def usable_size(k, a, p) -> int:
    """Return the bytes that the program may use at ``p``."""
    raise NotImplementedError


# --- Defaults -----------------------------------------------------------------------------------


@jit
def move(k, a, p, old, size):
    """Serve a realloc with a new block: copy the ``old`` usable bytes at ``p``, then free ``p``.

    Return 0 and keep ``p`` if there is no memory.
    """
    q = malloc(k, a, size)
    if q:
        copy(k, q, p, min(old, size))
        free(k, a, p)
    return q


@jit
def realloc(k, a, p, size) -> int:
    """Keep a block that is large enough and at most twice as large as needed; else move it."""
    old = usable_size(k, a, p)
    if old // 2 <= size <= old:
        return p
    return move(k, a, p, old, size)


@jit
def calloc(k, a, size) -> int:
    """Allocate with malloc, then clear."""
    p = malloc(k, a, size)
    if p:
        clear(k, p, size)
    return p


@jit
def aligned_alloc(k, a, alignment, size) -> int:
    """Serve alignments up to malloc's own; refuse larger ones."""
    if alignment <= ALIGNMENT:
        return malloc(k, a, size)
    return 0


@jit
def walk(k, a, rows) -> int:
    """List no block."""
    return 0


@jit
def check(k, a) -> int:
    """Check no invariant."""
    return 0


@jit
def thread_exit(k, a):
    """Do nothing: the design keeps no data per thread."""


@jit
def trim(k, a):
    """Return no memory to the kernel."""


@jit
def reset(k, a):
    """Do nothing: the design cannot drop all objects at once."""


# --- Operations -----------------------------------------------------------------------------------


@jit
def perform(k, a, op, p, size, alignment):
    """Perform operation ``op`` (allocators.base.operation) as a C library; return its result or 0.

    ``p``: the block, or 0 for NULL: then realloc calls malloc, and free does nothing.  A realloc
    to size 0 frees the block.
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
