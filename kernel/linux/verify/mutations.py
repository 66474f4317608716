"""``python -m kernel.linux.verify.mutations``: break rules of the model; each must be detected.

Random programs run against each mutated model until one shows a difference.  ``--store DIRECTORY``
stores the shortest program found for each rule; the tests run these programs, which is quick.
"""

import sys
from collections.abc import Callable

from kernel.differential import mutations
from kernel.differential.mutations import Mutation
from kernel.engine.jit import jit
from kernel.huge import map_huge_page as map_huge
from kernel.merge import add_vma
from kernel.types import VM_GROWSDOWN, VM_LOCKED, VM_RAND_READ, VM_SEQ_READ, VM_SHARED, VM_WRITE
from kernel.uapi import MADV_RANDOM, MADV_SEQUENTIAL, MAP_GROWSDOWN, MAP_LOCKED
from kernel.vma import pgoff_at

#: Mutations of functions; :func:`kernel.differential.mutations.read` documents the notation.
MUTATIONS = mutations.read(
    """
kernel.merge.can_merge_after: areas never merge with the one below
= False
kernel.merge.can_merge_before: areas never merge with the one above
= False
kernel.merge.anon_vmas_compatible: areas merge whatever their anon_vmas
= True
kernel.pgtable.free_tables: page tables stay when areas go
= None
kernel.fault.zap_whole_slots: MADV_DONTNEED keeps the tables of whole slots
= None
kernel.mremap._can_align_down: a first slot is never moved as a whole
= False
kernel.limits.may_expand_vm: RLIMIT_AS and RLIMIT_DATA do not count
= True
kernel.limits.may_lock: RLIMIT_MEMLOCK does not count for mappings
= True
kernel.limits.enough_memory: no mapping is too large for memory
= True
kernel.limits.accountable: MAP_NORESERVE is accounted too
= flags & (VM_SHARED | VM_WRITE) == VM_WRITE
kernel.stack.vm_start_gap: a stack keeps no guard
= k.vma[i].vm_start
kernel.stack.expand_stack: stacks do not grow
= False
kernel.layout._search_aligned: large mappings are not aligned to huge pages
= 0
kernel.mmap._check_fixed: MAP_FIXED may name any address
= 0 if 0 <= addr <= k.mm.task_size - length else -12
kernel.fault.drop_rights: mprotect leaves the rights of mapped pages
= None
kernel.mlock.populate: mlock and MAP_POPULATE fault nothing in
= 0
kernel.mremap._forget_source: MREMAP_DONTUNMAP leaves the old area as it was
= None
kernel.mremap._move_areas: mremap moves one area only
= -uapi.EFAULT
kernel.huge.split_partial_folios: MADV_FREE of a part leaves the huge page whole
= None
kernel.huge._split_folio_in: a split huge page keeps its empty pages
= None
kernel.huge.split_huge_pmd: huge mappings are not split where areas are
= None
kernel.fault.lock_frames: frames are never locked in memory
= None
kernel.huge.keep_pages: a write does not keep what was lazily freed
= None
"""
)


def _breaks(rule: str, name: str) -> Callable:
    """Register a function that breaks ``rule`` by replacing the model's function ``name``."""

    def register(function: Callable) -> Callable:
        MUTATIONS.append(Mutation(rule, name, jit(function)))
        return function

    return register


@_breaks("every written area has an anon_vma of its own", "_make_anon_vma")
def _always_new(k, i):
    k.mm.anon_vmas += 1
    k.vma[i].anon_vma = k.mm.anon_vmas


@_breaks("an unwritten area that moves keeps its page offset", "_copy_vma")
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


@_breaks("MAP_STACK means nothing", "_flag_bits")
def _no_stack_bit(flags):
    bits = VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    return bits | (VM_LOCKED if flags & MAP_LOCKED else 0)


@_breaks("MADV_RANDOM and MADV_SEQUENTIAL add up", "_advised_flags")
def _advice_adds_up(flags, advice):
    if advice == MADV_RANDOM:
        return flags | VM_RAND_READ
    if advice == MADV_SEQUENTIAL:
        return flags | VM_SEQ_READ
    return -1 if advice < 10 or advice > 19 or advice in (12, 13) else flags


@_breaks("a huge page comes without a deposited table", "map_huge_page")
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
    sys.exit(main())
