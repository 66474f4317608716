"""Large blocks: one mapping each, linked in one list so that walk can report them.

    start                                            p
    ├ … ├ next │ prev │ start │ length │ (unused) │ tag │ payload …
          p-48   p-40   p-32    p-24     p-16       p-8

The word at p - 8 belongs to the allocator, which recognises a mapped block by it.  The head of the
list is the field ``mapped`` of the plugin's STATE.
"""

from allocators.base.aligned import map_aligned
from allocators.base.contract import BLOCK_HEADER, BLOCK_USED, MAX_REQUEST, align_up, emit
from kernel.access import load, store
from kernel.engine.jit import jit
from kernel.mmap import munmap
from kernel.page import page_align, page_size
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER
from kernel.uapi import PROT_READ, PROT_WRITE

#: Bytes in front of the payload.
MAPPED_HEADER = 48
_NEXT, _PREV, _START, _LENGTH = 48, 40, 32, 24


@jit(cold=True)
def mapped_alloc(k, a, alignment, size, tag):
    """Map a block for ``size`` bytes and write ``tag`` before it; return 0 if it is refused."""
    if size > MAX_REQUEST or alignment > MAX_REQUEST:
        return 0
    page = page_size()
    # Up to a page, padding the header aligns the payload; beyond, the mapping itself is aligned.
    offset = align_up(MAPPED_HEADER, min(alignment, page))
    lead = page if alignment > page else 0
    # At least one byte, or the address returned could belong to the next mapping.
    length = page_align(offset + max(size, 1))
    start = map_aligned(k, length, max(alignment, page), lead, PROT_READ | PROT_WRITE)
    if start == 0:
        return 0
    p = start + offset
    store(k, p - _NEXT, a.mapped)
    store(k, p - _PREV, 0)
    store(k, p - _START, start)
    store(k, p - _LENGTH, length)
    store(k, p - 8, tag)
    if a.mapped:
        store(k, a.mapped - _PREV, p)
    a.mapped = p
    return p


@jit(cold=True)
def mapped_free(k, a, p):
    """Unmap the block at ``p``."""
    after = load(k, p - _NEXT)
    before = load(k, p - _PREV)
    if before:
        store(k, before - _NEXT, after)
    else:
        a.mapped = after
    if after:
        store(k, after - _PREV, before)
    munmap(k, load(k, p - _START), load(k, p - _LENGTH))


@jit(cold=True)
def mapped_free_checked(k, a, p, tag):
    """Unmap the block at ``p``; end the process if ``p`` is not tagged as a mapped block."""
    if load(k, p - 8) != tag:
        abort(k, ABORT_BAD_POINTER, p)
    mapped_free(k, a, p)


@jit
def mapped_usable(k, p):
    """Return the bytes from ``p`` to the end of its mapping."""
    return load(k, p - _START) + load(k, p - _LENGTH) - p


@jit
def mapped_walk(k, a, rows, n):
    """Write the mapped blocks to ``rows``, from row ``n`` on; return the next row."""
    p = a.mapped
    while p:
        start = load(k, p - _START)
        n = emit(rows, n, start, p - start, BLOCK_HEADER)
        n = emit(rows, n, p, mapped_usable(k, p), BLOCK_USED)
        p = load(k, p - _NEXT)
    return n
