"""Mappings aligned to a power of two: map more than needed, then unmap both ends."""

from allocators.base.contract import align_up
from kernel.engine.jit import jit
from kernel.mmap import mmap, munmap
from kernel.page import page_size
from kernel.uapi import MAP_ANONYMOUS, MAP_PRIVATE


@jit(cold=True)
def map_aligned(k, length, alignment, lead, prot):
    """Map ``length`` bytes so that start + ``lead`` is a multiple of ``alignment``.

    Return the start, or 0 if the kernel refuses.  ``length`` and ``lead`` are multiples of the page
    size, ``lead`` < ``length``.  Takes up to two munmaps, but usually none when ``length`` is a
    multiple of ``alignment``: the kernel places these mappings next to each other.
    """
    flags = MAP_PRIVATE | MAP_ANONYMOUS
    if lead == 0 and length & (alignment - 1) == 0:
        start = mmap(k, 0, length, prot, flags)
        if start < 0:
            return 0
        if start & (alignment - 1) == 0:
            return start
        munmap(k, start, length)
    excess = max(alignment - page_size(), 0)
    raw = mmap(k, 0, length + excess, prot, flags)
    if raw < 0:
        return 0
    start = align_up(raw + lead, alignment) - lead
    end = raw + length + excess
    if start > raw and munmap(k, raw, start - raw) < 0:
        munmap(k, raw, end - raw)
        return 0
    if start + length < end and munmap(k, start + length, end - start - length) < 0:
        munmap(k, start, end - start)
        return 0
    return start
