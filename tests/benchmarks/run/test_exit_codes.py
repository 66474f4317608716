"""Tests that exit codes tell the truth, and that an everyday mistake is one line on stderr."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bench as command
from benchmarks.run import observe, results
from benchmarks.run.compose import compose
from benchmarks.run.job import JobError, check_job
from tests.benchmarks.run.conftest import ROOT, SMALL

BUMP = (ROOT / "allocators" / "bump.py").read_text()
exit_codes = pytest.mark.hardening(4)
everyday = pytest.mark.hardening(17)


def refused(done: subprocess.CompletedProcess) -> str:
    """Return the only line on standard error of a command that failed."""
    assert done.returncode == 1, done.stdout
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("bench.py: ")
    return lines[0].removeprefix("bench.py: ")


@exit_codes
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiment=exhaustoin",), "Could not find 'experiment/exhaustoin'"),
        (("-m", "experiment=exhaustoin"), "did you mean exhaustion?"),
        (("-m", "seed=range(0)"), "the sweep has no run"),
        (("--config-dir", "nowhere"), "nowhere' not found"),
    ],
)
def test_a_command_that_runs_nothing_fails(bench, arguments, message):
    assert message in refused(bench(*arguments, *SMALL))


@exit_codes
@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(0)\n",
        "def check_settings(s):\n    raise SystemExit(0)\n",
    ],
)
def test_a_plugin_that_exits_is_an_error(bench, tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text + BUMP)
    line = refused(bench("allocator=bump", f"allocator.name={path}", *SMALL))
    assert "exit" in line.lower()


@exit_codes
def test_a_plugin_that_exits_in_the_child_is_an_error(observed, monkeypatch):
    def leave(*_arguments):
        raise SystemExit(0)

    monkeypatch.setattr(observe, "on_model", leave)
    code, directory = observed("allocator=bump", *SMALL)
    run = results.read_run(directory)
    assert (code, run["status"], run["reason"]) == (1, "failed", "a plugin calls sys.exit(0)")


@pytest.fixture
def shell(tmp_path):
    """Function that runs bench.py in a shell, with what is appended to its command line."""

    def run(rest, *arguments, **environment):
        words = [sys.executable, str(ROOT / "bench.py"), *arguments]
        return subprocess.run(
            ["bash", "-c", f'"$@" {rest}; exit ${{PIPESTATUS[0]}}', "bash", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            check=False,
        )

    return run


@exit_codes
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("rest", "code", "message"),
    [
        (">&-", 1, b"bench.py: standard output is closed: redirect it, for example to /dev/null\n"),
        ("> /dev/full", 1, b"bench.py: standard output: No space left on device\n"),
        ("| true", 141, b""),
    ],
)
def test_standard_output_that_cannot_be_written(shell, rest, code, message):
    done = shell(rest, "--help")
    assert (done.returncode, done.stderr) == (code, message)


@exit_codes
def test_the_table_of_a_sweep_that_cannot_be_printed_is_an_error(shell, tmp_path):
    words = ("-m", "seed=1", "allocator=bump", "allocator.growth=nonsense")
    done = shell("> /dev/full", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}", *SMALL)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == b"bench.py: standard output: No space left on device"


@everyday
def test_output_in_ascii(shell, tmp_path):
    run = tmp_path / "ö"
    words = ("allocator=bump", "measure=counters", f'hydra.run.dir="{run}"')
    done = shell("", *words, *SMALL, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"/\\xf6\n")


@everyday
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("allocator=1",), "by a name"),
        (("kernel=1.5",), "by a name"),
        (("allocator=",), "Could not find 'allocator/'"),
        (("~allocator",), "allocator.name is missing"),
        (("~kernel",), "kernel is missing"),
        (("seed=${nope}",), "Interpolation key 'nope' not found"),
        (("hydra.run.dir=${nope}",), "hydra.run.dir: Interpolation key 'nope' not found"),
        (("-m", "hydra.sweep.dir=${nope}"), "Interpolation key 'nope' not found"),
        (("hydra.run.dir=file",), "file: File exists"),
        (("hydra.run.dir=file/run",), "file/run: Not a directory"),
        (("-m", "hydra.sweep.dir=file"), "file: File exists"),
        (("hydra.job.chdir=perhaps",), "'perhaps' is not a valid bool"),
        (("nonsense",), "nonsense: expected KEY=VALUE"),
        (("workload=trace", "workload.path=a (b)"), "'workload.path=\"a (b)\"'"),
        (("--config-dir", "conf", "allocator=bad"), "bad.yaml:2: not valid YAML: "),
    ],
)
def test_an_everyday_mistake_is_one_line(bench, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "conf" / "allocator").mkdir(parents=True)
    (tmp_path / "conf" / "allocator" / "bad.yaml").write_text("name: [bump\n")
    assert message in refused(bench(*arguments, *SMALL))


@everyday
@pytest.mark.parametrize("price", [".inf", "-1", "1e308", ".nan"])
def test_a_price_that_is_no_time_is_refused(price):
    with pytest.raises(JobError, match=r"kernel.cost.brk=.*: expected nanoseconds"):
        check_job(compose([f"kernel.cost.brk={price}"]))


@everyday
def test_relative_paths_are_those_of_the_user_with_chdir(bench, tmp_path):
    (tmp_path / "t(1) =~ö.txt").write_text("1: malloc 0x10 8\n")
    (tmp_path / "mine.py").write_text(BUMP)
    path = 'workload.path="t(1) =~ö.txt"'
    words = ("hydra.job.chdir=true", "workload=trace", path, "allocator=bump")
    done = bench(*words, "allocator.name=mine.py", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr


@everyday
def test_a_file_that_cannot_be_written_is_named(tmp_path):
    def fail(_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: .*run\.json") as caught:
        results.replace_file(tmp_path / "run.json", fail)
    assert command._report(caught.value) == 1
    assert not list(tmp_path.iterdir())


@everyday
@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_a_file_that_grows_too_large_is_one_line(tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, str(ROOT / "bench.py"), "allocator=bump", f"hydra.run.dir={run}"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1; "$@"', "bash", *words, *SMALL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused(done) == f"{run / 'run.json'}: File too large"
    assert not list(run.iterdir())


@pytest.mark.hardening(17)
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_while_bench_py_is_imported_is_one_line(python, tmp_path):
    (tmp_path / "hydra.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = python(ROOT / "bench.py", "allocator=bump", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "bench.py: interrupted\n")
