"""The sorted table of memory areas: find, insert, remove, and what is counted by them.

k.vma   [0]      [1]        [2]            map_count = 3
      AAAAAA   BBBBCCCC             vm_end is exclusive; B and C touch but differ
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
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
def pgoff_at(k, i, addr):
    """Page offset of ``addr`` as area ``i`` counts, also beyond its ends."""
    v = k.vma[i]
    return v.vm_pgoff + ((addr - v.vm_start) >> PAGE_SHIFT)


@jit
def move_start(k, i, start):
    """Let area ``i`` begin at ``start``, its page offset in step."""
    pgoff = pgoff_at(k, i, start)
    v = k.vma[i]
    v.vm_start = start
    v.vm_pgoff = pgoff


@jit(inline=True)
def heap_pages(mm):
    """Pages mapped since the process began, without PROT_NONE reservations: the heap."""
    return mm.total_vm - mm.reserved_vm - mm.start_vm


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


@jit
def add_rss(k, pages):
    """Count ``pages`` more frames of the process's own as mapped."""
    mm = k.mm
    mm.rss += pages
    if mm.rss > mm.hiwater_rss:
        mm.hiwater_rss = mm.rss
