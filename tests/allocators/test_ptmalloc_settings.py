"""ptmalloc's settings act as glibc's tunables: what is set is set, even to its default."""

import numpy as np
import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, make_events
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig

MIB = 1 << 20


def pages_left(path, settings):
    """Free a mapped block, then fill and empty the heap; return the pages mapped."""
    rows = [(MALLOC, 0, MIB), (FREE, 0, 0)]
    rows += [(MALLOC, n, 100_000) for n in range(10)] + [(FREE, n, 0) for n in range(10)]
    parquet.write(path, make_events(*np.array(rows).T), {})
    workload = workloads.load({"name": "trace", "path": str(path), "touch": "nothing"})
    plugin = registry.load("ptmalloc", settings)
    simulation = Simulation(plugin, workload, KernelConfig(), OBSERVED)
    simulation.replay()
    assert plugin.promises().settles == bool(settings)
    return simulation.k.mm.total_vm


@pytest.mark.hardening(12)
@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("setting", "default"),
    [
        ("mmap_threshold", 131072),
        ("trim_threshold", 131072),
        ("top_pad", 131072),
        ("mmap_max", 65536),
    ],
)
def test_a_threshold_that_is_set_stays(tmp_path, setting, default):
    path = tmp_path / "t.parquet"
    left, dynamic = pages_left(path, {setting: default}), pages_left(path, {})
    assert dynamic - left > 150  # the freed block raised the trim threshold to 2 MiB
