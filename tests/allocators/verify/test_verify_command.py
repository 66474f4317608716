"""Output and exit codes of ``python -m allocators.verify``."""

import multiprocessing
import re
import signal
import subprocess
import sys
import threading

import pytest

from allocators.base.registry import load
from allocators.verify import OPERATIONS
from allocators.verify.__main__ import main
from allocators.verify.pool import Case, Verdict, opened, run_cases
from kernel.differential.pool import serve

QUICK = ("--operations", "60")
CASE = Case("bump", "bump", {}, 4096, False, 60, 1, only=("huge",))


@pytest.fixture(autouse=True)
def _plain(plain):
    """Run without the JIT; worker processes inherit it."""


def test_a_good_plugin_with_two_page_sizes(capsys):
    assert main(["buddy", *QUICK, "--settings", "growth=mmap", "keep=0", "--only", "life"]) == 0
    out = capsys.readouterr().out
    assert "buddy(growth=mmap, keep=0), 4 KiB pages: ok" in out
    assert "buddy(growth=mmap, keep=0), 64 KiB pages: ok" in out
    assert out.endswith("2 settings verified, no failures\n")


def test_a_bad_plugin_prints_one_line_per_failure(files, capsys):
    files.mutant("gap", "tiny", ("p = a.top + 16", "p = a.top + (16 if size < 400 else 24)"))
    path = str(files.folder / "gap.py")
    assert main([path, *QUICK, "--only", "life", "--jobs", "1"]) == 1
    out = capsys.readouterr().out.splitlines()
    label = load(path).label
    assert re.fullmatch("gap@[0-9a-f]{6}", label)
    assert out[0].startswith(f"{label}, 4 KiB pages: FAILED")
    assert out[1].startswith(f"  {label}, 4 KiB pages, life: alignment: operation ")
    assert re.search(r"\(aligned_alloc\) at 0x55|alloc, \S+gap\.py:\d+\) at 0x55", out[1])
    assert out[-1] == "2 settings verified, 2 failures"


#: Only the body of an intrinsic may call what cannot be compiled; without the JIT it runs.
DIE = "\n\n@jit(intrinsic=True)\ndef die():\n    kill(getpid(), 9)\n\n"


def test_a_plugin_that_kills_its_process_is_reported(files, capsys):
    files.mutant(
        "deadly",
        "tiny",
        ("STATE =", "kill, getpid = os.kill, os.getpid\n" + DIE + "\nSTATE ="),
        ("import numpy", "import os\n\nimport numpy"),
        ('    """Forget the block."""\n', "    die()\n"),
    )
    path = str(files.folder / "deadly.py")
    assert main([path, *QUICK, "--only", "life", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert out.count("reuse: crash: operation 0 (unknown): the process died (SIGKILL)") == 2


def test_a_loop_ends_only_its_own_process(files):
    loop = ('    """Forget the block."""\n', "    while True:\n        load(k, p - 8)\n")
    files.mutant("loop", "tiny", loop)
    path = str(files.folder / "loop.py")
    looping = Case(path, "loop", {}, 4096, False, 60, 1, only=("life",), patience=0.5)
    heard = []
    done = {case.label: outcome for case, outcome in run_cases([looping, CASE], 1, heard.append)}
    assert [failure.check for failure in done["loop"].failures] == ["lockup"]
    assert not done["bump"].failures
    assert ["loop, 4 KiB pages: reuse"] in heard
    assert ["bump, 4 KiB pages: huge"] in heard


def test_leaving_early_ends_the_processes():
    for _ in run_cases([CASE] * 3, 2, lambda running: None):
        break
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_serve_answers_until_the_connection_closes():
    before = signal.getsignal(signal.SIGINT)
    ours, theirs = multiprocessing.Pipe()
    messages = []

    def ask():
        ours.send(CASE)
        while not messages or isinstance(messages[-1], str):
            messages.append(ours.recv())
        ours.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        serve(opened, theirs)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert messages[0] == "preparing"
    outcome, last = messages[-1]
    assert isinstance(outcome, Verdict)
    assert outcome.operations > 0
    assert not last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["budy"], "no allocator 'budy'; choose one of"),
        (["nowhere/x.py"], "no allocator file nowhere/x.py"),
        (["buddy", "--settings", "keep=-1"], "keep=-1: must be"),
        (["buddy", "--settings", "keep"], "expected KEY=VALUE"),
        (["buddy", "--settings", "kep=1"], "unknown setting 'kep'"),
    ],
)
def test_unusable_plugins_and_settings_exit_with_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.hardening(4)
def test_a_plugin_that_exits_is_a_failure(tmp_path, capsys):
    plugin = tmp_path / "exits.py"
    plugin.write_text("import sys\n\nsys.exit(0)\n")
    assert main([str(plugin), *QUICK]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{plugin}:3: " in line


@pytest.mark.hardening(17)
@pytest.mark.parametrize("option", ["--operations", "--jobs", "--patience", "--seed"])
@pytest.mark.parametrize("value", ["nan", "inf", "9" * 30, "", "x"])
def test_every_number_has_a_range(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bump", f"{option}={value}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"allocators.verify: argument {option}: must be ")


@pytest.mark.parametrize("arguments", [["--operations", "0"], ["--jobs", "x"], ["--only", "lief"]])
def test_wrong_options_exit_with_code_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(["bump", *arguments])
    assert stop.value.code == 2


def test_config_dir_is_searched_for_configurations(files, capsys):
    folder = files.folder / "allocator"
    folder.mkdir()
    files.mutant("mine", "buddy")
    (folder / "mine.yaml").write_text("name: mine.py\nkeep: 3\n")
    (folder / "bare.yaml").write_text("keep: 3\n")
    arguments = ["--config-dir", str(files.folder), "--only", "huge", "--jobs", "2"]
    assert main(["mine", *arguments, *QUICK]) == 0
    out = capsys.readouterr().out
    out = re.sub("@[0-9a-f]{6}", "", out)
    assert "mine(keep=3), 4 KiB pages: ok" in out
    assert "mine(growth=mmap, keep=3), 4 KiB pages: ok" in out
    assert main(["bare", *arguments]) == 2
    assert "bare.yaml: not an allocator configuration" in capsys.readouterr().err


def test_help_prints_the_defaults():
    done = subprocess.run(
        [sys.executable, "-m", "allocators.verify", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--settings" in done.stdout
    assert OPERATIONS >= 100_000
