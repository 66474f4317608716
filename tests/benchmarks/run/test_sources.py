"""Tests that a run measures the sources that it hashed, and imports no module from elsewhere."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.run import launch, results, timing
from benchmarks.run.job import check_job
from benchmarks.run.sources import edited_since, snapshot
from benchmarks.run.timing import Untimed
from tests.benchmarks.run.conftest import ROOT, SMALL, composed

pytestmark = pytest.mark.hardening(2)
BUMP = (ROOT / "allocators" / "bump.py").read_text()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A plugin that imports a helper, as a checked job on a trace."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_helper.py").write_text("import numpy\nSIZE = 1\n")
    (tmp_path / "mine.py").write_text(f"from mine_helper import SIZE\n{BUMP}")
    (tmp_path / "trace.txt").write_text("1: malloc 0x10 8\n")
    trace = ("workload=trace", f"workload.path={tmp_path / 'trace.txt'}")
    job = check_job(composed("allocator=bump", f"allocator.name={tmp_path / 'mine.py'}", *trace))
    yield job
    sys.modules.pop("mine_helper", None)


def test_everything_that_determines_a_run_is_a_source(mine, tmp_path):
    names = set(snapshot(mine).hashes)
    files = {str(tmp_path / name) for name in ("mine.py", "mine_helper.py", "trace.txt")}
    assert names >= {"kernel", "allocators/base", "benchmarks/replay", "benchmarks/workloads"}
    assert {name for name in names if name.startswith("/")} == files


def test_a_workload_plugin_is_a_source(tmp_path):
    path = tmp_path / "mine_too.py"
    path.write_text((ROOT / "benchmarks" / "workloads" / "stack.py").read_text())
    job = check_job(composed("allocator=bump", "workload=stack", f"workload.name={path}"))
    assert {str(path), "allocators/bump.py"} <= set(snapshot(job).hashes)


@pytest.mark.parametrize("name", ["mine.py", "mine_helper.py", "trace.txt"])
def test_an_edit_is_noticed_even_if_it_is_undone(mine, tmp_path, name):
    sources, path = snapshot(mine), tmp_path / name
    assert not sources.edited()
    text = path.read_text()
    path.write_text(f"{text}#")
    assert sources.edited() == str(path)
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    assert sources.edited() == str(path)
    path.unlink()
    assert sources.edited() == str(path)


def test_a_run_whose_source_is_edited_fails(mine, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    directory.mkdir()
    results.write_json(directory / "run.json", {"status": results.RUNNING})

    def observe(*_arguments):
        (tmp_path / "mine_helper.py").write_text("edited = 1\n")
        return results.OK, ""

    monkeypatch.setattr(launch, "observe", observe)
    status, reason = launch.run_job(mine, directory, snapshot(mine), lambda *_: None)
    assert status == results.read_run(directory)["status"] == results.FAILED
    assert reason == f"{tmp_path / 'mine_helper.py'} was edited during the run: run it again"


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_source_that_is_edited_before_or_while_timing_fails_the_run(
    mine, tmp_path, monkeypatch, when
):
    directory = tmp_path / "run"
    directory.mkdir()
    helper = tmp_path / "mine_helper.py"
    run = {"status": results.WAITING, "outcome": ["ok", ""], "sources": snapshot(mine).hashes}
    results.write_json(directory / "run.json", run)
    if when == "before":
        helper.write_text("edited = 1\n")

    def measure(_run, _place):
        text = helper.read_text()
        helper.write_text("edited = 1\n")  # and undone
        helper.write_text(text)
        return {"times": {"warm_ns_per_op": 1.0}}

    monkeypatch.setattr(timing, "_measure", measure)
    monkeypatch.setattr(timing.machine, "warnings", list)
    timing.time_runs([Untimed(directory, mine, run, snapshot(mine))], lambda *_: None)
    run = results.read_run(directory)
    assert run["status"] == results.FAILED
    assert run["reason"] == f"{helper} was edited during the run: run it again"


def test_a_run_is_compared_with_the_finished_runs_of_its_sweep(tmp_path):
    def run(name, status, **entries):
        (tmp_path / name).mkdir()
        results.write_json(tmp_path / name / "run.json", {"status": status, **entries})

    hashes = {"kernel": "1", "mine.py": "2"}
    assert not edited_since(tmp_path, hashes)
    run("0-mine-churn", "failed", sources={"mine.py": "1"})  # mended since
    run("1-bump-churn", "ok", sources={"kernel": "1", "bump.py": "1"})
    assert not edited_since(tmp_path, hashes)
    run("2-mine-churn", "oom", sources={"kernel": "1", "mine.py": "1"})
    assert edited_since(tmp_path, hashes) == "mine.py was edited after 2-mine-churn was measured"
    run("1-old-churn", "ok")
    assert edited_since(tmp_path, hashes).startswith("an earlier version of the bench measured")


def test_an_allocator_edited_in_mid_sweep_is_refused(tmp_path):
    path, sweep = tmp_path / "mine.py", tmp_path / "sweep"
    path.write_text(BUMP)
    words = (
        "-m",
        "allocator=bump",
        f"allocator.name={path}",
        "seed=1,2",
        f"hydra.sweep.dir={sweep}",
    )
    words += ("measure=counters", "workload.operations=2000", "workload.live=100")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    with subprocess.Popen(
        [sys.executable, ROOT / "bench.py", *words], cwd=tmp_path, env=environment, **pipes
    ) as process:
        deadline = time.monotonic() + 120
        while results.read_run(sweep / "0-bump-churn").get("status") != "ok":
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.005)
        path.write_text(
            BUMP.replace("GROWTH = size_setting(128 << 10", "GROWTH = size_setting(4 << 10")
        )
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{path} was edited" in output
    assert results.read_run(sweep / "0-bump-churn")["status"] == "ok"
    assert results.read_run(sweep / "1-bump-churn")["status"] == "failed"


@pytest.fixture
def hostile(tmp_path):
    """A working directory with modules that end whatever imports them."""
    for name in ("yaml", "queue", "numba", "bench", "kernel", "allocators", "benchmarks", "pyperf"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('another checkout')")
    return tmp_path


@pytest.mark.parametrize("safe", [(), ("-P",)])
def test_nothing_is_imported_from_the_working_directory(hostile, safe):
    environment = {n: value for n, value in os.environ.items() if n != "PYTHONPATH"}
    words = ("allocator=bump", "measure=quick", "measure.rounds=1", "measure.min_events=1")
    done = subprocess.run(
        [sys.executable, *safe, ROOT / "bench.py", *words, *SMALL],
        cwd=hostile,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_children_take_no_relative_entry_of_the_path(tmp_path):
    path = os.pathsep.join(["", ".", "elsewhere", str(tmp_path)])
    given = launch._environment({"PYTHONPATH": path})
    assert given["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path)]
    assert given["PYTHONSAFEPATH"] == "1"
