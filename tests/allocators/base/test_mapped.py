"""Large objects are inside their mapping, which is no larger than necessary."""

import pytest

from allocators.base.mapped import mapped_alloc, mapped_free, mapped_usable
from allocators.buddy import STATE
from kernel.boot import Machine
from kernel.engine.record import record
from kernel.vma import find_vma


@pytest.mark.parametrize("alignment", [16, 4096, 1 << 16, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_000])
def test_a_mapped_block_lies_in_its_mapping(alignment, size):
    machine = Machine()  # keeps the window alive
    k, a = machine.k, record(STATE)
    before = int(k.mm.total_vm)
    p = mapped_alloc(k, a, alignment, size, 1)
    assert p % alignment == 0
    area = k.vma[find_vma(k, p)]
    assert area.vm_start < p < area.vm_end  # also for size 0: no other block has this address
    assert mapped_usable(k, p) >= size
    assert k.mm.total_vm - before <= (size + 2 * 4096 + 4095) // 4096
    mapped_free(k, a, p)
    assert k.mm.total_vm == before
