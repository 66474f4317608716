"""Timing in rounds: what is stored, what resumes, what fails."""

import json
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.replay.metrics import COLD, END_TO_END, WARM
from benchmarks.run import results, timing
from benchmarks.run.job import JobError, check_job
from benchmarks.run.timing import Untimed, measure_in_rounds
from benchmarks.timing.rounds import CellError, read_times, twins
from tests.benchmarks.run.conftest import SMALL, composed, start_bench, wait_until

TINY = ("measure=quick", "measure.samples=1", "measure.warmups=1", "measure.min_events=1")


def test_a_sweep_in_duet_stores_pairs_and_a_suite_for_each_allocator(bench, python, tmp_path):
    words = ("allocator=bump,kr", "measure.duet=true", "measure.rounds=2", *TINY, *SMALL)
    done = bench("-m", *words, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    bump, kr = tmp_path / "0-bump-churn", tmp_path / "1-kr-churn"
    assert len(twins(read_times(bump))) == 2
    for run in (bump, kr):
        (first, *_) = read_times(run)
        assert first["times"].keys() == {WARM, COLD, END_TO_END}
        assert first["times"][WARM] < first["times"][COLD] <= first["times"][END_TO_END]
        assert results.read_run(run)["timing"]["duet"] is True
    comparisons = {results.read_run(run)["timing"]["comparison"] for run in (bump, kr)}
    assert len(comparisons) == 1
    suites = [tmp_path / "pyperf" / f"{name}.json" for name in ("bump", "kr")]
    done = python("-m", "pyperf", "compare_to", "--table", *suites)
    assert done.returncode == 0, done.stderr
    assert "churn(operations=20000, live=500)" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.hardening(1)
def test_a_killed_run_goes_on_in_the_middle_of_its_rounds(bench, tmp_path):
    run = tmp_path / "run"
    words = ("allocator=bump", "measure.rounds=3", *TINY, *SMALL, f"hydra.run.dir={run}")
    process = start_bench(tmp_path, *words)
    wait_until(lambda: len(read_times(run)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert results.read_run(run)["status"] == results.WAITING
    before = read_times(run)
    metrics = (run / "metrics.json").stat().st_mtime_ns
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    after = read_times(run)
    assert after[: len(before)] == before
    places = [(line["round"], line["attempt"], line["side"]) for line in after]
    assert len(set(places)) == len(places)
    assert sum(attempt == 0 for _, attempt, _ in places) == 6
    assert (run / "metrics.json").stat().st_mtime_ns == metrics  # the untimed part counts
    assert results.read_run(run)["status"] == "ok"


def untimed(tmp_path: Path, name: str, *overrides: str) -> Untimed:
    job = check_job(composed(f"allocator={name}", *SMALL, *overrides))
    (tmp_path / name).mkdir()
    sources = timing.snapshot(job)
    run = {"label": name, "workload_label": "churn", "seed": 1, "sources": sources.hashes}
    results.write_json(tmp_path / name / "run.json", run | {"outcome": ["ok", ""]})
    return Untimed(tmp_path / name, job, run, sources)


def test_a_run_that_cannot_be_measured_fails_alone(tmp_path, monkeypatch):
    runs = [untimed(tmp_path, name, "measure.rounds=2") for name in ("bump", "kr")]

    def measure(run, _place):
        if run.directory.name == "kr":
            raise CellError("timing failed: it hangs")
        return {"times": {WARM: 1.0}}

    monkeypatch.setattr(timing, "_measure", measure)
    monkeypatch.setattr(timing.machine, "warnings", list)
    monkeypatch.setattr(timing, "_write_suite", lambda run: None)
    timing.time_runs(runs, lambda *_: None)
    found = [results.read_run(run.directory) for run in runs]
    assert [run["status"] for run in found] == ["ok", "failed"]
    assert found[1]["reason"] == "timing failed: it hangs"


def test_a_duet_needs_pairs(tmp_path):
    runs = [untimed(tmp_path, name, "measure.duet=true") for name in ("bump", "kr", "buddy")]
    with pytest.raises(JobError, match="needs exactly two allocators on the same workloads"):
        measure_in_rounds(runs, 1, lambda *_: None)


def test_a_single_run_is_no_duet(bench):
    done = bench("allocator=bump", "measure.duet=true", *TINY, *SMALL)
    assert done.returncode == 1
    what = "measure.duet=true: compares two allocators: -m allocator=A,B"
    assert done.stderr.strip() == f"bench.py: {what}"


@pytest.mark.parametrize(
    ("faults", "warm"), [(0.0, True), (1e-5, True), (0.01, False)], ids=["none", "few", "many"]
)
def test_a_library_that_calls_the_kernel_in_every_replay_has_no_warm_time(
    tmp_path, monkeypatch, faults, warm
):
    run = untimed(tmp_path, "bump")
    suite = {"benchmarks": [{"runs": [{"values": [2e-8, 2.2e-8, 9e-8]}]}]}
    clean = {"times": {COLD: 50.0, END_TO_END: 60.0}, "gaps": {}}
    monkeypatch.setattr(timing, "_warm", lambda *_: (suite, {"faults": faults}))
    monkeypatch.setattr(timing, "_clean", lambda *_: clean)
    monkeypatch.setattr(timing, "_metrics", lambda _: {})
    monkeypatch.setattr(type(run.job), "library", property(lambda _: object()))
    found = timing._measure(run, timing._Place())
    assert found["times"].get(WARM) == (pytest.approx(22.0) if warm else None)
    assert (WARM in found["gaps"]) is not warm
    assert json.dumps(found)
