"""Every mistake is reported early, in one clear message, without side effects."""

import json
import time
from pathlib import Path

import pytest

from allocators.base import registry
from allocators.base.registry import PluginError
from benchmarks.run.job import JobError, check_job
from tests.benchmarks.run.conftest import ROOT, SMALL, composed, result_directory

BUMP = (ROOT / "allocators" / "bump.py").read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("allocator=budy", "buddy"),
        ("workload=chrun", "churn"),
        ("allocator.colour=1", "colour"),
        ("allocator.min_order=25", "min_order (25) is above max_order (20)"),
        ("workload.live=-1", "live=-1"),
    ],
)
def test_a_wrong_setting_is_reported_before_the_run(bench, tmp_path, argument, message):
    begin = time.monotonic()
    done = bench("allocator=buddy", argument)
    assert done.returncode == 1
    text = done.stderr + done.stdout
    assert all(word in text for word in message.split(", ")), text
    assert "Traceback" not in text
    assert not list(tmp_path.glob("results/*"))
    assert time.monotonic() - begin < 30  # nothing was compiled or replayed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("allocator.min_order=-5", "min_order=-5"),
        ("allocator.min_order=five", "min_order=five"),
        ("allocator.growth=swap", "brk, mmap"),
        ("+allocator.colour=1", "unknown setting 'colour'"),
        ("kernel.page_size=5000", "page_size must be 4096, 16384 or 65536"),
        ("kernel.memory=-1", "kernel.memory=-1"),
        ("kernel.overcommit=7", "overcommit must be 0, 1 or 2"),
        ("kernel.thp=sometimes", "thp must be never, madvise, always"),
        ("kernel.thp=1", "kernel.thp=1: expected a word"),
        ("kernel.frames=1", "kernel.frames=1: expected true or false"),
        ("kernel.frames=true", "kernel.frames needs memory"),
        ("kernel.check_frames=true", "nothing to check without kernel.frames"),
        ("kernel.tlb_l2_ways=true", "kernel.tlb_l2_ways=True: expected a whole number"),
        ("+kernel.layout_only=true", "unknown setting kernel.layout_only"),
        ("+kernel.colour=1", "unknown setting kernel.colour"),
        ("kernel.cost.brk=-1", "kernel.cost.brk=-1"),
        ("~kernel.cost.mlock", "kernel.cost.mlock is missing"),
        ("+kernel.cost.mlok=1", "kernel.cost.mlok: no such price"),
        ("workload.operations=many", "operations=many"),
        ("workload.touch=some", "all, read"),
        ("workload.sizes.kind=gauss", "lognormal"),
        ("workload.sizes.median=0", "median"),
        ("measure.rounds=0", "measure.rounds=0"),
        ("measure.timing=perhaps", "measure.timing"),
        ("seed=-1", "seed=-1"),
        ("seed=x", "seed=x"),
        ("allocator.name=nowhere.py", "nowhere.py"),
    ],
)
def test_every_wrong_setting_has_a_message(argument, message):
    with pytest.raises(JobError) as caught:
        check_job(composed("allocator=buddy", argument))
    text = str(caught.value)
    assert all(word in text for word in message.split(", ")), text
    assert "\n" not in text


@pytest.mark.hardening(10)
@pytest.mark.parametrize(
    ("setting", "required"),
    [
        ("fragmentation=50", "frames=true"),
        ("zone_boundary=0", "frames=true"),
        ("min_free=65536", "frames=true"),
        ("tlb_l1_entries=32", "tlb=true"),
        ("tlb_l2_ways=4", "tlb=true"),
        ("swap=65536", "memory"),
        ("overcommit=1", "memory"),
        ("overcommit_ratio=50", "memory"),
        ("memory=1000000 kernel.overcommit=0 kernel.overcommit_ratio=50", "overcommit=2"),
    ],
)
def test_a_setting_without_effect_is_refused(setting, required):
    words = f"kernel.{setting}".split()
    with pytest.raises(JobError) as caught:
        check_job(composed("allocator=bump", *words))
    message = f"{words[-1]}: has no effect without kernel.{required}; set that, or leave this out"
    assert str(caught.value) == message


def plugin(tmp_path: Path, old: str, new: str) -> Path:
    """Write a copy of bump with one piece of its source replaced."""
    assert BUMP.count(old) == 1
    path = tmp_path / "mine.py"
    path.write_text(BUMP.replace(old, new))
    return path


#: What replaces a piece of bump, and a part of the line that must be named with its message.
MISTAKES = {
    "a list": ("x = [1, size]", "x = [1, size]", "makes a list"),
    "an unknown name": ("need = nosuchname", "nosuchname", "nosuchname, which does not exist"),
    "a wrong call": ("load(p)", "load(p)", "missing a required argument: 'addr'"),
    "an unknown field": ("a.topp = 0", "a.topp", "it has start, top, end"),
    "no result": ("if size < 0:\n        return", "return\n", "returns nothing here"),
    "an f-string": ('print(f"{size}")', "print(f", "makes a string"),
    "a breakpoint": ("breakpoint()", "breakpoint()", "bench.py debug=true"),
    "itself": ("malloc(k, a, size)", "@jit\ndef malloc", "calls itself"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line_before_compiling(tmp_path, mistake):
    code, at, message = MISTAKES[mistake]
    path = plugin(tmp_path, CARVE, CARVE + f"    {code}\n")
    source = path.read_text()
    line = source[: source.index(at)].count("\n") + 1
    with pytest.raises(PluginError) as caught:
        registry.load(str(path)).inspect()
    text = str(caught.value)
    assert text.startswith(f"{path}:{line}: malloc() ")
    assert message in text


def test_a_function_that_the_loop_does_not_reach_is_inspected_too(tmp_path):
    path = plugin(tmp_path, "    return 0 if p == a.top else 2\n", "    p = a.top\n")
    path.write_text(
        path.read_text().replace(
            "        return 1\n    p = a.start", "        p = 1\n    p = a.start"
        )
    )
    with pytest.raises(PluginError, match=r"check\(\) returns nothing: it must return a number"):
        registry.load(str(path)).inspect()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(0)\n", ":2: SystemExit: 0"),
        ("def check_settings(s):\n    raise RuntimeError('why')\n", ":2: RuntimeError: why"),
    ],
)
def test_an_exception_of_a_module_is_located(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text + BUMP)
    with pytest.raises(PluginError, match=f"^allocator mine: {path}{message}$"):
        registry.load(str(path))


LATE = "    if a.top > a.start + 5000:\n"
CARVE = "    p = a.top + HEADER\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (CARVE, LATE + "        raise ValueError\n" + CARVE, "malloc(): ValueError"),
        (CARVE, CARVE + LATE + "        return a.start + 16\n", "overlaps the one at"),
        (CARVE, CARVE + LATE + "        p += p // (p - p)\n", "malloc(): ZeroDivisionError"),
        (CARVE, CARVE + LATE + "        a.tab[-size - 1] = 7\n", "malloc(): IndexError"),
        (CARVE, CARVE + LATE + "        p += 1 << 40\n", "outside its writable mappings"),
        (CARVE, CARVE + LATE + "        p += 8\n", "which is not aligned"),
        (CARVE, CARVE + LATE + "        return -12\n", "returned -12, which is neither"),
        (CARVE, CARVE + LATE + "        load(k, 64)\n", "SIGSEGV: read of 0x40"),
        (CARVE, "    p = float(size) | 1\n", "does not compile"),
        ('"""Forget the block."""', "store(k, p - 8, 1 << 40)", "own check failed"),
    ],
    ids=[
        *(
            "raises",
            "overlap",
            "division",
            "index",
            "outside",
            "misaligned",
            "negative",
            "wild load",
        ),
        *("type error", "corrupt heap"),
    ],
)
def test_the_failure_of_a_broken_plugin_is_recorded(observed, tmp_path, capsys, old, new, message):
    path = plugin(tmp_path, old, new)
    if "a.tab" in new:
        path.write_text(
            path.read_text().replace('("end", "i8")', '("end", "i8"), ("tab", "i8", 4)')
        )
    code, directory = observed("allocator=bump", f"allocator.name={path}", *SMALL)
    assert code == 1
    assert not capsys.readouterr().err
    run = json.loads((directory / "run.json").read_text())
    assert run["status"] == "failed"
    assert message in run["reason"]


def test_the_failure_of_a_broken_plugin_is_printed(bench, tmp_path):
    path = plugin(tmp_path, CARVE, CARVE + LATE + "        p += p // (p - p)\n")
    done = bench("allocator=bump", f"allocator.name={path}", *SMALL)
    assert done.returncode == 1
    run = json.loads((result_directory(done) / "run.json").read_text())
    assert run["status"] == "failed"
    line = path.read_text().splitlines().index("        p += p // (p - p)") + 1
    assert f"{path}:{line}: event " in run["reason"]
    assert run["reason"] in done.stderr
    assert "Traceback" not in done.stderr


def test_the_error_of_a_plugin_that_cannot_be_imported_names_the_line(bench, tmp_path):
    path = plugin(tmp_path, "def free(k, a, p):", "def free(k, a, p:")
    done = bench("allocator=bump", f"allocator.name={path}")
    assert done.returncode == 1
    assert f"{path}:{BUMP[: BUMP.index('def free')].count(chr(10)) + 1}" in done.stderr


def test_a_plugin_without_a_required_function_is_refused(bench, tmp_path):
    path = plugin(tmp_path, "def usable_size(", "def useful_size(")
    done = bench("allocator=bump", f"allocator.name={path}")
    assert done.returncode == 1
    assert "does not define usable_size" in done.stderr


def test_the_watchdog_ends_an_endless_loop_and_names_the_event(python, tmp_path):
    path = plugin(tmp_path, CARVE, LATE + "        while True:\n            a.end += 1\n" + CARVE)
    # The timeout of bench.py is longer than any correct event; here one second is enough.
    script = f"""
from kernel.engine import watchdog
from kernel.config import KernelConfig
from allocators.base import registry
from benchmarks import workloads
from benchmarks.replay.simulation import TIMED, Simulation
workload = workloads.load({{"name": "churn", "operations": 2000, "live": 100}})
simulation = Simulation(registry.load({str(path)!r}), workload, KernelConfig(), TIMED)
watchdog.PATIENCE = 1.0
simulation.replay()
"""
    done = python("-c", script)
    assert done.returncode == 1
    line = BUMP[: BUMP.index("@jit\ndef malloc")].count("\n") + 1
    assert f"SoftLockup: {path}:{line}: event " in done.stderr
    assert "malloc() has not ended after 1 s" in done.stderr


def test_a_choice_that_two_folders_define_is_refused(bench, tmp_path):
    home = tmp_path / "conf" / "allocator"
    home.mkdir(parents=True)
    (home / "bump.yaml").write_text("name: bump\n")
    done = bench("--config-dir", str(tmp_path / "conf"), "allocator=bump")
    assert done.returncode == 1
    assert "is defined twice" in done.stderr


@pytest.mark.parametrize("path", ["", "nowhere.txt"])
def test_a_missing_trace_is_reported(bench, tmp_path, path):
    done = bench("workload=trace", f"workload.path={path}")
    assert done.returncode == 1
    assert "path" in done.stderr or "nowhere.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("results/*/metrics.json"))
