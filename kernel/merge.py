"""Split and merge areas, and manage the anon_vmas that decide which areas may merge.

Adjacent areas merge if they have equal flags, the same file or none, contiguous page offsets, and
anon_vmas that are equal or not yet assigned.  A huge mapping belongs to one area: if a new boundary
falls inside a huge mapping, the mapping is split first.
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.huge import split_huge_pmd
from kernel.types import VM_EXEC, VM_READ, VM_SPECIAL, VM_WRITE
from kernel.uapi import EINVAL, ENOMEM
from kernel.vma import find_vma, insert_vma, move_start, pgoff_at, remove_vmas


@jit
def split_vma(k, i, addr):
    """Split area ``i`` at ``addr``, strictly inside it; the upper part becomes ``i + 1``."""
    split_huge_pmd(k, addr)
    v = k.vma[i]
    pgoff = pgoff_at(k, i, addr)
    insert_vma(k, i + 1, addr, v.vm_end, v.vm_flags, pgoff, v.anon_vma, v.vm_file)
    k.vma[i].vm_end = addr


@jit
def anon_vmas_compatible(a, b):
    """Return True if areas with anon_vma ids ``a`` and ``b`` may merge (0: not assigned yet)."""
    return a == 0 or b == 0 or a == b


@jit
def _mergeable(k, i, flags, anon_vma, file):
    """Return True if area ``i`` could absorb a mapping with these attributes, addresses aside."""
    v = k.vma[i]
    return (
        v.vm_flags == flags
        and not flags & VM_SPECIAL
        and v.vm_file == file
        and anon_vmas_compatible(v.anon_vma, anon_vma)
    )


@jit
def can_merge_after(k, i, start, flags, pgoff, anon_vma, file):
    """Return True if a mapping that starts at ``start`` can be merged into area ``i`` from above.

    ``i`` is -1 if there is no area below.
    """
    return (
        i >= 0
        and k.vma[i].vm_end == start
        and pgoff_at(k, i, start) == pgoff
        and _mergeable(k, i, flags, anon_vma, file)
    )


@jit
def can_merge_before(k, i, end, flags, pgoff_end, anon_vma, file):
    """Return True if a mapping that ends at ``end`` can be merged into area ``i`` from below.

    ``pgoff_end`` is the page offset of ``end``.
    """
    return (
        i < k.mm.map_count
        and k.vma[i].vm_start == end
        and k.vma[i].vm_pgoff == pgoff_end
        and _mergeable(k, i, flags, anon_vma, file)
    )


@jit
def adopt_anon_vma(k, i, anon_vma):
    """Assign ``anon_vma`` to area ``i`` if it has none."""
    if k.vma[i].anon_vma == 0:
        k.vma[i].anon_vma = anon_vma


@jit(cold=True)
def add_vma(k, start, end, flags, pgoff, anon_vma, file):
    """Add a new area, merged with its neighbours where possible; return its index.

    [start, end) overlaps no area.  If both neighbours could merge with the new area but not with
    each other, the lower one does.
    """
    i = find_vma(k, start)
    pgoff_end = pgoff + ((end - start) >> PAGE_SHIFT)
    left = can_merge_after(k, i - 1, start, flags, pgoff, anon_vma, file)
    right = can_merge_before(k, i, end, flags, pgoff_end, anon_vma, file)
    if left:
        upper = k.vma[i].anon_vma if right else 0
        if right and anon_vmas_compatible(k.vma[i - 1].anon_vma, upper):
            k.vma[i - 1].vm_end = k.vma[i].vm_end
            adopt_anon_vma(k, i - 1, upper)
            remove_vmas(k, i, 1)
        else:
            k.vma[i - 1].vm_end = end
        adopt_anon_vma(k, i - 1, anon_vma)
        return i - 1
    if right:
        move_start(k, i, start)
        adopt_anon_vma(k, i, anon_vma)
        return i
    insert_vma(k, i, start, end, flags, pgoff, anon_vma, file)
    return i


@jit(cold=True)
def merge_modified(k, i, start, end, flags):
    """Merge [start, end), a part of area ``i`` that is to have ``flags``, into its neighbours.

    Returns the index of the area that now contains it, or -1 if no neighbour can merge; nothing
    has changed then.
    """
    v = k.vma[i]
    anon_vma = v.anon_vma
    file = v.vm_file
    whole = v.vm_start == start and v.vm_end == end
    left = v.vm_start == start and can_merge_after(
        k, i - 1, start, flags, v.vm_pgoff, anon_vma, file
    )
    right = v.vm_end == end and can_merge_before(
        k, i + 1, end, flags, pgoff_at(k, i, end), anon_vma, file
    )
    if left and right:
        right = anon_vmas_compatible(k.vma[i - 1].anon_vma, k.vma[i + 1].anon_vma)
    if left and right:
        adopt_anon_vma(k, i - 1, anon_vma)
        adopt_anon_vma(k, i - 1, k.vma[i + 1].anon_vma)
        k.vma[i - 1].vm_end = k.vma[i + 1].vm_end
        remove_vmas(k, i, 2)
        return i - 1
    if left:
        split_huge_pmd(k, end)
        adopt_anon_vma(k, i - 1, anon_vma)
        k.vma[i - 1].vm_end = end
        if whole:
            remove_vmas(k, i, 1)
        else:
            move_start(k, i, end)
        return i - 1
    if right:
        split_huge_pmd(k, start)
        adopt_anon_vma(k, i + 1, anon_vma)
        move_start(k, i + 1, start)
        if not whole:
            k.vma[i].vm_end = start
            return i + 1
        remove_vmas(k, i, 1)
        return i
    return -1


@jit(cold=True)
def modify_vma(k, i, start, end, flags):
    """Set the flags of [start, end), a part of area ``i``; return the index of its area now.

    -ENOMEM if a split would exceed max_map_count (the first of two splits may have happened).
    -EINVAL for a part of an area that cannot be split.
    """
    mm = k.mm
    merged = merge_modified(k, i, start, end, flags)
    if merged >= 0:
        return merged
    v = k.vma[i]
    if v.vm_flags & VM_SPECIAL and (v.vm_start < start or v.vm_end > end):
        return -EINVAL
    if v.vm_start < start:
        if mm.map_count >= mm.max_map_count:
            return -ENOMEM
        split_vma(k, i, start)
        i += 1
    if k.vma[i].vm_end > end:
        if mm.map_count >= mm.max_map_count:
            return -ENOMEM
        split_vma(k, i, end)
    k.vma[i].vm_flags = flags
    return i


@jit
def _may_share(k, i):
    """Return True if areas ``i`` and ``i + 1`` could merge if their protection were equal.

    They then share an anon_vma, so that a later mprotect can merge them.
    """
    v = k.vma[i]
    w = k.vma[i + 1]
    return (
        v.vm_end == w.vm_start
        and (v.vm_flags ^ w.vm_flags) & ~(VM_READ | VM_WRITE | VM_EXEC) == 0
        and v.vm_file == w.vm_file
        and pgoff_at(k, i, w.vm_start) == w.vm_pgoff
    )


@jit(cold=True)
def _make_anon_vma(k, i):
    mm = k.mm
    v = k.vma[i]
    if i + 1 < mm.map_count and k.vma[i + 1].anon_vma and _may_share(k, i):
        v.anon_vma = k.vma[i + 1].anon_vma
    elif i > 0 and k.vma[i - 1].anon_vma and _may_share(k, i - 1):
        v.anon_vma = k.vma[i - 1].anon_vma
    else:
        mm.anon_vmas += 1
        v.anon_vma = mm.anon_vmas


@jit
def anon_vma_prepare(k, i):
    """Make sure that area ``i`` has an anon_vma: the next area's, the previous one's, or a new one.

    Neighbours that differ only in protection share one: a later mprotect can then merge them.
    """
    if k.vma[i].anon_vma == 0:
        _make_anon_vma(k, i)
