"""Fixtures that run bench.py in a child process, or its untimed run inside the test process.

A child process compiles everything again, while the test process reuses compiled code.  A test of
the result of a run therefore uses ``observed``; a test of bench.py itself uses ``bench``.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.run import observe, results
from benchmarks.run.compose import compose
from tests.conftest import ROOT

#: Small enough to run in a second, large enough to reach every branch of an allocator.
SMALL = ("workload.operations=20000", "workload.live=500")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Function that runs ``python ARGUMENTS`` in an empty directory and captures its output."""

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
    """Function that runs ``bench.py``, with measure=counters unless the arguments set measure."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        measure = () if any(a.startswith("measure=") for a in arguments) else ("measure=counters",)
        return python(ROOT / "bench.py", *arguments, *measure, **environment)

    return run


def start_bench(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start ``bench.py`` in ``folder``, for tests that send it signals."""
    return subprocess.Popen(
        [sys.executable, ROOT / "bench.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | None) -> None:
    """Wait until ``condition`` holds; ``process``, if any, must run on meanwhile."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def composed(*overrides: str) -> dict:
    """Compose the configuration that bench.py builds from these arguments."""
    return compose(overrides)


@pytest.fixture
def observed(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Function that does bench.py's untimed run and returns its exit code and directory."""

    def run(*overrides: str) -> tuple[int, Path]:
        directory = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        directory.mkdir()
        (directory / "config.yaml").write_text(yaml.safe_dump(composed(*overrides)))
        results.write_json(directory / "run.json", {"status": results.RUNNING, "reason": ""})
        code = observe.main(directory)
        results.finish(directory, *results.outcome(directory))
        return code, directory

    return run


def result_directory(done: subprocess.CompletedProcess) -> Path:
    """Return the directory named in the last line of the output."""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("results: "), done.stdout + done.stderr
    return Path(last.removeprefix("results: "))
