"""``bench.py allocator=native/…`` writes the same files and figures as for simulated allocators."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyperf
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from allocators.base import library
from benchmarks.replay.metrics import BY_NAME, COLD, END_TO_END, OF_NATIVE_RUNS, WARM
from benchmarks.run.job import JobError, check_job
from tests.conftest import ROOT

SMALL = ("workload=churn", "workload.operations=20000", "workload.live=500")
TINY = ("measure.rounds=2", "measure.samples=1", "measure.warmups=1", "measure.min_events=1")


def python(folder, *arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "132"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Run a sweep over real and simulated allocators; return its directory and standard output."""
    from .conftest import library as needed

    needed("native/glibc")
    folder = tmp_path_factory.mktemp("real")
    allocators = "allocator=native/glibc,bump"
    done = python(folder, ROOT / "bench.py", "-m", allocators, *SMALL, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip().splitlines()[-1].removeprefix("results: ")), done.stdout


def test_a_run_leaves_the_same_files(sweep):
    directory, printed = sweep
    run = directory / "0-native-glibc-churn"
    names = {path.name for path in (directory / "1-bump-churn").iterdir()}
    assert {path.name for path in run.iterdir()} == names
    stored = json.loads((run / "run.json").read_text())
    assert (stored["label"], stored["status"]) == ("native/glibc", "ok")
    assert stored["library"]["file"] == "libc.so.6"
    assert stored["library"]["threads"] == "one"
    assert "/" not in json.dumps(stored["library"]["file"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {name for name in OF_NATIVE_RUNS if not BY_NAME[name].timed}
    warm, *clean = pyperf.BenchmarkSuite.load(str(run / "bench.json")).get_benchmarks()
    assert warm.get_metadata()["library"].startswith("libc.so.6, sha256 ")
    label = stored["workload_label"]
    assert [b.get_name() for b in clean] == [f"{label} (cold)", f"{label} (end to end)"]
    lines = [json.loads(line) for line in (run / "times.jsonl").read_text().splitlines()]
    assert [(line["round"], line["side"]) for line in lines].count((0, 1)) == 1  # the twin
    assert all(line["times"].keys() == {WARM, COLD, END_TO_END} for line in lines)
    assert len({line["times"][COLD] for line in lines}) == 4  # measured, not modelled
    line = next(line for line in printed.splitlines() if "native/glibc" in line)
    assert line.count("–") == 1  # steps


def test_figures_show_both(sweep, tmp_path):
    directory, _ = sweep
    figures = "--figures=time,faults"
    done = python(tmp_path, "-m", "analysis", directory, "-o", tmp_path / "figures", figures)
    assert done.returncode == 0, done.stderr
    for name, remark in (("time", "below 6 rounds"), ("faults", "–: unknown for a real")):
        drawn = re.findall("<!-- (.*?) -->", (tmp_path / "figures" / f"{name}.svg").read_text())
        assert remark in " ".join(drawn)
    table = (tmp_path / "figures" / "table.csv").read_text()
    assert "native/glibc" in table


def test_summary_of_one_run(tmp_path, glibc):
    done = python(tmp_path, ROOT / "bench.py", "allocator=native/glibc", *SMALL, "measure=counters")
    assert done.returncode == 0, done.stderr
    assert "peak_rss" in done.stdout
    assert "kernel_ns_per_op" not in done.stdout


@pytest.mark.parametrize("name", ["glibc", "jemalloc", "mimalloc", "tcmalloc", "lib"])
def test_each_yaml_lists_every_setting(name, monkeypatch, glibc):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [f"allocator=native/{name}"]))
    settings = config["allocator"]
    assert settings.pop("name") == f"native/{name}"
    assert settings.pop("check_every") == 0
    here = str(glibc.path)
    if name != "glibc":
        settings["path"] = here
    monkeypatch.setattr(library, "_try", lambda *_: None)
    found = library.find(f"native/{name}", settings)
    assert found.label == ("native/lib(libc.so.6)" if name == "lib" else f"native/{name}")
    assert set(settings) <= {"path", "threads", library._KNOWN[name].settings}


def test_settings_on_the_command_line(tmp_path, glibc):
    tunables = "allocator.tunables={glibc.malloc.tcache_count: 0}"
    arguments = ("allocator=native/glibc", tunables, "allocator.threads=two")
    done = python(tmp_path, ROOT / "bench.py", *arguments, *SMALL)
    assert done.returncode == 1
    assert "threads=two: choose one of auto, one, real" in done.stderr


def test_settings_of_a_simulated_kernel_are_refused(glibc):
    config = {
        "allocator": {"name": "native/glibc"},
        "workload": {"name": "churn"},
        "kernel": {"memory": 1 << 30, "cost": {}},
        "measure": {},
        "seed": 1,
    }
    with pytest.raises(JobError, match=r"kernel\.memory=1073741824: native/glibc runs on this"):
        check_job(config)
