"""Mutations: the checks detect each omitted call to physical memory or to the TLBs."""

import pytest

from kernel import uapi
from kernel.engine.jit import jit
from kernel.page import pgd_shift, pmd_shift, pud_shift, set_pmd
from kernel.pgtable import alloc_pmd, alloc_pud
from kernel.types import PMD_TABLE
from tests.kernel.frames.process import HUGE, PAGE, Process, Unsound, at

#: Runs as plain Python: compiling each mutation would take longer.
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("plain")]

PRIVATE = uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS
MOVE = uapi.MREMAP_MAYMOVE | uapi.MREMAP_FIXED
#: A page that another PUD page maps.
FAR = 1 << 27


def tour(process):
    """Run every transition of pages, frames, swap slots and table pages once."""
    process.call(uapi.NR_MMAP, at(0), 8 * HUGE * PAGE, 3, PRIVATE | uapi.MAP_FIXED)
    # A locked huge page, and more small pages than there are frames.
    process.store(5, 11)
    assert process.call(uapi.NR_MLOCK, at(0), HUGE * PAGE) == 0
    process.touch(HUGE, 560)
    assert process.mm.rss > HUGE
    assert process.states(HUGE, 560) == {"frame", "swap"}
    assert process.states(0, HUGE) == {"frame"}
    assert process.call(uapi.NR_MUNLOCK, at(0), HUGE * PAGE) == 0
    # Move frames and swap slots, then swap in at the new address.
    process.store(HUGE, 12)
    assert process.call(uapi.NR_MREMAP, at(HUGE), 200 * PAGE, 200 * PAGE, MOVE, at(FAR + 3)) > 0
    assert process.states(FAR + 3, 200) == {"frame", "swap"}
    assert process.load(FAR + 3) == 12
    process.touch(FAR + 3, 20, 0)
    # Split the mapping of the huge page, then the huge page itself.
    process.call(uapi.NR_MPROTECT, at(7), PAGE, 1)
    process.touch(0, 2, 0)
    process.call(uapi.NR_MADVISE, at(3), 2 * PAGE, uapi.MADV_FREE)
    assert process.state(9) == "zero"
    assert process.load(5) == 11
    # Replace the zero page without an access.
    process.touch(9, 1, 0)
    process.call(uapi.NR_MADVISE, at(9), PAGE, uapi.MADV_POPULATE_WRITE)
    # Swap out, and drop the swapped-out pages.
    process.touch(FAR + 3, 4)
    process.call(uapi.NR_MADVISE, at(FAR + 3), 4 * PAGE, uapi.MADV_PAGEOUT)
    assert process.states(FAR + 3, 4) == {"swap"}
    process.call(uapi.NR_MADVISE, at(FAR + 3), PAGE, uapi.MADV_FREE)
    assert process.state(FAR + 3) == ""
    process.call(uapi.NR_MUNMAP, at(FAR + 4), 199 * PAGE)
    process.call(uapi.NR_MUNMAP, at(0), 8 * HUGE * PAGE)


def machine(**bindings):
    """Return a process on 4 MiB of memory with huge pages enabled."""
    return Process(4, 16, thp="always", rlimit_memlock=4 << 20, bindings=bindings)


def test_a_tour_of_all_hooks_conserves_frames():
    process = machine()
    tour(process)
    assert process.mm.rss == 0
    assert process.k.phys.swap_used == 0


@jit
def forget_one(k, a):
    """Do nothing, with one argument."""


@jit
def forget_two(k, a, b):
    """Do nothing, with two arguments."""


@jit
def forget_pud_frame(k, addr):
    """Allocate a PUD page without a frame."""
    if not k.pgd[addr >> pgd_shift()]:
        k.pgd[addr >> pgd_shift()] = 1
        k.mm.nr_puds += 1


@jit
def forget_pmd_frame(k, addr):
    """Allocate a PMD page without a frame."""
    alloc_pud(k, addr)
    if not k.pud[addr >> pud_shift()]:
        k.pud[addr >> pud_shift()] = 1
        k.mm.nr_pmds += 1


@jit
def forget_pte_frame(k, addr):
    """Allocate a PTE page without a frame."""
    alloc_pmd(k, addr)
    if not k.pmd[addr >> pmd_shift()]:
        set_pmd(k, addr, PMD_TABLE)
        k.mm.nr_ptes += 1


#: Functions of the kernel and their replacements.
MUTATIONS = {
    "map_frame": forget_two,
    "release_page": forget_two,
    "release_frame": forget_one,
    "split_frame": forget_one,
    "move_frame": forget_two,
    "munlock_frame": forget_one,
    "free_table_frames": forget_one,
    "move_slot": forget_two,
    "free_slot": forget_one,
    "take_table_frame": forget_one,
    "alloc_pud": forget_pud_frame,
    "alloc_pmd": forget_pmd_frame,
    "alloc_tables": forget_pte_frame,
    "flush_present": forget_two,
    "flush_tlb_range": forget_two,
    "flush_tlb_page": forget_one,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_missing_hook_call_is_detected(name):
    with pytest.raises(Unsound):
        tour(machine(**{name: MUTATIONS[name]}))
