"""bench.py as a user starts it, and the run that it starts within the test's own process.

A child compiles all anew; what is compiled here for one allocator or kernel serves the next.  So a
test that is about what comes of a run takes ``observed``, one about bench.py itself ``bench``.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.run import observe, results
from benchmarks.run.compose import compose
from tests.conftest import ROOT

#: Small enough for a second, large enough for every branch of an allocator.
SMALL = ("workload.operations=20000", "workload.live=500")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python ARGUMENTS`` in an empty directory; standard output and error as text."""

    def run(*arguments: object, input: str = "", **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            input=input,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "132"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def bench(python: Callable) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``bench.py`` with counters only unless told otherwise."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        measure = () if any(a.startswith("measure=") for a in arguments) else ("measure=counters",)
        return python(ROOT / "bench.py", *arguments, *measure, **environment)

    return run


def composed(*overrides: str) -> dict:
    """The configuration that bench.py makes of these arguments."""
    return compose(overrides)


@pytest.fixture
def observed(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """The untimed run of bench.py with some arguments: its exit code and directory."""

    def run(*overrides: str) -> tuple[int, Path]:
        directory = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        directory.mkdir()
        (directory / "config.yaml").write_text(yaml.safe_dump(composed(*overrides)))
        results.write_json(directory / "run.json", {"status": results.RUNNING, "reason": ""})
        return observe.main(directory), directory

    return run


def result_directory(done: subprocess.CompletedProcess) -> Path:
    """The directory that the last line of the output names."""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("results: "), done.stdout + done.stderr
    return Path(last.removeprefix("results: "))
