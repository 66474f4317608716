"""Tests that a directory has one owner at a time and that no result is overwritten."""

import os
import subprocess
import sys

import pytest
import yaml

from benchmarks.run import results
from benchmarks.run.directory import (
    OWNER,
    DirectoryError,
    check_kind,
    check_sweep,
    clear,
    finished_earlier,
    owned,
)
from tests.benchmarks.run.conftest import ROOT, SMALL

pytestmark = pytest.mark.hardening(3)
CONFIG = {"allocator": {"name": "bump", "growth": 4096}, "seed": 1}
SOURCES = {"kernel": "1234"}


@pytest.fixture
def finished(tmp_path):
    """The directory of a finished run of CONFIG."""
    directory = tmp_path / "0-bump-churn"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    for name in ("metrics.json", "timeline.parquet"):
        (directory / name).write_text(name)
    results.write_json(directory / "run.json", {"schema": results.SCHEMA, "sources": SOURCES})
    results.finish(directory, results.OK)
    return directory


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_second_process_is_refused_and_told_the_owner(tmp_path):
    script = (
        "import sys, pathlib; from benchmarks.run.directory import owned\n"
        f"with owned(pathlib.Path({str(tmp_path)!r})): print('mine', flush=True); input()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as owner:
        assert owner.stdout.readline() == "mine\n"
        message = f"process {owner.pid} is working in this directory"
        with pytest.raises(DirectoryError, match=message), owned(tmp_path):
            pass
        owner.kill()
    with owned(tmp_path):  # the lock of a killed process is void
        assert (tmp_path / OWNER).read_text() == f"{os.getpid()}\n"
    assert not (tmp_path / OWNER).exists()


def test_a_second_sweep_in_the_directory_is_refused(bench, tmp_path):
    with owned(tmp_path):
        done = bench("-m", "allocator=bump", "seed=1,2", f"hydra.sweep.dir={tmp_path}", *SMALL)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"process {os.getpid()} is working in this directory" in line
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_directory_is_refused(bench, tmp_path):
    with owned(tmp_path):
        done = bench("allocator=bump", f"hydra.run.dir={tmp_path}", *SMALL)
    assert done.returncode == 1
    assert f"process {os.getpid()} is working in this directory" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "mine: 1"), ("notes.txt", ""), ("run.json", "{}"), ("bench.json", "{}")],
)
def test_a_directory_that_holds_no_run_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / "other.txt").write_text("")
    before = content(tmp_path)
    with pytest.raises(DirectoryError, match="not the directory of a run"):
        check_kind(tmp_path)
    with pytest.raises(DirectoryError, match="not the directory of a sweep"):
        check_sweep(tmp_path, [], {})
    assert content(tmp_path) == before


def test_only_a_configuration_is_not_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(DirectoryError, match=r"it holds config\.yaml"):
        check_kind(tmp_path)


@pytest.mark.parametrize("names", [(), (OWNER,), (".run.0123456789ab.json", OWNER), ("run.json",)])
def test_what_a_killed_run_leaves_is_used_again(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    check_kind(tmp_path)
    assert not finished_earlier(tmp_path, CONFIG, SOURCES, timed=False)
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {OWNER, "run.json"}


def test_a_finished_run_is_not_repeated(finished):
    check_kind(finished)
    assert finished_earlier(finished, CONFIG, SOURCES, timed=False)
    assert not finished_earlier(finished, CONFIG, SOURCES, timed=True)
    (finished / "metrics.json").unlink()
    assert not finished_earlier(finished, CONFIG, SOURCES, timed=False)


@pytest.mark.parametrize(
    ("config", "sources", "message"),
    [
        (CONFIG | {"seed": 2}, SOURCES, r"other settings \(seed\): choose another directory"),
        (CONFIG | {"allocator": {"name": "kr"}}, SOURCES, r"\(allocator.growth, allocator.name\)"),
        (CONFIG, {"kernel": "5678"}, "kernel was edited since"),
        (CONFIG, SOURCES | {"mine.py": "1"}, r"mine\.py was edited since"),
    ],
)
def test_a_finished_run_is_not_overwritten(finished, config, sources, message):
    with pytest.raises(DirectoryError, match=message):
        finished_earlier(finished, config, sources, timed=False)


def test_a_failed_run_is_overwritten(finished):
    results.finish(finished, results.FAILED, "why")
    assert not finished_earlier(finished, CONFIG | {"seed": 2}, {}, timed=False)


@pytest.fixture
def sweep(finished, monkeypatch):
    """The directory of a sweep, stored as Hydra does; its sources are as they were."""
    monkeypatch.setattr("benchmarks.run.sources.digest", SOURCES.get)
    hydra = {"overrides": {"task": ["seed=1,2"]}, "sweeper": {"params": None}}
    (finished.parent / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    return finished.parent


def test_a_sweep_is_resumed_with_the_same_arguments_only(sweep):
    check_sweep(sweep, ["seed=1,2"], {})
    for other in (["seed=2,1"], {}), (["seed=1,2"], {"allocator": "bump,kr"}):
        with pytest.raises(DirectoryError, match=r"other arguments \(seed=1,2\)"):
            check_sweep(sweep, *other)
    (sweep / "multirun.yaml").write_text("hydra: {overr")  # cut off
    check_sweep(sweep, ["seed=2,1"], {})


def test_a_sweep_is_not_resumed_with_edited_sources(sweep, monkeypatch):
    monkeypatch.setattr("benchmarks.run.sources.digest", lambda name: "5678")
    with pytest.raises(DirectoryError, match="kernel was edited after 0-bump-churn was measured"):
        check_sweep(sweep, ["seed=1,2"], {})


def test_other_settings_do_not_destroy_a_run_or_a_sweep(bench, tmp_path):
    sweep = tmp_path / "sweep"
    start = ("-m", "allocator=bump", f"hydra.sweep.dir={sweep}", *SMALL)
    assert bench(*start, "seed=1").returncode == 0
    before = content(sweep)
    for arguments in (
        (*start, "seed=2"),
        (*start, "seed=1", "allocator.growth=65536"),
        ("allocator=kr", f"hydra.run.dir={sweep / '0-bump-churn'}", *SMALL),
        ("allocator=kr", f"hydra.run.dir={sweep}", *SMALL),
    ):
        done = bench(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert content(sweep) == before
