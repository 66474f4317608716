"""malloc_trim, mallopt and sbrk in a trace: performed, or ignored and counted."""

import numpy as np
import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import (
    FREE,
    MALLOC,
    MALLOPT,
    SBRK,
    TOUCH_WRITE,
    TRIM,
    make_events,
    mallopt_arguments,
    mallopt_offset,
)
from benchmarks.events.ledger import Ledger
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.run.observe import _ignored
from benchmarks.twin.verify import operation as kinds
from benchmarks.twin.verify.trace import to_program
from kernel.config import KernelConfig

PAGE = 4096
#: 200 blocks of a page and a half; all but the last are freed, so that only trimming returns them.
BLOCKS = [(MALLOC, n, 6000, 0) for n in range(200)]
FREES = [(FREE, n, 0, 0) for n in range(199)]
#: After the blocks: two mallopt, one sbrk and a malloc_trim that keeps some memory.
OTHERS = [(MALLOPT, -1, 0, -3 << 32 | 5), (MALLOPT, -1, 0, 0), (SBRK, -1, 0, PAGE)]
OTHERS += [(TRIM, -1, 1000, 0)]


def trace(path, rows):
    op, slot, size, offset = np.array(rows).T
    parquet.write(path, make_events(op, slot, size, offset=offset), {})
    return workloads.load({"name": "trace", "path": str(path), "stream": "never"})


def simulated(name, workload):
    simulation = Simulation(registry.load(name), workload, KernelConfig(), OBSERVED)
    simulation.replay()
    return simulation.k.mm.rss, _ignored(simulation.r)


@pytest.mark.hardening(15)
@pytest.mark.usefixtures("plain")
def test_trimming_returns_memory_and_the_rest_is_counted(tmp_path):
    rows = BLOCKS + FREES + OTHERS
    before, ignored = simulated("ptmalloc", trace(tmp_path / "a.parquet", rows))
    assert ignored == {"malloc_trim": 1, "mallopt": 2, "sbrk": 1}
    after, again = simulated("ptmalloc", trace(tmp_path / "b.parquet", [*rows, (TRIM, -1, 0, 0)]))
    assert again == ignored
    assert before - after > 200
    _, without = simulated("bump", trace(tmp_path / "c.parquet", [*rows, (TRIM, -1, 0, 0)]))
    assert without == ignored | {"malloc_trim": 2}


@pytest.mark.hardening(15)
def test_glibc_and_its_twin_trim_alike(tmp_path):
    from benchmarks.real.memory import RealRun
    from tests.benchmarks.real.conftest import library

    glibc = library("native/glibc")
    rows = BLOCKS + FREES + OTHERS
    one, two = (trace(tmp_path / f"{n}.parquet", rows + n * [(TRIM, -1, 0, 0)]) for n in (0, 1))
    before, after = RealRun(glibc, one), RealRun(glibc, two)
    assert before.metrics()["end_rss"] - after.metrics()["end_rss"] > 200 * PAGE
    assert after.metrics()["syscalls_madvise"] == 1
    assert _ignored(after.r) == {"malloc_trim": 1, "mallopt": 2, "sbrk": 1}


def test_the_comparison_with_glibc_performs_what_both_sides_can(tmp_path):
    workload = trace(tmp_path / "t.parquet", [BLOCKS[0], *OTHERS, (TRIM, -1, 0, 0)])
    first, *rows = to_program(workload.events, "all", Ledger())
    assert first["kind"] == kinds.MALLOC
    assert [row["kind"] for row in rows] == [
        kinds.USE,
        kinds.USE,
        kinds.SBRK,
        kinds.USE,
        kinds.TRIM,
    ]
    assert [row["request"] for row in rows] == [0, 0, PAGE, 0, 0]
    assert all(row["use"] == kinds.LEAVE for row in rows)


def test_mallopt_keeps_both_arguments():
    parameter, value = np.array([-8, 1, -3, -1]), np.array([1, 0, 1 << 30, -1])
    found = mallopt_arguments(mallopt_offset(parameter, value))
    assert (found[0].tolist(), found[1].tolist()) == (parameter.tolist(), value.tolist())


@pytest.mark.parametrize("op", [TRIM, MALLOPT, SBRK, TOUCH_WRITE])
def test_they_change_no_object(op, tmp_path):
    if op == TOUCH_WRITE:
        with pytest.raises(workloads.WorkloadError, match="touch_write of slot 0, which is empty"):
            trace(tmp_path / "t.parquet", [(op, 0, 8, 0)])
    else:
        assert trace(tmp_path / "t.parquet", [BLOCKS[0], (op, -1, 0, -5)]).operations == 1
