"""The experiments on physical memory, with smaller settings, show the effects they are made for."""

import json

import pytest

MIB = 1 << 20
SMALLER = ("workload.live=3000", "workload.operations=6500", f"kernel.memory={4 * MIB}")
#: The allocator and the instruments of `fragmentation`, so that all tests share a compiled loop.
SAME = ("allocator=buddy", "allocator.growth=mmap", "allocator.max_order=22", "kernel.tlb=true")


@pytest.fixture
def experiment(observed):
    """Function that runs an experiment and returns its exit code, run.json and metrics.json."""

    def run(name, *arguments):
        code, directory = observed(f"experiment={name}", *SMALLER, *SAME, *arguments)
        found = [json.loads((directory / f).read_text()) for f in ("run.json", "metrics.json")]
        return code, *found

    return run


def test_exhaustion_is_served_from_the_swap_area(experiment):
    code, run, found = experiment("exhaustion", f"kernel.swap={8 * MIB}")
    assert (code, run["status"]) == (0, "ok")
    assert found["faults_major"] > 100
    assert found["peak_rss"] < 4 * MIB < found["peak_live"]
    assert 0 < found["peak_swap"] <= 8 * MIB
    assert found["frames_checks"] == 6500


def test_fragmentation_makes_only_huge_pages_fail(experiment):
    rows = []
    for percent in (0, 100):
        code, run, found = experiment(
            "fragmentation",
            f"kernel.fragmentation={percent}",
            f"kernel.memory={16 * MIB}",
        )
        assert (code, run["status"], found["failed"]) == (0, "ok", 0)
        rows.append(found)
    whole, fragmented = rows
    assert whole["faults_huge"] > 0 == whole["huge_failures"]
    assert fragmented["faults_huge"] == 0 < fragmented["huge_failures"]
    assert whole["unusable_free_huge"] < fragmented["unusable_free_huge"] == 1.0
    assert fragmented["frames_checks"] == 6500
    # Huge pages reduce the number of page walks.
    assert 0 < whole["page_walks"] < fragmented["page_walks"]
    assert fragmented["page_walks"] == fragmented["tlb_l2_misses"] <= fragmented["tlb_l1_misses"]


def test_an_oom_kill_is_a_result_with_all_its_data(experiment):
    code, run, found = experiment("oom", f"kernel.swap={MIB}")
    assert (code, run["status"]) == (3, "oom")
    assert "out of memory on a page fault" in run["reason"]
    assert found["peak_swap"] == MIB
    # One check after every completed event, and one after the kill.
    assert found["frames_checks"] == run["events"] + 1


def test_a_lost_frame_aborts_the_run(python):
    script = """
from allocators.base import registry
from benchmarks import workloads
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig
from kernel.engine.jit import jit

@jit
def forget(k, pfn, addr):
    pass

workload = workloads.load({"name": "churn", "operations": 2000, "live": 100})
kernel = KernelConfig(frames=True, memory=1 << 24)
switches = OBSERVED | {"CHECK_FRAMES": True, "map_frame": forget}
Simulation(registry.load("bump"), workload, kernel, switches).replay()
"""
    done = python("-c", script, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert "event 0: SIGABRT: frames are not conserved: " in done.stderr
