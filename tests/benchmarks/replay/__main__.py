"""Print the table of golden counters: ``python -m tests.benchmarks.replay``.

Commit a changed table only with the reason for the change, and raise benchmarks.run.results.MODEL
if published numbers change with it.
"""

import json
import sys
from pathlib import Path

from allocators.base import registry
from benchmarks import workloads
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig
from kernel.cost import COSTS

TABLE = Path(__file__).with_name("counters.json")
#: Pinned by their hashes in tests/benchmarks/workloads; they put different demands on an allocator.
WORKLOADS = (
    {"name": "churn", "operations": 60_000, "live": 2_000},
    {"name": "realloc_growth", "operations": 20_000},
)
#: Metrics sensitive to any change of a policy or of the kernel model.
METRICS = (
    "operations",
    "peak_live",
    "peak_heap",
    "peak_rss",
    "peak_page_tables",
    "syscalls_brk",
    "syscalls_mmap",
    "syscalls_munmap",
    "faults",
    "pages_returned",
    "steps_p50",
    "steps_p99",
    "steps_max",
    "payload_loads",
    "payload_stores",
)


def counters(name: str) -> dict[str, dict[str, int]]:
    """Replay allocator ``name`` with its default settings; return its counters by workload."""
    table = {}
    for settings in WORKLOADS:
        workload = workloads.load(settings)
        simulation = Simulation(registry.load(name), workload, KernelConfig(), OBSERVED)
        simulation.replay()
        simulation.verify_end()
        found = simulation.metrics(dict.fromkeys(COSTS, 0.0))
        row = {metric: int(found[metric]) for metric in METRICS}
        row["loads"] = int(simulation.k.mm.loads)
        row["stores"] = int(simulation.k.mm.stores)
        row["address_checksum"] = int(simulation.r.checksum)
        table[workload.label] = row
    return table


if __name__ == "__main__":
    json.dump({name: counters(name) for name in registry.names()}, sys.stdout, indent=1)
    print()
