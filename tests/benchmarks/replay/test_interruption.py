"""Test that an interrupted replay ends, although compiled code cannot be interrupted."""

import threading
import time

import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig


def test_an_interrupted_replay_leaves_no_thread():
    settings = {"name": "churn", "operations": 3_000_000, "live": 500}
    simulation = Simulation(
        registry.load("bump"), workloads.load(settings), KernelConfig(), OBSERVED
    )

    def interrupt(event):
        if event > 0:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        simulation.replay(progress=interrupt)
    deadline = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert simulation.k.task.now < settings["operations"] - 1
