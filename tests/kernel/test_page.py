"""The arithmetic of pages and slots, checked against integer division."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.engine.jit import build_once, jit
from kernel.page import (
    fold_page,
    offset_in_page,
    offset_in_slot,
    page_align,
    page_of,
    page_start,
    pages_around,
    pages_of,
    pgd_shift,
    pmd_addr_end,
    pmd_size,
    pud_addr_end,
    slot_start,
)

WINDOW_BITS = 34
ADDRESSES = st.integers(0, (1 << 47) - 1)


@jit
def answers(out, addr, end):
    """Write the results of the functions for ``addr`` and ``end`` to ``out``."""
    out[0] = page_align(addr)
    out[1] = page_start(addr)
    out[2] = offset_in_page(addr)
    out[3] = slot_start(addr)
    out[4] = offset_in_slot(addr)
    out[5] = pmd_addr_end(addr, end)
    out[6] = pud_addr_end(addr, end)
    out[7] = page_of(addr)
    out[8] = fold_page(addr)
    out[9] = pgd_shift()
    out[10] = out[11] = 0
    for page in pages_of(slot_start(addr), slot_start(addr) + pmd_size()):
        out[10] += page
    for page in pages_around(page_of(addr)):
        out[11] += page


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@given(addr=ADDRESSES, more=st.integers(1, 1 << 40))
def test_pages_and_slots(page_size, addr, more):
    built = build_once(answers, PAGE_SHIFT=page_size.bit_length() - 1, WINDOW_BITS=WINDOW_BITS)
    out = np.zeros(12, "i8")
    built(out, addr, addr + more)
    entries = page_size // 8
    slot, pud = page_size * entries, page_size * entries**2
    page = addr % 2**WINDOW_BITS // page_size
    first = page // entries * entries
    assert out.tolist() == [
        -(-addr // page_size) * page_size,
        addr // page_size * page_size,
        addr % page_size,
        addr // slot * slot,
        addr % slot,
        min(addr + more, (addr // slot + 1) * slot),
        min(addr + more, (addr // pud + 1) * pud),
        page,
        addr % (2**WINDOW_BITS // page_size),
        (pud * entries).bit_length() - 1,
        sum(range(first, first + entries)),
        sum(range(first, first + entries)),
    ]
