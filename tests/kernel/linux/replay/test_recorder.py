"""Test the recorder: record small real programs and replay them."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kernel.linux.replay.__main__ import main
from kernel.linux.replay.log import Call, Clone, Exec, Exit, SetLimit
from kernel.linux.replay.recording import read_recording
from kernel.linux.replay.trial import Trial, TrialProgram
from tests.kernel.linux.replay.driver import ROOT, Replayed, needs_linux, run

pytestmark = needs_linux

PYTHON = [sys.executable, "-I", "-S", "-c"]

#: Program that makes the main memory calls, with successes and errors, in threads and a fork.
PROGRAM = """
import ctypes, mmap, os, resource, subprocess, threading
call = ctypes.CDLL(None).syscall
call.restype = ctypes.c_long
call.argtypes = [ctypes.c_long] * 7
def make(number, *args):
    return call(number, *args, *[0] * (6 - len(args)))
PAGE = 4096
def churn(n):
    for i in range(20):
        place = make(9, 0, (n + i) * PAGE, 3, 0x22, -1)
        ctypes.memset(place, 1, PAGE)
        make(10, place, PAGE, 1)
        make(28, place, PAGE, 4)
        place = make(25, place, (n + i) * PAGE, (n + 2 * i + 1) * PAGE, 1)
        make(11, place, (n + 2 * i + 1) * PAGE)
threads = [threading.Thread(target=churn, args=(n,)) for n in (1, 2, 3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
heap = make(12, 0)
make(12, heap + 10 * PAGE); make(12, heap + PAGE); make(12, 1)
for place, length, protection, flags in (
    (0, 0, 3, 0x22), (0, 1 << 47, 3, 0x4022), (1, PAGE, 3, 0x32), (0x70000000, PAGE, 3, 0x100022),
    (0x70000000, PAGE, 3, 0x100022), (0x70001000, PAGE, 3, 0x22), (0, 4 << 20, 3, 0x22),
):
    make(9, place, length, protection, flags, -1)
make(11, 0x70000001, PAGE)
make(149, 0x70000000, PAGE)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
make(9, 0, 2 << 30, 3, 0x4022, -1)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
with open(os.__file__, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
child = os.fork()
if child == 0:
    make(9, 0, PAGE, 3, 0x22, -1)
    os._exit(0)
os.waitpid(child, 0)
subprocess.run(["true"])
"""


@pytest.fixture(scope="module", params=["random", "fixed"])
def recording(request, tmp_path_factory):
    """Record PROGRAM, with and without address randomisation; return the path."""
    path = tmp_path_factory.mktemp("calls") / "calls.gz"
    options = ["--no-aslr"] if request.param == "fixed" else []
    done = run("record", *options, "-o", path, "--", *PYTHON, PROGRAM)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.endswith(f" calls in {path}\n")
    return path


def test_everything_agrees(capsys, recording):
    result = Replayed(capsys, recording)
    calls, compared, differ, left = result.counts
    assert (result.code, differ, left) == (0, 0, 0), result.out
    assert compared == calls > 300
    assert "2 programs started, 1 copied by fork" in result.out
    assert "maps at the end: 3 compared" in result.out
    assert "page tables: " in result.out


def test_nothing_is_missing(recording):
    log = read_recording(recording)
    names = {event.name for event in log.calls()}
    assert {"mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "mlock"} <= names
    errors = {event.result for event in log.calls() if -4096 < event.result < 0}
    assert {-12, -17, -22} <= errors
    kinds = [type(event) for event in log.events]
    assert [kinds.count(kind) for kind in (Exec, Clone, SetLimit)] == [2, 5, 2]
    exits = [event for event in log.events if isinstance(event, Exit)]
    # Each of the two programs and the copy has a snapshot at its last exit; an exiting thread whose
    # memory others still use has none.
    assert len(exits) == 6
    assert sum(event.snapshot is not None for event in exits) == 3
    assert log.complete


def test_a_planted_difference_is_found(capsys, recording, tmp_path):
    """Lower the last mmap result of the first process by a page."""
    log = read_recording(recording)
    events = [e for e in log.events if isinstance(e, Call) and e.tid == log.events[0].tid]
    line = [e for e in events if e.name == "mmap" and e.result > 0][-1].line
    lines = gzip.decompress(recording.read_bytes()).decode().splitlines()
    record = json.loads(lines[line - 1])
    record["ret"] -= 4096
    lines[line - 1] = json.dumps(record)
    path = tmp_path / "planted"
    path.write_text("\n".join(lines) + "\n")
    result = Replayed(capsys, path)
    assert result.code == 1
    assert result.counts[2] == 1
    assert f"line {line}, process {record['tid']}" in result.out


def test_the_exit_code_is_the_commands(tmp_path):
    path = tmp_path / "calls"
    assert run("record", "-o", path, "--", "sh", "-c", "exit 3").returncode == 3
    killed = run("record", "-o", path, "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == 128 + signal.SIGKILL
    assert main([str(path)]) == 0


def test_an_interrupt_ends_the_program_and_keeps_what_was_recorded(capsys, tmp_path):
    path = tmp_path / "calls"
    started = tmp_path / "started"
    program = f"import time; open({str(started)!r}, 'w').close(); time.sleep(60)"
    own = [
        sys.executable,
        "-m",
        "kernel.linux.replay",
        "record",
        "-o",
        str(path),
        "--",
        *PYTHON,
        program,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    recorder = subprocess.Popen(own, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    recorder.send_signal(signal.SIGTERM)
    _, said = recorder.communicate(timeout=30)
    assert recorder.returncode == 128 + signal.SIGTERM, said
    result = Replayed(capsys, path)
    assert result.code == 0
    assert result.counts[1] > 20


def test_the_program_inherits_standard_streams(tmp_path):
    done = run("record", "-o", tmp_path / "calls", "--", "cat", input="hello")
    assert done.stdout == "hello"


def test_a_trial(tmp_path):
    programs = [
        TrialProgram("shell", ["sh", "-c", "echo hello | cat"]),
        TrialProgram("absent", ["no-such-program"]),
        TrialProgram("unprepared", ["true"], setup=(["false"],)),
    ]
    lines = []
    assert Trial(tmp_path, lines.append).run(programs) == 0
    assert lines[0].split()[:4] == ["program", "addresses", "by", "calls"]
    assert [line.split()[:3] for line in lines[1:] if " record " in line] == [
        ["shell", "random", "record"],
        ["shell", "fixed", "record"],
    ]
    assert "absent: left out, no-such-program is not installed" in lines
    assert "unprepared: left out, its setup command false failed" in lines
    assert "of 1 program: " in lines[-1]
    assert lines[-1].endswith("maps compared, 0 differ")
