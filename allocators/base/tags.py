"""Boundary tags: the word before each block, by which it finds its neighbours.

    tag: magic << 48 | bytes of the block | MAPPED | PREV_USED | USED        payload at block + 8

A free block repeats its size in its last word, and the tag behind it lacks PREV_USED, so that both
neighbours are found in constant time.  Knuth, TAOCP 1, section 2.5, algorithm C.
"""

from allocators.base.contract import ALIGNMENT
from kernel.access import load, store
from kernel.engine.jit import jit
from kernel.task import abort
from kernel.types import ABORT_BAD_POINTER, ABORT_DOUBLE_FREE

#: Bytes of a tag, and where a free block has its links.
TAG = 8
NEXT, PREV = 8, 16
#: What the low bits of a tag say: of the block, of the one before it, and of one with a mapping.
USED, PREV_USED, MAPPED = 1, 2, 4
#: Upper bits of a tag: a word that is no tag does not look like one.
MAGIC = 0x5BD1 << 48
MAGIC_MASK = 0x7FFF << 48
SIZE_MASK = (1 << 48) - ALIGNMENT


@jit(inline=True)
def block_size(k, block):
    """Bytes of a block, its tag included."""
    return load(k, block) & SIZE_MASK


@jit
def set_free(k, block, size):
    """Write both tags of a free block, which follows a used one."""
    store(k, block, MAGIC | size | PREV_USED)
    store(k, block + size - 8, size)


@jit
def set_prev_used(k, block):
    """Let a block know that the one before it is used."""
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
