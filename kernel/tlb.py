"""Translation lookaside buffers: how often an access must walk the page tables.

    access ──► L1, one for each page size ──miss──► L2, shared ──miss──► page walk
                                                                  3 loads (huge) or 4

Each is a table of sets × ways.  A set keeps its entries in order of use, the latest first, so the
last is the one to go (true LRU).  What misses is filled into both levels.  The tables hold page
numbers only: who may do what is the page state's business (kernel.access).

A touch of a whole block counts one look-up a page.  A flush follows Linux: page by page up to
33 pages, else everything; it counts even when no entry was there.

Its hooks (flush_tlb_page, flush_present, kernel.access.translate) are empty without the switch TLB.
"""

import numpy as np

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.page import (
    next_slot,
    page_align,
    page_of,
    page_size,
    page_start,
    pmd_addr_end,
    pmd_shift,
)
from kernel.types import (
    L1_BASE,
    L1_HUGE,
    L2,
    MAX_TLB_ENTRIES,
    MAX_TLB_SETS,
    MAX_TLB_WAYS,
    NR_TLBS,
    PTE_PRESENT,
    TLB_STAT,
)

#: Pages above which a flush takes everything (Linux's tlb_single_page_flush_ceiling).
FLUSH_CEILING = 33


def check_geometry(name: str, entries: int, ways: int) -> None:
    """Raise ValueError when a table of ``entries`` in sets of ``ways`` is none; 0: not there."""
    if entries == 0:
        return
    if entries < 0 or ways < 1 or entries % ways:
        raise ValueError(f"{name} has {entries} entries, not a multiple of its {ways} ways")
    sets = entries // ways
    if sets & (sets - 1):
        raise ValueError(f"{name} has {sets} sets ({entries} entries / {ways} ways): not 2**n")
    if ways > MAX_TLB_WAYS or sets > MAX_TLB_SETS or entries > MAX_TLB_ENTRIES:
        raise ValueError(
            f"{name} is too large: at most {MAX_TLB_ENTRIES} entries, {MAX_TLB_WAYS} ways, "
            f"{MAX_TLB_SETS} sets"
        )


def init_tlb(k: np.record, geometry: list[tuple[int, int]]) -> None:
    """Make empty tables; ``geometry``: entries and ways of L1_BASE, L1_HUGE and L2."""
    k["tlb_stat"] = np.zeros((), TLB_STAT)
    for level, (entries, ways) in zip(k.tlb_level, geometry, strict=True):
        used = int(level.sets * level.ways)
        level.tag[: max(used, entries)] = 0
        level.sets = entries // ways if entries else 0
        level.ways = ways if entries else 0
        level.hits = level.misses = 0


@jit
def _look_up(level, tag):
    """Whether ``tag``, whose low bits choose the set, is in the table; it is the latest then."""
    ways = level.ways
    first = ((tag >> 1) & (level.sets - 1)) * ways
    if level.tag[first] == tag:
        return True
    for w in range(1, ways):
        if level.tag[first + w] == tag:
            for n in range(first + w, first, -1):
                level.tag[n] = level.tag[n - 1]
            level.tag[first] = tag
            return True
    return False


@jit
def _fill(level, tag):
    """Enter ``tag`` as the latest of its set; the oldest goes."""
    first = ((tag >> 1) & (level.sets - 1)) * level.ways
    for n in range(first + level.ways - 1, first, -1):
        level.tag[n] = level.tag[n - 1]
    level.tag[first] = tag


@jit
def _remove(level, tag):
    """Take ``tag`` out of the table, if it is there; younger and older ones keep their order."""
    if level.ways == 0:
        return
    first = ((tag >> 1) & (level.sets - 1)) * level.ways
    last = first + level.ways - 1
    for n in range(first, last + 1):
        if level.tag[n] == tag:
            for m in range(n, last):
                level.tag[m] = level.tag[m + 1]
            level.tag[last] = 0
            return


@jit(inline=True)
def _base_tag(addr):
    """Tag of the base page of ``addr``: its number, the low bit clear; never 0."""
    return (addr >> PAGE_SHIFT) << 1


@jit(inline=True)
def _huge_tag(addr):
    """Tag of the huge page of ``addr``: its number, the low bit set."""
    return (addr >> pmd_shift() << 1) | 1


@jit
def _walk(k, huge):
    """Count a page walk: one load a level, of which a huge page needs one less."""
    k.tlb_stat.walks += 1
    k.tlb_stat.walk_loads += 3 if huge else 4


@jit(cold=True)
def _miss(k, tag, huge):
    """Look further than the first level; on a miss there too, walk the page tables."""
    own = k.tlb_level[L1_HUGE if huge else L1_BASE]
    l2 = k.tlb_level[L2]
    own.misses += 1
    if l2.ways:
        if _look_up(l2, tag):
            l2.hits += 1
        else:
            l2.misses += 1
            _walk(k, huge)
            _fill(l2, tag)
    else:
        _walk(k, huge)
    if own.ways:
        _fill(own, tag)


@jit
def tlb_access(k, addr, huge):
    """Translate ``addr``, whose page is mapped, by a huge entry if ``huge`` is not 0."""
    tag = _huge_tag(addr) if huge else _base_tag(addr)
    level = k.tlb_level[L1_HUGE if huge else L1_BASE]
    if level.ways and _look_up(level, tag):
        level.hits += 1
    else:
        _miss(k, tag, huge)


@jit(cold=True)
def flush_tlb(k):
    """Forget every translation."""
    k.tlb_stat.flush_all += 1
    for n in range(NR_TLBS):
        level = k.tlb_level[n]
        for e in range(level.sets * level.ways):
            level.tag[e] = 0


@jit(cold=True)
def flush_tlb_range(k, start, end):
    """Forget the translations of [start, end): its pages have changed or gone."""
    pages = page_align(end - start) >> PAGE_SHIFT
    if pages > FLUSH_CEILING:
        flush_tlb(k)
        return
    for n in range(pages):
        addr = start + (n << PAGE_SHIFT)
        k.tlb_stat.flush_pages += 1
        _remove(k.tlb_level[L1_BASE], _base_tag(addr))
        _remove(k.tlb_level[L1_HUGE], _huge_tag(addr))
        _remove(k.tlb_level[L2], _base_tag(addr))
        _remove(k.tlb_level[L2], _huge_tag(addr))


@jit(cold=True, when="TLB")
def flush_tlb_page(k, addr):
    """Forget the translation of the page of ``addr``, or of its huge page."""
    flush_tlb_range(k, page_start(addr), page_start(addr) + page_size())


@jit(cold=True, when="TLB")
def flush_present(k, start, end):
    """Forget the translations of [start, end) from the first page that is mapped to the last."""
    first = end
    last = start
    at = next_slot(k, start, end)
    while at < end:
        stop = pmd_addr_end(at, end)
        while at < stop:
            if k.pte[page_of(at)] & PTE_PRESENT:
                first = min(first, at)
                last = at + page_size()
            at += page_size()
        at = next_slot(k, at, end)
    if first < last:
        flush_tlb_range(k, first, last)
