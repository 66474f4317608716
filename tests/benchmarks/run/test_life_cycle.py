"""Tests that a run is finished only when all its files are there, however its processes end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.run import launch, observe, results, timing
from benchmarks.timing.rounds import CellError
from tests.benchmarks.run.conftest import ROOT, SMALL, composed, start_bench, wait_until

life_cycle = pytest.mark.hardening(1)
out_of_memory = pytest.mark.hardening(18)
#: The shortest run that is timed.
TIMED = ("measure=quick", *(f"measure.{n}=1" for n in ("rounds", "samples", "min_events")))


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` and its descendants have started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [p for child in map(int, text.split()) for p in (child, *children(child))]


@life_cycle
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and PR_SET_PDEATHSIG")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_run_that_dies_before_timing_is_not_finished_and_is_resumed(bench, tmp_path, number):
    run = tmp_path / "run"
    arguments = ("allocator=bump", *TIMED, *SMALL, f"hydra.run.dir={run}")
    process = start_bench(tmp_path, *arguments)
    wait_until((run / "metrics.json").exists, process)
    started = children(process.pid)
    assert started
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_until(lambda: not any(Path(f"/proc/{pid}/stat").exists() for pid in started), None)

    status = results.read_run(run)["status"]
    # Waiting: the untimed part had ended, and is not repeated.
    assert status in (("running" if number == signal.SIGKILL else "interrupted"), "waiting")
    assert not results.is_complete(run, timed=True)
    done = bench(*arguments)
    assert done.returncode == 0, done.stderr
    assert "finished earlier" not in done.stderr
    assert results.read_run(run)["status"] == "ok"
    assert {path.name for path in run.iterdir()} == {"run.json", *results.FILES}


@pytest.fixture
def finished(tmp_path):
    """The directory of a finished, timed run."""
    for name in results.FILES:
        (tmp_path / name).write_text(name)
    results.write_json(tmp_path / "run.json", {"schema": results.SCHEMA, "outcome": ["ok", ""]})
    results.finish(tmp_path, *results.outcome(tmp_path))
    return tmp_path


@life_cycle
def test_a_finished_run_is_complete(finished):
    run = results.read_run(finished)
    assert (run["status"], run["reason"]) == ("ok", "")
    assert "outcome" not in run
    assert results.is_complete(finished, timed=True)


@life_cycle
@pytest.mark.parametrize("name", results.FILES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("")])
def test_a_run_with_a_missing_or_damaged_file_is_not_complete(finished, name, damage):
    damage(finished / name)
    assert not results.is_complete(finished, timed=True)


@life_cycle
def test_a_run_that_was_not_timed_needs_no_times(tmp_path):
    for name in results.UNTIMED:
        (tmp_path / name).write_text(name)
    results.finish(tmp_path, results.OOM, "why")
    assert results.is_complete(tmp_path, timed=False)
    assert not results.is_complete(tmp_path, timed=True)


@life_cycle
def test_the_untimed_run_does_not_set_the_status(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(composed("allocator=bump", *SMALL)))
    results.write_json(tmp_path / "run.json", {"status": results.RUNNING})
    assert observe.main(tmp_path) == 0
    assert results.read_run(tmp_path)["status"] == results.RUNNING
    assert results.outcome(tmp_path) == ("ok", "")


@life_cycle
def test_a_child_whose_parent_has_ended_exits_at_once(python):
    script = "from benchmarks.run.launch import end_with_parent; end_with_parent(); print('alive')"
    assert python("-c", script).stdout == "alive\n"
    orphan = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT), launch.PARENT: "1"},
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    assert (orphan.returncode, orphan.stdout) == (1 if sys.platform == "linux" else 0, b"")


@life_cycle
def test_files_reach_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda file: done.append(Path(f"/dev/fd/{file}").resolve()))
    results.write_json(tmp_path / "run.json", {})
    temporary, folder = (path.name for path in done)
    assert re.fullmatch(r"\.run\.[0-9a-f]{12}\.json", temporary)
    assert folder == tmp_path.name
    assert json.loads((tmp_path / "run.json").read_text()) == {}


@out_of_memory
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "allocate 7.45 GiB"),
        (MemoryError(), "this machine has too little memory"),
    ],
)
def test_memory_that_the_machine_lacks_is_named(observed, monkeypatch, error, message):
    def fail(*_arguments):
        raise error

    monkeypatch.setattr(observe, "on_model", fail)
    code, directory = observed("allocator=bump", *SMALL)
    run = results.read_run(directory)
    assert (code, run["status"]) == (1, "failed")
    assert run["reason"].startswith("this machine has too little memory")
    assert message in run["reason"]


@out_of_memory
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("number", "named"), [("KILL", True), ("SEGV", False)])
def test_a_child_that_the_kernel_kills_hints_at_memory(tmp_path, monkeypatch, number, named):
    script = tmp_path / "child"
    script.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    status, reason = launch.observe(tmp_path, lambda *_: None)
    assert status == "failed"
    assert ("runs out of memory" in reason) == named
    with pytest.raises(CellError) as caught:
        timing._run([str(script)], lambda *_: None)
    assert ("runs out of memory" in str(caught.value)) == named
