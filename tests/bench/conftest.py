"""bench.py as a user starts it: a child process in a directory of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Small enough for a second, large enough for every branch of an allocator.
SMALL = ("workload.operations=20000", "workload.live=500")


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``python ARGUMENTS`` in an empty directory; standard output and error as text."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
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


def result_directory(done: subprocess.CompletedProcess) -> Path:
    """The directory that the last line of the output names."""
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("results: "), done.stdout + done.stderr
    return Path(last.removeprefix("results: "))
