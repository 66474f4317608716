"""Find an area by an address; below all that changes areas (kernel.vma)."""

from kernel.engine.jit import jit


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
