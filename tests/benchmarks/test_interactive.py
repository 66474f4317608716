"""Tests of benchmarks.simulate: the numbers equal bench.py's and the process is left unchanged."""

import ast
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from textwrap import dedent

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.initialize import initialize_config_dir

from benchmarks import interactive, simulate
from benchmarks.interactive import Run
from benchmarks.replay.simulation import AllocatorFailure, Simulation
from benchmarks.run.job import JobError
from benchmarks.workloads import WorkloadError
from tests.conftest import ROOT

SMALL = ["workload.operations=20000", "workload.live=500"]
BUMP = (ROOT / "allocators" / "bump.py").read_text()
CARVE = "    p = a.top + HEADER\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory that is not the project's; Hydra must be as it was."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not GlobalHydra.instance().is_initialized()


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(allocator="buddy", workload="churn", seed=2, overrides=SMALL)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"allocator": "buddy", "workload": "churn", "overrides": SMALL}, "ok"),
        ({"allocator": "buddy", "overrides": [*SMALL, "kernel.tlb=true", "seed=3"]}, "ok"),
        ({"allocator": "bump", "overrides": [*SMALL, "kernel.rlimit_data=300000"]}, "oom"),
        ({"overrides": ["experiment=oom"]}, "oom"),
        ({"allocator": "bump", "workload": "checkerboard"}, "ok"),
        ({"allocator": "bump", "workload": "bash", "overrides": ["workload.stream=always"]}, "ok"),
    ],
    ids=["stored events", "TLB", "refused", "killed", "program", "stream"],
)
def test_every_number_equals_the_command_s(tmp_path, given, status):
    run = simulate(**given)
    words = [f"{name}={value}" for name, value in given.items() if name != "overrides"]
    command = [sys.executable, ROOT / "bench.py", *words, *given.get("overrides", [])]
    settings = ["measure=counters", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == {"ok": 0, "oom": 3}[status], done.stderr
    stored = json.loads((tmp_path / "run.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(run.metrics.items()) == list(metrics.items())
    pd.testing.assert_frame_equal(run.timeline, pd.read_parquet(tmp_path / "timeline.parquet"))
    assert run.status == stored["status"] == status
    assert run.reason == stored["reason"]
    assert (run.allocator, run.workload) == (stored["label"], stored["workload_label"])


def test_the_documented_example_runs(capsys):
    text = interactive.__doc__.partition("    from benchmarks")[2].partition("\n\nSettings")[0]
    example = dedent(f"    from benchmarks{text}").replace("seed=1", f"seed=2, overrides={SMALL}")
    *lines, last = ast.parse(example).body
    names = {}
    exec(compile(ast.Module(lines, []), "example", "exec"), names)
    figure = eval(compile(ast.Expression(last.value), "example", "eval"), names)
    assert figure._repr_png_().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert not said.out + said.err


def test_simulate_runs_from_standard_input(tmp_path):
    script = f"from benchmarks import simulate\nprint(simulate('bump', overrides={SMALL}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-"], input=script, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("<bump under churn(operations=20000, live=500), seed 1: ok, ")
    assert not done.stderr
    assert not list(tmp_path.iterdir())


def test_importing_benchmarks_does_not_import_pandas_or_hydra():
    script = """
import sys, benchmarks, benchmarks.run.job, benchmarks.workloads
print({"hydra", "pandas", "numba", "matplotlib"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
    with pytest.raises(ImportError, match="nothing"):
        exec("from benchmarks import nothing")


# --- The heap -------------------------------------------------------------------------------------


def test_the_heap_is_listed_piece_by_piece(run):
    heap = run.heap()
    assert heap.dtypes.astype(str).to_dict() == {
        "address": "int64",
        "bytes": "int64",
        "kind": "category",
    }
    assert list(heap.kind.cat.categories) == ["used", "free", "header"]
    assert (heap.address.to_numpy()[1:] >= (heap.address + heap.bytes).to_numpy()[:-1]).all()
    assert heap.bytes.sum() == run.metrics["end_heap"]
    used = heap[heap.kind == "used"]
    assert len(used) == 500
    assert used.bytes.sum() >= run.metrics["end_live"]


def test_the_heap_after_an_event_is_that_of_a_run_that_ended_there(tmp_path):
    lines = [f"1: malloc {0x1000 + 16 * i:#x} {8 + 24 * i}\n" for i in range(60)]
    lines += [f"1: free {0x1000 + 16 * i:#x}\n" for i in range(0, 60, 2)]
    paths = {}
    for events in (1, 75, 90):
        (tmp_path / f"{events}.txt").write_text("".join(lines[:events]))
        paths[events] = [f"workload.path={events}.txt"]
    run = simulate("buddy", "trace", overrides=paths[90])
    end = run.heap()
    for events in (1, 75, 90):
        ended = simulate("buddy", "trace", overrides=paths[events])
        pd.testing.assert_frame_equal(run.heap(events - 1), ended.heap())
        assert (run.heap(events - 1).kind == "used").sum() == {1: 1, 75: 45, 90: 30}[events]
    pd.testing.assert_frame_equal(run.heap(), end)


@pytest.mark.parametrize("event", [-1, 20000])
def test_an_event_out_of_range_is_refused(run, event):
    with pytest.raises(ValueError, match=f"^event={event}: expected 0 to 19999$"):
        run.heap(event)


def test_the_heap_of_a_killed_process_is_that_before_the_kill():
    run = simulate(overrides=["experiment=oom"])
    assert run.events < 40000
    assert f"killed at event {run.events}" in run.reason
    assert f"killed at event {run.events}" in repr(run)
    heap = run.heap()  # part of it is in the swap area, and no frame is left to bring it back
    assert (heap.kind == "used").sum() == run.events
    assert heap.bytes.sum() <= run.metrics["peak_heap"]


def test_an_allocator_that_cannot_list_its_heap(tmp_path):
    (tmp_path / "mute.py").write_text(BUMP.replace("def walk(", "def stroll("))
    run = simulate("mute.py", overrides=SMALL)
    with pytest.raises(AllocatorFailure, match="mute defines no walk"):
        run.heap()


def test_a_walk_outside_the_heap_is_reported(tmp_path):
    astray = BUMP.replace("def walk(k, a, rows):", "def walk(k, a, rows):\n    load(k, 64)")
    (tmp_path / "astray.py").write_text(astray)
    run = simulate("astray.py", overrides=SMALL)
    with pytest.raises(AllocatorFailure, match="walk: SIGSEGV: read of 0x40"):
        run.heap()


def test_heap_works_after_an_interrupted_call(run, monkeypatch):
    expected = run.heap(500)

    def interrupted(self, end):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "replay", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.heap(700)
    pd.testing.assert_frame_equal(run.heap(500), expected)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"allocator": "budy"}, "Could not find 'allocator/budy' Available options.* arena buddy"),
        ({"overrides": ["allocator.colour=1"]}, "Could not override 'allocator.colour'"),
        ({"overrides": ["+allocator.colour=1"]}, "unknown setting 'colour'"),
        ({"overrides": ["kernel.thp=sometimes"]}, "thp must be never, madvise, always"),
        ({"overrides": ["kernel.memory=${nothing}"]}, "Interpolation key 'nothing' not found"),
        ({"overrides": ["seed=1,2"]}, "Ambiguous value for argument 'seed=1,2'"),
        ({"overrides": ["seed"]}, "^seed: expected KEY=VALUE"),
        ({"overrides": ["~allocator"]}, "allocator.name is missing"),
        ({"overrides": ["debug=true"]}, "not available here; run python bench.py debug=true"),
        ({"overrides": "seed=1"}, "expected a list of strings, not one string"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"allocator": "nowhere.py"}, "no allocator file .*nowhere.py"),
        ({"allocator": "native/glibc"}, "cannot run in this process; run python bench"),
        ({"workload": "trace"}, "path=: expected the path of a file"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(given, message):
    with pytest.raises(JobError, match=message) as caught:
        simulate(**given)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_that_is_not_a_trace_is_refused(tmp_path):
    (tmp_path / "some.txt").write_text("1: malloc 0x10 8\nnonsense\n")
    with pytest.raises(WorkloadError, match=r"some\.txt"):
        simulate("bump", "trace", overrides=["workload.path=some.txt"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            CARVE,
            "    p = a.top + HEADER + 8\n",
            r"mine.py:\d+: event 0, malloc\(\): .*align",
        ),
        (CARVE, CARVE + "    return 1 // (size // (1 << 20))\n", r"mine.py:\d+: event 0, .*Zero"),
        (
            '"""Forget the block."""',
            "store(k, p - 8, 1 << 40)",
            "after the last event, .*own check",
        ),
        (
            "def check(k, a):",
            "def check(k, a):\n    load(k, 64)",
            r"check\(\): SIGSEGV: read of 0x40",
        ),
    ],
    ids=["misaligned", "raises", "corrupt heap", "check goes astray"],
)
def test_a_failure_names_the_event_and_the_reason(tmp_path, old, new, message):
    assert BUMP.count(old) == 1
    (tmp_path / "mine.py").write_text(BUMP.replace(old, new))
    with pytest.raises(AllocatorFailure, match=message):
        simulate("mine.py", overrides=SMALL)


def test_a_plugin_with_a_mistake_is_refused_before_compiling(tmp_path):
    (tmp_path / "mine.py").write_text(BUMP.replace(CARVE, "    p = a.topp + HEADER\n"))
    with pytest.raises(JobError, match=r"mine\.py:\d+: .*topp"):
        simulate("mine.py", overrides=SMALL)


# --- A guest in the process -----------------------------------------------------------------------


def test_a_file_is_an_allocator_with_settings_and_is_read_anew(tmp_path):
    folder = tmp_path / "it's mine"
    folder.mkdir()
    file = folder / "mine.py"
    file.write_text(BUMP)
    run = simulate(file, overrides=[*SMALL, "allocator.growth=65536"])
    assert re.fullmatch(r"mine@[0-9a-f]{6}\(growth=65536\)", run.allocator)
    assert run.config["allocator"] == {"check_every": 0, "name": str(file), "growth": 65536}
    file.write_text(BUMP.replace("HEADER = 16", "HEADER = 32"))
    again = simulate(file, overrides=[*SMALL, "allocator.growth=65536"])
    assert again.metrics["peak_heap"] > run.metrics["peak_heap"]


def test_a_folder_of_configurations_is_searched(tmp_path):
    home = tmp_path / "home" / "allocator"
    home.mkdir(parents=True)
    (home / "mine.py").write_text(BUMP)
    (home / "mine.yaml").write_text("name: mine.py\ngrowth: 65536\n")
    run = simulate("mine", overrides=[*SMALL, "hydra.searchpath=[home]"])
    assert re.fullmatch(r"mine@[0-9a-f]{6}\(growth=65536\)", run.allocator)


def test_a_hydra_application_in_the_process_is_not_disturbed(tmp_path):
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        simulate("bump", overrides=SMALL)
        with pytest.raises(JobError):
            simulate("budy")
        assert GlobalHydra.instance().hydra is theirs


def test_a_deleted_run_frees_its_memory():
    before = threading.active_count()
    run = simulate("bump", overrides=SMALL)
    run.heap(10)
    machine = weakref.ref(run._simulation.machine)
    assert threading.active_count() == before
    del run
    assert machine() is None


def test_progress_is_shown_on_request(capsys, monkeypatch):
    said = []
    monkeypatch.setattr(interactive, "shown_progress", lambda title: Shown(said))
    simulate("bump", overrides=SMALL, progress=True)
    assert [what for _, what in said][:2] == ["preparing the workload", "preparing bump"]
    assert all(0 <= fraction <= 1 for fraction, _ in said)


class Shown:
    def __init__(self, said):
        self.said = said

    def __enter__(self):
        return lambda fraction, what: self.said.append((fraction, what))

    def __exit__(self, *_):
        pass


def test_the_figure_shows_the_timeline_and_the_failure(run):
    (axes,) = run.plot().axes
    assert axes.get_title() == "buddy"
    live, heap, rss = (line.get_ydata() for line in axes.lines)
    top = run.metrics["peak_heap"] / heap.max()
    assert top in (1 << 10, 1 << 20)
    assert (heap * top == run.timeline.heap).all()
    assert (rss * top == run.timeline.rss).all()
    assert (live * top == run.timeline.live).all()
    oom = simulate("bump", overrides=[*SMALL, "kernel.rlimit_data=300000"]).plot().axes[0]
    assert [text.get_text() for text in oom.texts] == ["oom"]
