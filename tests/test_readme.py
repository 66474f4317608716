"""The READMEs keep what they say: commands run, tables and lists of files are complete."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.replay.metrics import markdown
from benchmarks.replay.simulation import OBSERVED, Simulation
from kernel.config import KernelConfig
from kernel.cost import COSTS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
FOLDERS = ("kernel", "allocators", "benchmarks", "analysis", "tests")
#: Small enough for a test.
SMALL = "measure=counters workload.operations=30000"
#: Every command of README.md, and what makes it small.  The two that install are in .ci/run.
COMMANDS = {
    "python bench.py --help": "",
    "python bench.py -m experiment=comparison": f"{SMALL} allocator=buddy,bump seed=1",
    "python -m analysis results/THE_SWEEP -o figures": "--figures memory,faults",
    "python bench.py workload=trace workload.path=FILE": SMALL.split()[0],
    "python -m benchmarks.speed": "bump --events 60000 --rounds 1",
    "python -m benchmarks": "",
}


def prose(text: str) -> str:
    """What one reads aloud: no code, no tables, no comments."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", text, flags=re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def commands(text: str) -> list[str]:
    """The shell commands of a README, without their comments."""
    blocks = re.findall(r"(<!-- \w+ -->\n)?```sh\n(.*?)```", text, flags=re.S)
    lines = [line for marked, block in blocks if not marked for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130
    assert len(prose(README).split()) <= 5 * 150  # five minutes of reading aloud


def test_every_command_of_the_readme_is_run_here():
    assert commands(README) == list(COMMANDS)


def test_the_commands_of_the_readme(tmp_path):
    """One after the other, as they stand but for what makes them small."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    trace = ROOT / "benchmarks" / "trace" / "shipped" / "bash.parquet"
    for command, smaller in COMMANDS.items():
        sweep = next(tmp_path.glob("results/*-sweep-*"), Path("none")).name
        text = command.replace("THE_SWEEP", sweep).replace("FILE", str(trace))
        words = [sys.executable, *shlex.split(f"{text} {smaller}")[1:]]
        words = [str(ROOT / word) if word == "bench.py" else word for word in words]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "figures" / "memory.png").stat().st_size > 10_000


def test_the_python_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    scope: dict = {}
    exec(code, scope)
    run = scope["run"]
    assert run.metrics["peak_live"] == 3606373
    assert len(run.heap()) > 25_000


@pytest.mark.parametrize("column", range(4))
def test_the_comparison_says_what_is_measured(column):
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("|")]
    names = next(row for row in rows if row[0].strip() == "" and "`first_fit`" in row[1])
    said = {row[0].split("`")[1]: row[column + 1].strip() for row in rows if "_mean`" in row[0]}
    workload = workloads.load({"name": "larson", "seed": 1})
    plugin = registry.load(names[column + 1].strip().strip("`"))
    simulation = Simulation(plugin, workload, KernelConfig(), OBSERVED, guarded=True)
    simulation.replay()
    found = simulation.metrics(dict.fromkeys(COSTS, 0.0))
    assert said["fragmentation_mean"] == f"{found['fragmentation_mean']:.0f} %"
    assert float(said["steps_mean"]) == pytest.approx(found["steps_mean"], rel=0.03)
    assert f"{found['peak_live'] / 1e6:.1f} MB" in README


def test_the_table_of_metrics_is_the_declared_one():
    assert markdown() in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("group", ["allocator", "workload"])
def test_every_choice_is_named(group):
    text = README if group == "allocator" else (ROOT / "benchmarks" / "README.md").read_text()
    for path in (ROOT / "conf" / group).glob("*.yaml"):
        assert f"| `{path.stem}` |" in text
        assert f"`{path.stem}`" in README


@pytest.mark.parametrize("folder", ["kernel", "allocators", "benchmarks", "analysis"])
def test_a_folder_lists_its_files(folder):
    text = (ROOT / folder / "README.md").read_text()
    held = [p for p in (ROOT / folder).iterdir() if not p.name.startswith(("_", "."))]
    for path in held:
        if path.is_dir():
            assert f"`{path.name}/`" in text, path
        elif path.suffix == ".py":
            assert f"`{path.name}`" in text, path
    for name in re.findall(r"`(\w+\.py)`", text):
        known = name in ("mine.py", "bench.py", "fig_NAME.py")
        assert known or list((ROOT / folder).rglob(name)), name


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_commands_of_a_folder_exist(folder):
    text = (ROOT / folder / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for module in re.findall(
        r"python -m ((?:kernel|allocators|benchmarks|analysis|tests)[\w.]*)", text
    ):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for name in re.findall(r"experiment=(\w+)", text):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").is_file(), name


def test_the_debugging_session_quotes_current_messages():
    text = (ROOT / "allocators" / "README.md").read_text()
    source = "".join(p.read_text() for p in (ROOT / "benchmarks").rglob("*.py"))
    for words in (
        "the allocator's own check failed",
        "walk() does not list this live block as used",
    ):
        assert words in text
        assert words in source
