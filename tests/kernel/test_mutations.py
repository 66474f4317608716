"""Mutations of the kernel's rules: the comparison with the oracle must detect each.

A mutation replaces the kernel function of that name through build(), run as plain Python so that
nothing is compiled for it.  Mutations that random programs rarely reach (anon_vmas) run with the
drawings of test_areas.
"""

import pytest

from kernel.engine.jit import jit
from kernel.fault import FAULT_READ
from kernel.fault import fault_page as real_fault_page
from kernel.layout import get_unmapped_area as real_get_unmapped_area
from kernel.types import VM_ACCOUNT
from kernel.vma import insert_vma as real_insert_vma
from tests.kernel.pair import Mismatch, Pair, random_limits, random_program

pytestmark = pytest.mark.once


@jit
def merges_never(k, i, start, flags, pgoff, anon_vma, file):
    return False


@jit
def tables_never_freed(k, start, end, floor, ceiling):
    return


@jit
def tables_freed_under_others(k, start, end, floor, ceiling):
    mm = k.mm
    mm.nr_ptes -= k.pmd[start >> 21]
    k.pmd[start >> 21] = 0


@jit
def slots_kept(k, start, end):
    return


@jit
def limits_ignored(k, flags, pages):
    return True


@jit
def memory_ignored(k, pages):
    return True


@jit
def holes_at_the_limit(k, start, end):
    return 0


@jit
def zero_page_in_rss(k, i, addr, write):
    kind = real_fault_page(k, i, addr, write)
    k.mm.rss += kind == FAULT_READ
    return kind


@jit
def huge_lengths_not_aligned(k, hint, length, pgoff, flags, file, align):
    return real_get_unmapped_area(k, hint or 1 << 46, length, pgoff, flags, file, align)


@jit
def account_forgotten(k, i, start, end, flags, pgoff, anon_vma, file):
    real_insert_vma(k, i, start, end, flags & ~VM_ACCOUNT, pgoff, anon_vma, file)


BROKEN = {
    "can_merge_after": merges_never,
    "free_tables": tables_never_freed,
    "free_ptes": tables_freed_under_others,
    "free_whole_pte_pages": slots_kept,
    "may_expand_vm": limits_ignored,
    "enough_memory": memory_ignored,
    "fault_page": zero_page_in_rss,
    "get_unmapped_area": huge_lengths_not_aligned,
    "insert_vma": account_forgotten,
}


def first_mismatch(programs, **bindings):
    """Return the number of random programs until model and oracle disagree; None if never."""
    for seed in range(programs):
        pair = Pair(limits=random_limits(seed), **bindings)
        try:
            pair.run(random_program(seed))
        except Mismatch:
            return seed
    return None


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_detected(rule, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert first_mismatch(400, **{rule: BROKEN[rule]}) is not None


def test_unmutated_rules_raise_no_mismatch(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert first_mismatch(5) is None
