"""Load of other processes and stolen time are told apart from the measurement's own."""

import os
import subprocess
import sys
import time
from collections import namedtuple

import psutil
import pytest

from benchmarks.timing import machine, perf
from benchmarks.timing.machine import Load, Watch, disturbed

Cpu = namedtuple("Cpu", "user nice system idle iowait irq softirq steal guest guest_nice")
Own = namedtuple("Own", "user system children_user children_system elapsed")


@pytest.fixture
def clocks(monkeypatch):
    """Set what the kernel reports: clocks(wall, own, cpu)."""
    now = {}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(os, "times", lambda: now["own"])
    monkeypatch.setattr(psutil, "cpu_times", lambda: now["cpu"])

    def read(wall, own, cpu):
        now.update(wall=wall, own=own, cpu=cpu)

    return read


def test_own_time_and_that_of_children_are_no_load(clocks):
    clocks(0, Own(1, 0, 0, 0, 0), Cpu(100, 0, 10, 50, 5, 0, 0, 0, 20, 0))
    watch = Watch()
    clocks(10, Own(2, 1, 6, 0, 0), Cpu(107, 0, 11, 62, 5, 0, 0, 0, 27, 0))
    assert watch.load() == Load(0.0, 0.0)


def test_other_processes_are_load(clocks):
    clocks(0, Own(0, 0, 0, 0, 0), Cpu(0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    watch = Watch()
    clocks(10, Own(2, 0, 0, 0, 0), Cpu(5, 1, 1, 11, 2, 0, 0, 0, 0, 0))
    assert watch.load() == Load(0.5, 0.0)


def test_stolen_time_is_a_share_of_all(clocks):
    clocks(0, Own(0, 0, 0, 0, 0), Cpu(0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    watch = Watch()
    clocks(10, Own(10, 0, 0, 0, 0), Cpu(10, 0, 0, 8, 0, 0, 0, 2, 0, 0))
    assert watch.load() == Load(0.0, 0.1)


def test_a_busy_process_is_seen_and_named():
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.3)
        names = machine._busiest(0.5)
        load = watch.load()
        busy.kill()
    assert load.others > 0
    assert names


def test_disturbed_rounds_are_those_with_more_load_than_usual():
    loads = [Load(0.5, 0.0)] * 5
    assert disturbed(loads) == []
    assert disturbed([*loads, Load(0.9, 0.0)]) == [5]
    assert disturbed([Load(0.5, 0.2), *loads]) == [0]
    assert disturbed([Load(0.5, None)] * 3) == []
    assert disturbed([]) == []


def test_warnings_name_what_was_found(monkeypatch):
    monkeypatch.setattr(Watch, "load", lambda self: Load(1.04, 0.25))
    monkeypatch.setattr(machine, "_busiest", lambda seconds: ["cc1", "ld"])
    monkeypatch.setattr(machine, "_word", lambda path: "1" if "smt" in str(path) else "powersave")
    found = "\n".join(machine.warnings(0.0))
    assert "other processes use 1.0 of" in found
    assert "(cc1, ld)" in found
    assert "25%" in found
    assert "SMT is on" in found


def test_a_counter_counts_this_process_only_while_it_is_on():
    task_clock = {"task_clock": (1, 1)}  # a counter of the kernel, in ns; needs no hardware
    try:
        counters = perf.Counters(task_clock)
    except OSError as error:
        pytest.skip(f"perf_event_open: {error}")
    with counters:
        sum(range(1_000_000))
    assert counters.counts["task_clock"] > 100_000


def test_a_machine_without_counters_says_so():
    try:
        with perf.Counters() as counters:
            sum(range(100_000))
    except OSError:
        assert perf.unavailable()
    else:
        assert not perf.unavailable()
        assert counters.counts["instructions"] > 100_000
