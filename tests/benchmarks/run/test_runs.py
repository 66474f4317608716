"""Tests of bench.py: single runs and sweeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyperf
import pytest
import yaml
from pandas import read_parquet

from benchmarks.replay.loop import TIMELINE_COLUMNS
from benchmarks.replay.metrics import METRICS
from benchmarks.run import results
from tests.benchmarks.run.conftest import ROOT, SMALL, result_directory


def metrics(directory: Path) -> dict:
    return json.loads((directory / "metrics.json").read_text())


def run_json(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text())


def test_a_timed_run_leaves_a_complete_directory(bench, python):
    done = bench("allocator=bump", "workload=churn", "measure=quick", "measure.rounds=2", *SMALL)
    assert done.returncode == 0, done.stderr
    directory = result_directory(done)
    names = {path.name for path in directory.iterdir()}
    assert names == {"run.json", *results.FILES}

    suite = pyperf.BenchmarkSuite.load(str(directory / "bench.json"))
    (benchmark,) = suite.get_benchmarks()
    assert benchmark.get_name() == run_json(directory)["workload_label"]
    assert benchmark.get_nrun() == 2  # rounds
    assert benchmark.get_nvalue() == 6
    assert benchmark.get_metadata()["allocator"] == "bump"
    assert python("-m", "pyperf", "hist", directory / "bench.json").returncode == 0

    found = metrics(directory)
    assert set(found) == {m.name for m in METRICS if not m.timed and not m.part}
    assert all(isinstance(value, int | float) for value in found.values())
    assert found["operations"] == 20000
    assert found["peak_live"] <= found["peak_heap"]
    assert found["peak_live_objects"] == 500

    timeline = read_parquet(directory / "timeline.parquet")
    assert list(timeline.columns) == list(TIMELINE_COLUMNS)
    assert timeline.event.is_monotonic_increasing
    assert timeline.event.iloc[-1] == 19999
    assert timeline.heap.max() == found["peak_heap"]

    run = run_json(directory)
    assert run["status"] == "ok"
    assert run["versions"]["model"]
    assert set(run["hashes"]) == {"kernel", "plugin", "loop", "workload"}
    config = yaml.safe_load((directory / "config.yaml").read_text())
    assert config["seed"] == 1
    assert config["workload"]["operations"] == 20000


def test_metrics_are_deterministic(bench):
    first, second = (result_directory(bench("allocator=buddy", *SMALL)) for _ in range(2))
    assert first != second
    assert metrics(first) == metrics(second)
    assert run_json(first)["address_checksum"] == run_json(second)["address_checksum"]
    other = result_directory(bench("allocator=buddy", "seed=2", *SMALL))
    assert metrics(other) != metrics(first)


def test_a_sweep_survives_its_failures_and_names_them(bench, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        (ROOT / "allocators" / "bump.py").read_text().replace("return p\n", "return p + 8\n")
    )
    done = bench("-m", f"allocator.name={broken},bump", "allocator=bump", "seed=1,2", *SMALL)
    assert done.returncode == 1
    directory = result_directory(done)
    statuses = {p.name: run_json(p)["status"] for p in directory.iterdir() if p.is_dir()}
    assert [statuses[name] for name in sorted(statuses)] == ["failed", "failed", "ok", "ok"]
    assert done.stdout.count("which is not aligned") == 2


def test_a_sweep_resumes_after_an_interruption(bench, tmp_path):
    arguments = (
        "-m",
        "allocator=bump",
        "seed=1,2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        *SMALL,
    )
    assert bench(*arguments).returncode == 0
    first, second = sorted((tmp_path / "sweep").glob("*/run.json"))
    before = first.read_text()
    content = json.loads(second.read_text()) | {"status": "interrupted"}
    second.write_text(json.dumps(content))
    done = bench(*arguments)
    assert done.returncode == 0, done.stderr
    assert "finished earlier" in done.stderr
    assert first.read_text() == before
    assert json.loads(second.read_text())["status"] == "ok"


def test_out_of_memory_is_a_result(bench):
    done = bench("allocator=bump", "kernel.rlimit_data=300000", *SMALL)
    assert done.returncode == 3, done.stderr
    directory = result_directory(done)
    assert run_json(directory)["status"] == "oom"
    found = metrics(directory)
    assert found["failed"] > 0
    assert found["skipped"] > 0
    assert found["peak_heap"] <= 300000
    sweep = bench("-m", "allocator=bump", "kernel.rlimit_data=300000", *SMALL)
    assert sweep.returncode == 0, sweep.stderr


def test_an_oom_kill_on_a_page_fault_is_a_result(bench):
    limits = ("kernel.memory=1048576", "kernel.overcommit=1")
    done = bench("allocator=bump", "measure=quick", "measure.rounds=1", *limits, *SMALL)
    assert done.returncode == 3, done.stderr
    directory = result_directory(done)
    run = run_json(directory)
    assert run["status"] == "oom"
    assert 0 < run["events"] < 20000
    assert "killed at event" in run["reason"]
    assert metrics(directory)["peak_rss"] == 1048576
    assert (directory / "bench.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_stops_a_sweep_and_keeps_finished_runs(bench, tmp_path):
    sweep = tmp_path / "sweep"
    arguments = [
        *(sys.executable, str(ROOT / "bench.py"), "-m", "allocator=bump", "measure=counters"),
        *("workload.operations=20000,200000000", "workload.live=500", f"hydra.sweep.dir={sweep}"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not (sweep / "1-bump-churn" / "run.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    first = run_json(sweep / "0-bump-churn")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert b"interrupted" in output
    assert b"Traceback" not in output
    assert first["status"] == "ok"
    assert run_json(sweep / "0-bump-churn") == first
    assert run_json(sweep / "1-bump-churn")["status"] == "interrupted"


def test_help_lists_every_choice(bench):
    done = bench("--help")
    assert done.returncode == 0
    for folder in ("allocator", "workload", "kernel", "measure", "experiment"):
        for path in (ROOT / "conf" / folder).glob("*.yaml"):
            assert path.stem in done.stdout
