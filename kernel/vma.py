"""The sorted table of memory areas (VMAs): find, insert, remove, and account their pages.

k.vma   [0]      [1]        [2]            map_count = 3
      AAAAAA   BBBBCCCC             vm_end is exclusive; B and C touch but differ
"""

from kernel.engine.jit import jit
from kernel.engine.switches import PAGE_SHIFT
from kernel.types import VM_GROWSDOWN, VM_SHARED, VM_WRITE


@jit
def find_vma(k, addr):
    """Return the index of the first area with ``vm_end > addr``; map_count if there is none."""
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
    """Return True if any area overlaps [start, end)."""
    i = find_vma(k, start)
    return i < k.mm.map_count and k.vma[i].vm_start < end


@jit
def covered(k, start, end, need):
    """Return True if areas with all flags of ``need`` cover [start, end) without a hole."""
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
    """Insert an area at index ``i`` of the table.  The table has room (mmap checks)."""
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
    """Remove the ``n`` areas from index ``i`` on from the table."""
    mm = k.mm
    mm.map_count -= n
    for j in range(i, mm.map_count):
        k.vma[j] = k.vma[j + n]


@jit
def pgoff_at(k, i, addr):
    """Return the page offset of ``addr`` relative to area ``i``; ``addr`` may be outside it."""
    v = k.vma[i]
    return v.vm_pgoff + ((addr - v.vm_start) >> PAGE_SHIFT)


@jit
def move_start(k, i, start):
    """Move the start of area ``i`` to ``start`` and adjust its page offset."""
    pgoff = pgoff_at(k, i, start)
    v = k.vma[i]
    v.vm_start = start
    v.vm_pgoff = pgoff


@jit(inline=True)
def heap_pages(mm):
    """Return the size of the heap, pages: mapped since boot, without PROT_NONE reservations."""
    return mm.total_vm - mm.reserved_vm - mm.start_vm


@jit
def account_vm(k, flags, pages):
    """Add ``pages`` (may be negative) of an area with ``flags`` to the accounting in ``k.mm``."""
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
    """Add ``pages`` to the resident set and update its largest size."""
    mm = k.mm
    mm.rss += pages
    if mm.rss > mm.hiwater_rss:
        mm.hiwater_rss = mm.rss
