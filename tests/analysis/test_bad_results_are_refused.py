"""A damaged, missing or mixed result is refused with one line that names it; nothing is written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from benchmarks.replay.metrics import WARM
from tests.analysis.conftest import measurement, write_times
from tests.conftest import ROOT

#: The first run of the sweep ``small``.
RUN = "0-0-1"


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command line, which must fail with one line, and returns it."""

    def run(*arguments: str | Path) -> str:
        out = tmp_path / "figures"
        out.mkdir()
        (out / "time.png").write_text("earlier")
        before = sorted(path for path in tmp_path.rglob("*"))
        code = main([*map(str, arguments), "-o", str(out)])
        captured = capsys.readouterr()
        assert code == 1, captured
        assert sorted(path for path in tmp_path.rglob("*")) == before
        assert (out / "time.png").read_text() == "earlier"
        assert "wrote" not in captured.out
        (line,) = captured.err.splitlines()
        return line

    return run


def change_run(directory: Path, **values: object) -> None:
    """Set keys of run.json; None removes a key."""
    path = directory / "run.json"
    run = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in run.items() if value is not None}))


@pytest.mark.parametrize("name", ["metrics.json", "timeline.parquet", "times.jsonl"])
def test_a_missing_file(small: Path, refuse: Callable[..., str], name: str) -> None:
    path = small / RUN / name
    path.unlink()
    assert f"{path}: missing" in refuse(small)


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "timeline.parquet", "times.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '"x"'])
def test_an_empty_or_damaged_file(
    small: Path, refuse: Callable[..., str], name: str, content: str
) -> None:
    path = small / RUN / name
    path.write_text(content)
    assert str(path) in refuse(small)


def test_a_truncated_file(small: Path, refuse: Callable[..., str]) -> None:
    path = small / RUN / "timeline.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refuse(small)


def test_a_timeline_damaged_inside(small: Path, refuse: Callable[..., str]) -> None:
    path = small / RUN / "timeline.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    assert str(path) in refuse(small)


def test_a_timeline_without_rows_or_columns(
    small: Path, refuse: Callable[..., str], tmp_path: Path
) -> None:
    path = small / RUN / "timeline.parquet"
    full = pd.read_parquet(path)
    full.iloc[:0].to_parquet(path)
    assert f"{path}: empty" in refuse(small)
    full.drop(columns="rss").to_parquet(path)
    (tmp_path / "figures" / "time.png").unlink()
    (tmp_path / "figures").rmdir()
    assert f"{path}: no column rss" in refuse(small)


def test_a_seed_that_is_not_drawn_is_checked_too(
    tmp_path: Path, make: Callable[..., Path], refuse: Callable[..., str]
) -> None:
    make(tmp_path / "r" / "a", seed=1)
    path = make(tmp_path / "r" / "b", seed=2) / "timeline.parquet"
    path.unlink()
    assert str(path) in refuse(tmp_path / "r")


@pytest.mark.parametrize("value", [None, "7", 0, -1.0, float("nan"), True])
def test_a_time_that_is_no_time(small: Path, refuse: Callable[..., str], value: object) -> None:
    path = small / RUN / "times.jsonl"
    lines = [measurement(n, 9.0, 0.0) | {"times": {WARM: value}} for n in range(2)]
    write_times(small / RUN, lines)
    assert f"{path}: round 0: {WARM} is {value!r}" in refuse(small)


def test_a_run_that_waits_to_be_timed_is_skipped(
    tmp_path: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "r" / "a")
    make(tmp_path / "r" / "b", "kr", status="running")
    change_run(tmp_path / "r" / "b", status="waiting", reason="not timed yet")
    assert main([str(tmp_path / "r"), "-o", str(tmp_path / "o"), "--gaps"]) == 0
    assert f"skipped {tmp_path / 'r' / 'b'} (waiting: not timed yet)" in capsys.readouterr().out


def test_times_without_a_measurement(small: Path, refuse: Callable[..., str]) -> None:
    write_times(small / RUN, [])
    assert f"{small / RUN / 'times.jsonl'}: no measurement" in refuse(small)


def test_runs_with_other_threads_share_no_cell(
    tmp_path: Path, make: Callable[..., Path], refuse: Callable[..., str]
) -> None:
    make(tmp_path / "r" / "a", seed=1, threads="real")
    make(tmp_path / "r" / "b", seed=2, threads="interleaved")
    assert "threads interleaved, but with real in another run" in refuse(tmp_path / "r")


def test_an_unknown_quantity(small: Path, refuse: Callable[..., str]) -> None:
    write_times(small / RUN, [measurement(0, 9.0, 0.0) | {"times": {"lukewarm": 9.0}}])
    assert "round 0: lukewarm is 9.0" in refuse(small)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "no faults_write"), ("7", "faults_write is '7'"), (float("nan"), "nan, not a finite")],
)
def test_a_metric_without_its_number(
    small: Path, refuse: Callable[..., str], value: object, message: str
) -> None:
    path = small / RUN / "metrics.json"
    metrics = json.loads(path.read_text()) | {"faults_write": value}
    path.write_text(json.dumps(metrics))
    line = refuse(small)
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 1}, "schema 1"),
        ({"label": None}, "label is None"),
        ({"seed": "1"}, "seed is '1'"),
        ({"status": "fine"}, "status 'fine'"),
    ],
)
def test_a_malformed_description_is_refused(
    small: Path, refuse: Callable[..., str], values: dict[str, object], message: str
) -> None:
    change_run(small / RUN, **values)
    line = refuse(small)
    assert str(small / RUN / "run.json") in line
    assert message in line


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("page_size", {"page_size": 16384}),
        ("touch", {"touch": "first"}),
        ("machine", {"machine": {"cpu": "another"}}),
        ("versions.model", {"versions": {"model": 2}}),
    ],
)
def test_runs_under_different_conditions_are_refused(
    small: Path, refuse: Callable[..., str], key: str, values: dict[str, object]
) -> None:
    change_run(small / "1-0-1", **values)
    line = refuse(small)
    assert str(small / "1-0-1" / "run.json") in line
    assert str(small / RUN / "run.json") in line
    assert f"{key} is " in line


def test_only_the_setting_that_differs_is_named(small: Path, refuse: Callable[..., str]) -> None:
    for run in small.glob("*/run.json"):
        brk = 2 if run.parent.name == "1-0-1" else 1
        change_run(run.parent, kernel={"frames": True, "cost": {"mmap": 5, "brk": brk}})
    line = refuse(small)
    assert "1-0-1/run.json: kernel.cost.brk is 2, but 1 in " in line
    assert "mmap" not in line


def test_a_run_given_twice(
    small: Path, refuse: Callable[..., str], make: Callable[..., Path], tmp_path: Path
) -> None:
    again = make(tmp_path / "again", "arena")
    line = refuse(small, again)
    assert str(again) in line
    assert str(small / RUN) in line


def test_the_same_directory_given_twice_counts_once(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    assert main([str(small), str(small / RUN), "-o", str(out), "--figures", "faults"]) == 0
    assert len(pd.read_csv(out / "table.csv")) == 2


def test_a_directory_without_runs(tmp_path: Path, refuse: Callable[..., str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no run.json" in refuse(empty)


def test_a_directory_that_does_not_exist(tmp_path: Path, refuse: Callable[..., str]) -> None:
    assert f"{tmp_path / 'none'}: no such directory" in refuse(tmp_path / "none")


def test_a_sweep_without_a_finished_run_is_refused(
    tmp_path: Path, make: Callable[..., Path], refuse: Callable[..., str]
) -> None:
    make(tmp_path / "r" / "a", status="failed")
    make(tmp_path / "r" / "b", "kr", status="running")
    assert f"{tmp_path / 'r'}: none of the 2 runs is finished" in refuse(tmp_path / "r")


def test_a_missing_series_unless_gaps_are_wanted(
    small: Path, make: Callable[..., Path], tmp_path: Path, refuse: Callable[..., str]
) -> None:
    make(small / "more", "arena", "larson")
    line = refuse(small)
    assert str(small) in line
    assert "no run of buddy on larson" in line
    assert main([str(small), "-o", str(tmp_path / "figures"), "--gaps"]) == 0


def test_unfinished_runs_are_skipped_and_listed(
    small: Path, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = make(small / "f", "kr", status="failed", reason="loops at event 7")
    make(small / "g", "buddy", seed=None, status="running", touch=None, page_size=None)
    make(small / "h", "buddy", seed=3, status="interrupted")
    out = tmp_path / "figures"
    assert main([str(small), "-o", str(out), "--figures", "time,faults"]) == 0
    said = capsys.readouterr().out
    assert f"skipped {failed} (failed: loops at event 7)" in said
    assert f"skipped {small / 'g'} (running)" in said
    table = pd.read_csv(out / "table.csv")
    assert list(table["status"]) == ["ok", "ok", "failed", "running", "interrupted"]
    assert table[WARM].notna().tolist() == [True, True, False, False, False]
    assert {file.name for file in out.iterdir()} == {
        "time.png",
        "time.svg",
        "faults.png",
        "faults.svg",
        "table.csv",
    }


def test_untimed_runs_still_have_the_other_figures(
    small: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    for path in small.rglob("times.jsonl"):
        path.unlink()
    assert "--figures" in refuse(small)
    out = tmp_path / "figures"
    assert main([str(small), "-o", str(out), "--figures", "memory,faults"]) == 0
    assert (out / "memory.svg").exists()


def test_an_unknown_figure(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(small), "-o", "x", "--figures", "time,pie"])
    assert error.value.code == 2
    assert "no figure 'pie'; choose from time, memory, pareto, faults" in capsys.readouterr().err


def test_an_output_that_is_a_file(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "file"
    out.write_text("mine")
    assert main([str(small), "-o", str(out)]) == 1
    assert capsys.readouterr().err == f"analysis: {out}: not a directory\n"
    assert out.read_text() == "mine"


@pytest.mark.hardening(5)
@pytest.mark.parametrize("name", ["memory.svg", "table.csv"])
@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_only_regular_files_are_replaced(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    out = tmp_path / "figures"
    out.mkdir()
    os.mkfifo(out / name) if kind == "pipe" else (out / name).mkdir()
    before = (out / name).lstat()
    assert main([str(small), "-o", str(out), "--figures", "memory"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"analysis: {out / name}: ")
    assert (out / name).lstat() == before
    assert list(out.iterdir()) == [out / name]


def test_a_figure_that_cannot_be_drawn_leaves_nothing(
    small: Path, refuse: Callable[..., str]
) -> None:
    path = small / RUN / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peak_live": 0}))
    assert str(small / RUN) in refuse(small)


@pytest.mark.hardening(17)
def test_interrupted_analysis_leaves_nothing(one_seed, tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.fig_time.draw", interrupt)
    with pytest.raises(KeyboardInterrupt):  # kernel.engine.command.run reports it
        main([str(one_seed), "-o", str(tmp_path / "figures")])
    assert not list(tmp_path.iterdir())


@pytest.mark.hardening(4)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_analysis_fails_if_its_output_cannot_be_written(one_seed, tmp_path):
    command = [sys.executable, "-m", "analysis", one_seed, "-o", tmp_path, "--figures", "time"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "analysis: standard output: No space left on device\n"


@pytest.mark.hardening(2)
def test_two_versions_of_an_allocator_share_no_figure(refuse, make, tmp_path):
    for seed, version in ((1, "old"), (2, "old"), (3, "new")):
        make(tmp_path / "sweep" / f"{seed}-mine", "mine", seed=seed, hashes={"plugin": version})
    line = refuse(tmp_path / "sweep")
    assert "mine was edited since" in line
    assert "3-mine" in line
