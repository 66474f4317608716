"""Tests that every process of a run reports the compiler, and that Ctrl-C ends compilation."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.benchmarks.run.conftest import ROOT, SMALL


@pytest.mark.hardening(6)
def test_a_first_run_says_that_it_compiles_and_a_second_does_not(bench, tmp_path):
    """The plugin prints, which once waited for ever unless its code came from the cache."""
    path = tmp_path / "chatty.py"
    bump = (ROOT / "allocators" / "bump.py").read_text()
    carve = "    p = a.top + HEADER\n"
    assert bump.count(carve) == 1
    printing = carve + '    if size > 1900:\n        print("size", size)\n'
    path.write_text(bump.replace(carve, printing))
    words = ("allocator=bump", f"allocator.name={path}", "measure=quick")
    words += ("measure.rounds=1", *SMALL)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first = bench(*words, **cache)
    assert first.returncode == 0, first.stderr
    assert re.search(r"chatty@\w{6} churn: compiling chatty@\w{6}\n", first.stderr)
    assert "churn: compiling the timed replay\n" in first.stderr
    assert re.search(r"^size \d{4,}$", first.stdout, re.MULTILINE)
    second = bench(*words, **cache)
    assert second.returncode == 0, second.stderr
    assert "compiling" not in second.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_it_while_it_compiles(tmp_path):
    run = tmp_path / "run"
    words = ("allocator=buddy", "measure=counters", f"hydra.run.dir={run}", *SMALL)
    process = subprocess.Popen(
        [sys.executable, ROOT / "bench.py", *words],
        cwd=tmp_path,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any("compiling buddy" in line for line in process.stderr)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.splitlines() == ["bench.py: interrupted; finished runs are complete"]
    assert time.monotonic() - begin < 5
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
