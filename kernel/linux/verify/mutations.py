"""``python -m kernel.linux.verify.mutations``: break rules of the model; each must be detected.

Random programs run against each mutated model until one shows a difference.  ``--store DIRECTORY``
stores the shortest program found for each rule; the tests run these programs, which is quick.
"""

import sys
from collections.abc import Callable

from kernel.differential import mutations
from kernel.differential.mutations import Mutation
from kernel.engine.command import run
from kernel.engine.jit import jit
from kernel.huge import map_huge_page as map_huge
from kernel.merge import add_vma
from kernel.types import VM_GROWSDOWN, VM_LOCKED, VM_RAND_READ, VM_SEQ_READ, VM_SHARED, VM_WRITE
from kernel.uapi import MADV_RANDOM, MADV_SEQUENTIAL, MAP_GROWSDOWN, MAP_LOCKED
from kernel.vma import pgoff_at

#: Mutations of functions; :func:`kernel.differential.mutations.read` documents the notation.
MUTATIONS = mutations.read(
    """
kernel.merge.can_merge_after: areas never merge with the area below
= False
kernel.merge.can_merge_before: areas never merge with the area above
= False
kernel.merge.anon_vmas_compatible: areas merge regardless of their anon_vmas
= True
kernel.pgtable.free_tables: page tables are not freed with their areas
= None
kernel.fault.free_whole_pte_pages: MADV_DONTNEED of whole slots keeps their page tables
= None
kernel.mremap._can_align_down: mremap never moves the whole page table of a first slot
= False
kernel.limits.may_expand_vm: RLIMIT_AS and RLIMIT_DATA are ignored
= True
kernel.limits.may_lock: RLIMIT_MEMLOCK is ignored for mappings
= True
kernel.limits.enough_memory: mappings larger than memory are accepted
= True
kernel.limits.accountable: MAP_NORESERVE mappings are accounted
= flags & (VM_SHARED | VM_WRITE) == VM_WRITE
kernel.stack.vm_start_gap: stacks have no guard gap
= k.vma[i].vm_start
kernel.stack.expand_stack: stacks do not grow
= False
kernel.layout._search_aligned: large mappings are not aligned to huge pages
= 0
kernel.mmap._check_fixed: MAP_FIXED accepts any address
= 0 if 0 <= addr <= k.mm.task_size - length else -12
kernel.fault.drop_rights: mprotect keeps the protection of mapped pages
= None
kernel.mlock.populate: mlock and MAP_POPULATE fault in no pages
= 0
kernel.mremap._forget_source: MREMAP_DONTUNMAP does not unlock the old area
= None
kernel.mremap._move_areas: mremap moves only one area
= -uapi.EFAULT
kernel.huge.split_partial_folios: MADV_FREE of a part does not split the huge page
= None
kernel.huge._split_folio_in: a split huge page keeps its zero-filled pages
= None
kernel.huge.split_huge_pmd: splitting an area does not split its huge mapping
= None
kernel.fault.lock_frames: frames are never locked in memory
= None
kernel.huge.cancel_lazy_free: a write does not keep lazily freed pages
= None
"""
)


def _breaks(rule: str, name: str) -> Callable:
    """Register a function that breaks ``rule`` by replacing the model's function ``name``."""

    def register(function: Callable) -> Callable:
        MUTATIONS.append(Mutation(rule, name, jit(function)))
        return function

    return register


@_breaks("every written area gets a new anon_vma", "_make_anon_vma")
def _always_new(k, i):
    k.mm.anon_vmas += 1
    k.vma[i].anon_vma = k.mm.anon_vmas


@_breaks("a moved unwritten area keeps its page offset", "_copy_vma")
def _keep_pgoff(k, i, addr, new_addr, length):
    v = k.vma[i]
    pgoff = pgoff_at(k, i, addr)
    add_vma(k, new_addr, new_addr + length, v.vm_flags, pgoff, v.anon_vma, v.vm_file)


@_breaks("stacks count as data", "account_vm")
def _count_as_data(k, flags, pages):
    mm = k.mm
    mm.total_vm += pages
    if flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        mm.data_vm += pages


@_breaks("MAP_STACK has no effect", "_flag_bits")
def _no_stack_bit(flags):
    bits = VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    return bits | (VM_LOCKED if flags & MAP_LOCKED else 0)


@_breaks("MADV_RANDOM and MADV_SEQUENTIAL accumulate", "_advised_flags")
def _advice_adds_up(flags, advice):
    if advice == MADV_RANDOM:
        return flags | VM_RAND_READ
    if advice == MADV_SEQUENTIAL:
        return flags | VM_SEQ_READ
    return -1 if advice < 10 or advice > 19 or advice in (12, 13) else flags


@_breaks("a huge page has no deposited page table", "map_huge_page")
def _no_deposit(k, addr):
    map_huge(k, addr)
    k.mm.nr_ptes -= 1


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from kernel.linux.verify.subject import COMMAND, Linux

    return mutations.main(
        COMMAND, lambda: Linux(count_branches=False), MUTATIONS, argv, programs=20
    )


if __name__ == "__main__":
    sys.exit(run("kernel.linux.verify.mutations", main))
