"""Boundary tags: the first word of each block, which leads to both neighbours.

    tag: magic << 48 | bytes of the block | MAPPED | PREV_USED | USED        payload at block + 8

A free block repeats its size in its last word, and the tag of the next block has PREV_USED clear.
Both neighbours of a block are therefore found in constant time.  Knuth, TAOCP 1, section 2.5,
algorithm C.
"""

from allocators.base.contract import ALIGNMENT
from kernel.access import load, store
from kernel.engine.jit import jit
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE

#: Size of a tag in bytes, and offsets of a free block's links.
TAG = 8
NEXT, PREV = 8, 16
#: Low bits of a tag: the block is used, the block before it is used, the block is a mapping.
USED, PREV_USED, MAPPED = 1, 2, 4
#: Upper bits of a tag, which tell it from any other word.
MAGIC = 0x5BD1 << 48
MAGIC_MASK = 0x7FFF << 48
SIZE_MASK = (1 << 48) - ALIGNMENT


@jit(inline=True)
def block_size(k, block):
    """Return the size of a block in bytes, tag included."""
    return load(k, block) & SIZE_MASK


@jit
def set_free(k, block, size):
    """Write the tag and the last word of a free block; the block before it is used."""
    store(k, block, MAGIC | size | PREV_USED)
    store(k, block + size - 8, size)


@jit
def set_prev_used(k, block):
    """Set PREV_USED in the tag of ``block``."""
    store(k, block, load(k, block) | PREV_USED)


@jit
def used_tag(k, a, p):
    """Return the tag of the used block at ``p``, or end the process for a bad pointer."""
    if p & (ALIGNMENT - 1) or p < ALIGNMENT:
        abort(k, ABORT_BAD_POINTER, p)
    tag = load(k, p - TAG)
    if tag & MAGIC_MASK != MAGIC:
        abort(k, ABORT_BAD_POINTER, p)
    if not tag & USED:
        abort(k, ABORT_DOUBLE_FREE, p)
    return tag
