"""``python -m kernel.linux.verify.mutations``: break rules of the model; each must be noticed.

Random programs run against each broken model until one shows a difference.  ``--store DIRECTORY``
keeps the shortest program found for each, with which the tests do the same quickly.
"""

import sys
from collections.abc import Callable

from kernel.differential import mutations
from kernel.differential.mutations import Mutation
from kernel.engine.jit import jit
from kernel.huge import pages_per_slot
from kernel.types import (
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WRITE,
)
from kernel.uapi import EFAULT, MADV_RANDOM, MADV_SEQUENTIAL, MAP_GROWSDOWN, MAP_LOCKED
from kernel.vma import add_vma, pgoff_at

#: What replaces which function of the model, by the rule that it breaks.
MUTATIONS: dict[str, Mutation] = {}


def _breaks(rule: str, name: str) -> Callable:
    """Register a function as what breaks ``rule`` in the place of the model's ``name``."""

    def register(function: Callable) -> Callable:
        MUTATIONS[rule] = Mutation(rule, name, jit(function))
        return function

    return register


@_breaks("areas never merge with the one below", "can_merge_after")
def _never_after(k, i, start, flags, pgoff, anon_vma, file):
    return False


@_breaks("areas never merge with the one above", "can_merge_before")
def _never_before(k, i, end, flags, pgoff_end, anon_vma, file):
    return False


@_breaks("areas merge whatever their anon_vmas", "anon_vmas_compatible")
def _always_compatible(a, b):
    return True


@_breaks("every written area has an anon_vma of its own", "_make_anon_vma")
def _always_new(k, i):
    k.mm.anon_vmas += 1
    k.vma[i].anon_vma = k.mm.anon_vmas


@_breaks("an unwritten area that moves keeps its page offset", "_copy_vma")
def _keep_pgoff(k, i, addr, new_addr, length):
    v = k.vma[i]
    pgoff = pgoff_at(k, i, addr)
    add_vma(k, new_addr, new_addr + length, v.vm_flags, pgoff, v.anon_vma, v.vm_file)


@_breaks("page tables stay when areas go", "free_tables")
def _keep_tables(k, start, end, floor, ceiling):
    return


@_breaks("MADV_DONTNEED keeps the tables of whole slots", "zap_whole_slots")
def _keep_slots(k, start, end):
    return


@_breaks("a first slot is never moved as a whole", "_can_align_down")
def _never_aligned(k, addr, start):
    return False


@_breaks("RLIMIT_AS and RLIMIT_DATA do not count", "may_expand_vm")
def _always_expand(k, flags, pages):
    return True


@_breaks("RLIMIT_MEMLOCK does not count for mappings", "may_lock")
def _always_lock(k, flags, pages):
    return True


@_breaks("no mapping is too large for memory", "enough_memory")
def _always_enough(k, pages):
    return True


@_breaks("MAP_NORESERVE is accounted too", "accountable")
def _account_all(flags):
    return flags & (VM_SHARED | VM_WRITE) == VM_WRITE


@_breaks("stacks count as data", "account_vm")
def _count_as_data(k, flags, pages):
    mm = k.mm
    mm.total_vm += pages
    if flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        mm.data_vm += pages


@_breaks("a stack keeps no guard", "vm_start_gap")
def _no_guard(k, i):
    return k.vma[i].vm_start


@_breaks("stacks do not grow", "expand_stack")
def _never_grow(k, i, addr):
    return False


@_breaks("large mappings are not aligned to huge pages", "_search_aligned")
def _never_search_aligned(k, hint, length, pgoff, flags):
    return 0


@_breaks("MAP_FIXED may name any address", "_check_fixed")
def _nothing_fixed(k, addr, length):
    return 0 if 0 <= addr <= k.mm.task_size - length else -12


@_breaks("MAP_STACK means nothing", "_flag_bits")
def _no_stack_bit(flags):
    bits = VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    return bits | (VM_LOCKED if flags & MAP_LOCKED else 0)


@_breaks("mprotect leaves the rights of mapped pages", "drop_rights")
def _keep_rights(k, start, end):
    return


@_breaks("mlock and MAP_POPULATE fault nothing in", "populate")
def _populate_nothing(k, start, end, ignore_errors):
    return 0


@_breaks("MREMAP_DONTUNMAP leaves the old area as it was", "_forget_source")
def _remember_source(k, addr, length, whole):
    return


@_breaks("mremap moves one area only", "_move_areas")
def _move_nothing(k, addr, length, new_addr, flags):
    return -EFAULT


@_breaks("MADV_RANDOM and MADV_SEQUENTIAL add up", "_advised_flags")
def _advice_adds_up(flags, advice):
    if advice == MADV_RANDOM:
        return flags | VM_RAND_READ
    if advice == MADV_SEQUENTIAL:
        return flags | VM_SEQ_READ
    return -1 if advice < 10 or advice > 19 or advice in (12, 13) else flags


@_breaks("MADV_FREE of a part leaves the huge page whole", "split_partial_folios")
def _split_nothing(k, addr, end):
    return


@_breaks("a split huge page keeps its empty pages", "_split_folio_in")
def _keep_empty_pages(k, i, start, end, folio):
    return


@_breaks("huge mappings are not split where areas are", "split_huge_pmd")
def _keep_huge(k, addr):
    return


@_breaks("a huge page comes without a deposited table", "map_huge_page")
def _no_deposit(k, addr):
    k.mm.rss += pages_per_slot()


@_breaks("frames are never locked in memory", "lock_frames")
def _lock_nothing(k, start, end, lock):
    return


@_breaks("a write does not keep what was lazily freed", "keep_pages")
def _keep_nothing(k, page):
    return


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    from kernel.linux.verify.subject import COMMAND, Linux

    return mutations.main(
        COMMAND, lambda: Linux(count_branches=False), [*MUTATIONS.values()], argv, programs=20
    )


if __name__ == "__main__":
    sys.exit(main())
