"""Bump: hand out ascending addresses, reuse nothing.  The baseline, and the file to copy.

    alignment 16 · overhead 16 bytes a block · malloc and free O(1) · never returns memory

    start                                   top          end (the break)
    ├ pad │ size │ payload … ├ pad │ size │ …├────────────┤
                 ▲ returned

Invariant: start <= top <= end, and the blocks from start tile the heap up to top.  Region
allocators degenerate to this when nothing dies; it is a lower bound on an allocator's work (Wilson
et al. 1995, section 3.1).
"""

import numpy as np

from allocators.base.contract import (
    ALIGNMENT,
    BLOCK_FREE,
    BLOCK_HEADER,
    BLOCK_USED,
    MAX_REQUEST,
    Promises,
    align_up,
    emit,
)
from allocators.base.settings import size as size_setting
from kernel.access import load, prefetch, store
from kernel.brk import sbrk
from kernel.engine.jit import jit

GROWTH = size_setting(128 << 10, low=4096, text="bytes requested from the kernel at a time")

HEADER = 16
#: Bytes ahead of the top to prefetch: the next headers are in memory that no host cache holds yet.
AHEAD = 2048
#: Set in the size word of the gap before an aligned block.
GAP = 1

STATE = np.dtype([("start", "i8"), ("top", "i8"), ("end", "i8")])
CHECKS = {1: "start <= top <= end does not hold", 2: "the blocks do not end at top"}


def promises(settings):
    """Promise nothing: no misuse is detected, no memory is returned."""
    return Promises()


@jit
def init(k, a):
    """Start the heap at the break, rounded up to the alignment."""
    a.start = align_up(sbrk(k, 0), ALIGNMENT)
    a.top = a.start
    a.end = a.start


@jit(cold=True)
def grow(k, a, need):
    """Move the break so that ``need`` bytes fit above top; return False if the kernel refuses."""
    increment = align_up(a.top + need - a.end, GROWTH)
    if sbrk(k, increment) < 0:
        return False
    a.end += increment
    return True


@jit
def malloc(k, a, size):
    """Write a header at top and return the bytes after it; 0 when memory is exhausted."""
    need = HEADER + align_up(max(size, 1), ALIGNMENT)
    if size > MAX_REQUEST or (a.top + need > a.end and not grow(k, a, need)):
        return 0
    p = a.top + HEADER
    a.top += need
    prefetch(k, a.top + AHEAD)
    store(k, p - 8, need - HEADER)
    return p


@jit
def free(k, a, p):
    """Forget the block."""


@jit
def usable_size(k, a, p):
    """Return the size word before ``p``."""
    return load(k, p - 8)


@jit
def aligned_alloc(k, a, alignment, size):
    """Skip to the alignment; the gap gets a header so that walk can step over it."""
    gap = align_up(a.top + HEADER, alignment) - HEADER - a.top
    if gap:
        if a.top + gap > a.end and not grow(k, a, gap):
            return 0
        store(k, a.top + HEADER - 8, (gap - HEADER) | GAP)
        a.top += gap
    return malloc(k, a, size)


@jit
def walk(k, a, rows):
    """List the blocks, stepping from header to header."""
    n = 0
    p = a.start
    while p < a.top:
        word = load(k, p + HEADER - 8)
        kind = BLOCK_FREE if word & GAP else BLOCK_USED
        n = emit(rows, n, p, HEADER, BLOCK_HEADER)
        n = emit(rows, n, p + HEADER, word & -16, kind)
        p += HEADER + (word & -16)
    return n


@jit
def check(k, a):
    """Check that the pointers are ordered and that the blocks tile the heap."""
    if not a.start <= a.top <= a.end:
        return 1
    p = a.start
    while p < a.top:
        p += HEADER + (load(k, p + HEADER - 8) & -16)
    return 0 if p == a.top else 2
