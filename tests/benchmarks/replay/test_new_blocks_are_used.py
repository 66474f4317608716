"""The program uses every new block as workload.touch says, however it was allocated."""

import numpy as np
import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import (
    ALIGNED,
    CALLOC,
    MALLOC,
    OP_NAMES,
    REALLOC,
    TOUCH_READ,
    make_events,
)
from benchmarks.events.ledger import Ledger
from benchmarks.events.touch import TOUCH_NAMES
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.twin.verify import operation as rows
from benchmarks.twin.verify.trace import to_program
from kernel.config import KernelConfig

KIB = 1 << 10


def faults(path, touch, *events):
    """Simulate ptmalloc on events (op, slot, size); return the faults of each kind of touch."""
    op, slot, size = np.array(events).T
    parquet.write(path, make_events(op, slot, size), {})
    settings = {"name": "trace", "path": str(path), "stream": "never", "touch": touch}
    workload = workloads.load(settings)
    simulation = Simulation(registry.load("ptmalloc"), workload, KernelConfig(), OBSERVED)
    simulation.replay()
    return simulation.k.mm.flt_write, simulation.k.mm.flt_read


@pytest.mark.hardening(12)
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("touch", TOUCH_NAMES)
@pytest.mark.parametrize("op", [MALLOC, CALLOC, REALLOC, ALIGNED], ids=OP_NAMES.__getitem__)
def test_a_mapped_block_is_used_and_so_is_its_growth(op, touch, tmp_path):
    # 65 pages with the chunk's header, which the allocator writes; 128 more after the realloc.
    block, growth = (op, 0, 256 * KIB), (REALLOC, 0, 768 * KIB)
    header = {"all": 65, "first": 1, "nothing": 1, "read": 1}[touch]
    reads = 64 if touch == "read" else 0
    path = tmp_path / "t.parquet"
    none = faults(path, "nothing", (MALLOC, 1, 0))
    assert faults(path, touch, (MALLOC, 1, 0), block) == (none[0] + header, none[1] + reads)
    more = {"all": (128, 0), "read": (0, 128)}.get(touch, (0, 0))
    wanted = (none[0] + header + more[0], none[1] + reads + more[1])
    assert faults(path, touch, (MALLOC, 1, 0), block, growth) == wanted


@pytest.mark.hardening(12)
def test_the_comparison_with_glibc_uses_blocks_as_the_replay_does():
    events = make_events(
        np.array([MALLOC, CALLOC, ALIGNED, REALLOC, REALLOC, TOUCH_READ]),
        np.array([0, 1, 2, 3, 1, 1]),
        np.full(6, 4000),
    )
    for touch, use in zip(TOUCH_NAMES, (rows.LEAVE, *2 * [rows.WRITE], rows.READ), strict=True):
        found = to_program(events, touch, Ledger())["use"].tolist()
        growth = rows.LEAVE if touch == "first" else use
        assert found == [use, use, use, use, growth, rows.READ], touch
