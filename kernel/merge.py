"""Split and merge areas, and the anon_vmas that decide which of them may merge.

Areas merge when nothing observable distinguishes them: equal flags, the same file or none,
contiguous page offsets, and anon_vmas that are equal or not there yet.  A huge page lies in one
area: where a boundary comes to lie inside one, its mapping is split first.
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
    """Whether two anon_vma ids may live in one area."""
    return a == 0 or b == 0 or a == b


@jit
def _mergeable(k, i, flags, anon_vma, file):
    """Whether area ``i`` could take in what has these attributes, places apart."""
    v = k.vma[i]
    return (
        v.vm_flags == flags
        and not flags & VM_SPECIAL
        and v.vm_file == file
        and anon_vmas_compatible(v.anon_vma, anon_vma)
    )


@jit
def can_merge_after(k, i, start, flags, pgoff, anon_vma, file):
    """Whether what begins at ``start`` may be appended to area ``i`` (-1: there is none)."""
    return (
        i >= 0
        and k.vma[i].vm_end == start
        and pgoff_at(k, i, start) == pgoff
        and _mergeable(k, i, flags, anon_vma, file)
    )


@jit
def can_merge_before(k, i, end, flags, pgoff_end, anon_vma, file):
    """Whether what ends at ``end``, at page offset ``pgoff_end``, may be put before area ``i``."""
    return (
        i < k.mm.map_count
        and k.vma[i].vm_start == end
        and k.vma[i].vm_pgoff == pgoff_end
        and _mergeable(k, i, flags, anon_vma, file)
    )


@jit
def adopt_anon_vma(k, i, anon_vma):
    """Give area ``i`` this anon_vma where it has none."""
    if k.vma[i].anon_vma == 0:
        k.vma[i].anon_vma = anon_vma


@jit(cold=True)
def add_vma(k, start, end, flags, pgoff, anon_vma, file):
    """Enter a new area, merged with its neighbours where they allow it; its index.

    [start, end) overlaps no area.  Where both neighbours would take the new area but not each
    other, the lower does.
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
    """Let [start, end), a part of area ``i`` that is to have ``flags``, join its neighbours.

    Returns the index of the area that took it in, or -1 when none may and nothing has changed.
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
    """Give [start, end), a part of area ``i``, other flags; the index of the area it is now in.

    -ENOMEM when a split would exceed the map count's limit: the first of two may have been made.
    -EINVAL for a part of what cannot be split.
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
    """Whether areas ``i`` and ``i + 1`` could be one but for their protection."""
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
    """Give area ``i`` an anon_vma: its own, the next's, the previous neighbour's, or a new one.

    Neighbours that differ in protection share too: a later change of it can then merge them.
    """
    if k.vma[i].anon_vma == 0:
        _make_anon_vma(k, i)
