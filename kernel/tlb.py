"""Translation lookaside buffers (TLBs): count the accesses that walk the page tables.

    access ──► L1, one for each page size ──miss──► L2, shared ──miss──► page walk
                                                                  3 loads (huge) or 4

Each TLB is a table of sets × ways.  A set keeps its entries in order of use, the most recent first,
so the last entry is evicted (true LRU).  A miss fills both levels.  The tables hold only page
numbers; rights are checked in the page state (kernel.access).

A touch of a whole block counts one look-up per page.  A flush follows Linux: page by page up to
33 pages, else all entries; it is counted even if no entry was present.

The hooks (flush_tlb_page, flush_present, kernel.access.translate) are empty without the switch TLB.
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

#: Number of pages above which a flush drops all entries (Linux's tlb_single_page_flush_ceiling).
FLUSH_CEILING = 33


def check_geometry(name: str, entries: int, ways: int) -> None:
    """Raise ValueError if ``entries`` and ``ways`` do not form a table; 0 entries: no table."""
    if entries == 0:
        return
    if entries < 0 or ways < 1 or entries % ways:
        raise ValueError(f"{name} has {entries} entries, not a multiple of its {ways} ways")
    sets = entries // ways
    if sets & (sets - 1):
        raise ValueError(
            f"{name} has {sets} sets ({entries} entries / {ways} ways), not a power of two"
        )
    if ways > MAX_TLB_WAYS or sets > MAX_TLB_SETS or entries > MAX_TLB_ENTRIES:
        raise ValueError(
            f"{name} is too large: at most {MAX_TLB_ENTRIES} entries, {MAX_TLB_WAYS} ways, "
            f"{MAX_TLB_SETS} sets"
        )


def init_tlb(k: np.record, geometry: list[tuple[int, int]]) -> None:
    """Initialise empty tables; ``geometry``: entries and ways of L1_BASE, L1_HUGE and L2."""
    k["tlb_stat"] = np.zeros((), TLB_STAT)
    for level, (entries, ways) in zip(k.tlb_level, geometry, strict=True):
        used = int(level.sets * level.ways)
        level.tag[: max(used, entries)] = 0
        level.sets = entries // ways if entries else 0
        level.ways = ways if entries else 0
        level.hits = level.misses = 0


@jit
def _look_up(level, tag):
    """Return True if ``tag`` is in the table, and make it the most recent entry of its set."""
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
    """Insert ``tag`` as the most recent entry of its set and evict the least recent one."""
    first = ((tag >> 1) & (level.sets - 1)) * level.ways
    for n in range(first + level.ways - 1, first, -1):
        level.tag[n] = level.tag[n - 1]
    level.tag[first] = tag


@jit
def _remove(level, tag):
    """Remove ``tag`` from the table if it is present; the other entries keep their order."""
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
    """Return the tag of the base page of ``addr``: its number with a low bit of 0; never 0."""
    return (addr >> PAGE_SHIFT) << 1


@jit(inline=True)
def _huge_tag(addr):
    """Return the tag of the huge page of ``addr``: its number with a low bit of 1."""
    return (addr >> pmd_shift() << 1) | 1


@jit
def _walk(k, huge):
    """Count a page walk: one load per level, one level less for a huge page."""
    k.tlb_stat.walks += 1
    k.tlb_stat.walk_loads += 3 if huge else 4


@jit(cold=True)
def _miss(k, tag, huge):
    """Handle a first-level miss: look in the second level; on a miss there, walk the tables."""
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
    """Translate ``addr``, whose page is mapped, with a huge entry if ``huge`` is not 0."""
    tag = _huge_tag(addr) if huge else _base_tag(addr)
    level = k.tlb_level[L1_HUGE if huge else L1_BASE]
    if level.ways and _look_up(level, tag):
        level.hits += 1
    else:
        _miss(k, tag, huge)


@jit(cold=True)
def flush_tlb(k):
    """Drop all translations."""
    k.tlb_stat.flush_all += 1
    for n in range(NR_TLBS):
        level = k.tlb_level[n]
        for e in range(level.sets * level.ways):
            level.tag[e] = 0


@jit(cold=True)
def flush_tlb_range(k, start, end):
    """Drop the translations of [start, end), whose pages have changed or been unmapped."""
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
    """Drop the translation of the page of ``addr``, or of its huge page."""
    flush_tlb_range(k, page_start(addr), page_start(addr) + page_size())


@jit(cold=True, when="TLB")
def flush_present(k, start, end):
    """Drop the translations from the first to the last mapped page of [start, end)."""
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
