"""The sorted table of memory areas: find, insert, split, merge.

    k.vma   [0]      [1]        [2]            map_count = 3
          AAAAAA   BBBBCCCC             vm_end is exclusive; B and C touch but differ

Areas merge when nothing observable distinguishes them: equal flags, contiguous page offsets,
both anonymous, and anon_vmas that are equal or not there yet.
"""

from kernel.jit import jit
from kernel.switches import PAGE_SHIFT
from kernel.types import VM_GROWSDOWN, VM_SHARED, VM_WRITE


@jit
def find_vma(k, addr):
    """Return the index of the first area with ``addr < vm_end``; map_count if there is none."""
    low = 0
    high = k.mm.map_count
    while low < high:
        mid = (low + high) >> 1
        if k.vma[mid].vm_end > addr:
            high = mid
        else:
            low = mid + 1
    return low


@jit
def intersects(k, start, end):
    """Whether any area overlaps [start, end)."""
    i = find_vma(k, start)
    return i < k.mm.map_count and k.vma[i].vm_start < end


@jit
def covered(k, start, end, need):
    """Whether [start, end) lies in areas without a hole that all have the flags ``need``."""
    i = find_vma(k, start)
    while start < end:
        if i >= k.mm.map_count:
            return False
        v = k.vma[i]
        if v.vm_start > start or v.vm_flags & need != need:
            return False
        start = v.vm_end
        i += 1
    return True


@jit(cold=True)
def insert_vma(k, i, start, end, flags, pgoff, anon_vma, file):
    """Open place ``i`` of the table and put an area there.  The table has room (mmap checks)."""
    mm = k.mm
    for j in range(mm.map_count, i, -1):
        k.vma[j] = k.vma[j - 1]
    mm.map_count += 1
    v = k.vma[i]
    v.vm_start = start
    v.vm_end = end
    v.vm_flags = flags
    v.vm_pgoff = pgoff
    v.anon_vma = anon_vma
    v.vm_file = file


@jit(cold=True)
def remove_vmas(k, i, n):
    """Drop the ``n`` areas from place ``i`` on and close the gap."""
    mm = k.mm
    mm.map_count -= n
    for j in range(i, mm.map_count):
        k.vma[j] = k.vma[j + n]


@jit
def split_vma(k, i, addr):
    """Split area ``i`` at ``addr``, strictly inside it; the upper part becomes ``i + 1``."""
    v = k.vma[i]
    pgoff = v.vm_pgoff + ((addr - v.vm_start) >> PAGE_SHIFT)
    insert_vma(k, i + 1, addr, v.vm_end, v.vm_flags, pgoff, v.anon_vma, v.vm_file)
    k.vma[i].vm_end = addr


@jit
def _compatible(a, b):
    """Whether two anon_vma ids may live in one area."""
    return a == 0 or b == 0 or a == b


@jit
def can_merge(k, i, start, flags, pgoff, anon_vma, file):
    """Whether an area beginning at ``start`` may be appended to area ``i``."""
    v = k.vma[i]
    return (
        v.vm_end == start
        and v.vm_flags == flags
        and v.vm_file == 0
        and file == 0
        and v.vm_pgoff + ((start - v.vm_start) >> PAGE_SHIFT) == pgoff
        and _compatible(v.anon_vma, anon_vma)
    )


@jit
def merge_next(k, i):
    """Merge area ``i + 1`` into area ``i`` if they may; returns whether it did."""
    if i < 0 or i + 1 >= k.mm.map_count:
        return False
    w = k.vma[i + 1]
    if not can_merge(k, i, w.vm_start, w.vm_flags, w.vm_pgoff, w.anon_vma, w.vm_file):
        return False
    v = k.vma[i]
    v.vm_end = w.vm_end
    if v.anon_vma == 0:
        v.anon_vma = w.anon_vma
    remove_vmas(k, i + 1, 1)
    return True


@jit(cold=True)
def add_vma(k, start, end, flags):
    """Enter a new anonymous area, merged with its neighbours where they allow it.

    [start, end) overlaps no area.  The previous neighbour is preferred when both would take the
    new one but not each other.
    """
    i = find_vma(k, start)
    pgoff = start >> PAGE_SHIFT
    insert_vma(k, i, start, end, flags, pgoff, 0, 0)
    if merge_next(k, i - 1):
        i -= 1
    merge_next(k, i)


@jit
def account_vm(k, flags, pages):
    """Add ``pages`` (may be negative) of an area with ``flags`` to the counters of the mm."""
    mm = k.mm
    mm.total_vm += pages
    if flags & VM_GROWSDOWN:
        mm.stack_vm += pages
    elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        mm.data_vm += pages
    if flags & 7 == 0:
        mm.reserved_vm += pages
    mapped = mm.total_vm - mm.reserved_vm
    if mapped > mm.hiwater_vm:
        mm.hiwater_vm = mapped
