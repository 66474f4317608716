"""``benchmarks.twin.predict`` on small programs against the real glibc, without compilation."""

import json
import subprocess
import sys

import pytest

from allocators.base import registry
from analysis import fig_validate
from benchmarks import workloads
from benchmarks.events.events import THREAD_END
from benchmarks.twin.predict import programs, report, steps
from benchmarks.twin.predict.__main__ import main
from benchmarks.twin.predict.processor import geometry
from benchmarks.twin.predict.steps import KINDS, count_steps
from kernel.cost import COSTS
from tests.benchmarks.twin.verify.conftest import needs_glibc
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few short programs, quickly measured prices, and the path of a small malloc-lab trace."""
    few = {
        f"live {live}": {"name": "churn", "operations": 600, "live": live} for live in (5, 40, 150)
    }
    monkeypatch.setattr(programs, "PROGRAMS", few)
    monkeypatch.setattr(report, "ROUNDS", 1)
    monkeypatch.setattr(report, "PIECE", 64)
    lines = [f"a {i} {40 * (i % 9) + 8}" for i in range(90)]
    lines += [f"r {i} {9000 + i}" for i in range(0, 90, 7)] + [f"f {i}" for i in range(90)]
    path = tmp_path / "small.rep"
    path.write_text("\n".join(["0", "90", str(len(lines)), "1", *lines]) + "\n")
    return path


@needs_glibc
def test_memory_agrees_and_time_is_predicted(small, tmp_path, capsys):
    out = tmp_path / "deep" / "validation.json"
    assert main([str(small), "--repeats", "2", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "memory: 1 of 1 traces agree in every metric" in printed
    found = json.loads(out.read_text())
    (trace,) = found["traces"].values()
    assert trace["differing"] == []
    assert trace["memory"]["faults"]["real"] == trace["memory"]["faults"]["twin"] > 0
    assert len(trace["repetitions_ns"]) == 2
    assert sum(trace["predicted_by_kind_ns"].values()) == pytest.approx(trace["predicted_ns"])
    picture = tmp_path / "out.png"
    assert fig_validate.main([str(out), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_scipy_the_error_names_the_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.twin.predict.__main__.find_spec", lambda name: None)
    assert main(["-o", str(tmp_path / "validation.json")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install -e '.[predict]'" in said


def test_modules_that_measure_do_not_import_scipy():
    code = (
        "import sys, benchmarks.run.worker, benchmarks.run.observe, benchmarks.replay.simulation, "
        "benchmarks.real.timed, benchmarks.twin.predict.prices; "
        "sys.exit('scipy.optimize' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@needs_glibc
def test_a_wrong_twin_is_noticed(small, tmp_path, capsys, monkeypatch):
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda name: load(name, {"top_pad": 0}))
    out = tmp_path / "validation.json"
    assert main([str(small), "--repeats", "1", "-o", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "memory: 0 of 1 traces agree" in printed
    assert "small.rep: syscalls_brk: twin" in printed
    (trace,) = json.loads(out.read_text())["traces"].values()
    assert "syscalls_brk" in trace["differing"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["shipped:nothing"], "nothing"),
        (["missing.rep"], "missing.rep"),
        (["-o", "out.txt"], "out.txt: expected the name of a .json file"),
        (["-o", "/proc/out.json"], "/proc/out.json: No such file"),
        (["--repeats", "0"], "must be a whole number from 1"),
        (["--touch", "some"], "--touch"),
    ],
)
@needs_glibc
def test_mistakes_are_reported_on_one_line(arguments, complaint, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2
    assert complaint in said
    assert said.count("\n") == 1


def test_counted_steps_agree_with_the_metrics():
    workload = programs.load({"name": "churn", "operations": 500, "live": 40})
    found, work = count_steps(workload, 200, geometry())
    assert found.shape == (3, len(KINDS))
    count = dict(zip(KINDS, found.sum(axis=0).tolist(), strict=True))
    twin = steps.metrics_of_twin(workload)
    assert count["event"] == 500
    assert count["access"] == round((twin["loads_per_op"] + twin["stores_per_op"]) * 500)
    assert count["entry"] == twin["faults"] + twin["syscalls"]
    assert work.shape == (3, len(COSTS))
    assert work.sum() == twin["faults"] + twin["syscalls"] + twin["pages_returned"]
    assert 0 < count["mispredict"] < 500


def test_one_thread_drops_ends_of_threads():
    workload = workloads.load({"name": "larson", "operations": 4000, "blocks": 50, "lifetime": 100})
    assert (workload.events.op == THREAD_END).any()
    alone = programs.one_thread(workload).events
    assert len(alone.thread) == 0
    assert not (alone.op == THREAD_END).any()
    assert len(alone.op) == (workload.events.op != THREAD_END).sum()


def test_every_program_is_valid():
    for config in programs.PROGRAMS.values():
        workloads.validate(config)


def test_a_program_that_reacts_to_addresses_is_refused():
    with pytest.raises(workloads.WorkloadError, match="only stored events"):
        programs.load({"name": "robson"})
