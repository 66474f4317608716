"""Test that an error in a file or command line is one line with its place, not a traceback."""

import os
import sys

import pytest

from kernel.linux.replay import ptrace, recorder
from kernel.linux.replay.__main__ import main
from tests.kernel.linux.replay.driver import AREAS, TOP, Recording, needs_linux, run

STRACE = "9 brk(NULL) = 0x1000\n"


def refusal(result):
    """Return the only line that a failed replay printed, on standard error."""
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("replay: ")
    return line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": the file is empty; expected a recording or an strace log"),
        ("hello\nworld\n", ": line 1: not an strace line: hello"),
        (STRACE + "9 munmap(0x1000, 4096)\n" + STRACE, ": line 2: munmap has no result"),
        (STRACE + "9 munmap(0x1000, (4096\n" + STRACE, ": line 2: the call is not complete"),
        (STRACE + "9 munmap(0x1000, 1) = -1 EODD (Odd)\n" + STRACE, ": line 2: unknown error EODD"),
        (STRACE + "9 mmap(NULL, 1, PROT_ODD, 2, 3, 4) = 0\n" + STRACE, "unknown constant PROT_ODD"),
        (STRACE + "9 <... munmap resumed>) = 0\n", ": line 2: munmap resumed, but its unfin"),
        (STRACE + "10 brk(NULL) = 0x1000\n", ": line 2: no clone in the log created process 10"),
        ("9 exit_group(0) = ?\n", ": no memory calls; run strace with"),
    ],
)
def test_logs_of_strace(replayed, text, expected):
    assert expected in refusal(replayed(text))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: lines.insert(2, "{"), ": line 3: not JSON"),
        (lambda lines: lines.insert(2, "[]"), ": line 3: "),
        (
            lambda lines: lines.insert(2, '{"t": "odd", "tid": 1, "in": 1, "out": 2}'),
            "kind of line",
        ),
        (lambda lines: lines.insert(2, '{"t": "call", "in": 1, "out": 2}'), "line 3: 'tid' is mis"),
        (lambda lines: lines.__setitem__(0, '{"format": "other"}'), ": line 1: not a recording"),
        (
            lambda lines: lines.__setitem__(0, lines[0].replace('"version": 1', '"version": 9')),
            ": line 1: the recording has version 9, this program reads version 1",
        ),
        (
            lambda lines: lines.__setitem__(1, lines[1].replace("r-xp", "rrrr")),
            ": line 2: not a li",
        ),
        (
            lambda lines: lines.__setitem__(1, lines[1].replace("555555558000-", "555555557000-")),
            ": line 2: not above the previous area: 555555557000-",
        ),
    ],
)
def test_recordings(replayed, tmp_path, change, expected):
    path = Recording().exec().mmap(1, ret=TOP - 4096).write(tmp_path / "whole")
    lines = path.read_text().splitlines()
    change(lines)
    assert expected in refusal(replayed("\n".join(lines) + "\n"))


_HEADER = '{"format": "memory-calls", "version": 1, "command": [], "machine": {}}\n'
_CALL = '{"t": "call", "tid": 1, "in": 1, "out": 2, "name": "brk", "args": [5], "ret": 0}\n'


@pytest.mark.hardening(16)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            STRACE + "9 \x1b[2J" + "x" * 5000 + "\n" + STRACE,
            r"line 2: not an strace line: \x1b[2Jx",
        ),
        (STRACE + "9 munmap(0x1, 1<<9999999999) = 0\n", "line 2: a number has more than 64 bits"),
        (STRACE + f"9 brk(0x1) = {1 << 70:#x}\n", "line 2: a number has more than 64 bits"),
        (_HEADER + _CALL.replace("[5]", f"[{1 << 70}]"), "line 2: args is (1180591620717"),
        (_HEADER + _CALL.replace("[5]", '["x"]'), "line 2: arguments of a call: ['x']"),
        (_HEADER + _CALL.replace('"tid": 1', '"tid": "x"'), "line 2: tid is 'x'"),
        (_HEADER + _CALL.replace('"ret": 0', '"ret": NaN'), "line 2: NaN is not a JSON number"),
        (_HEADER + "[" * 200_000 + "\n" + _CALL, "line 2: nested too deeply"),
        (_HEADER + '{"t": "\\u001b' + "y" * 999 + '", "tid": 1, "in": 1, "out": 2}\n', r"'\x1byy"),
        (_HEADER.replace("{}", '{"memory": "x"}'), "line 1: memory is 'x'"),
    ],
)
def test_wild_values(replayed, text, expected):
    line = refusal(replayed(text))
    assert expected in line
    assert line.isprintable()
    assert len(line) < 400


@pytest.mark.hardening(16)
def test_files_that_never_end(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (("pipe", "is a pipe"), ("loop", "symbolic links")):
        assert main([str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_a_recording_that_was_cut_short(replayed, tmp_path):
    path = Recording().exec().mmap(1, ret=TOP - 4096).write(tmp_path / "whole", end=False)
    result = replayed(path.read_text() + '{"t": "call", "ti')
    assert (result.code, result.counts) == (0, (1, 1, 0, 0))
    assert "note: the recording was cut short" in result.out


def test_files_of_maps(replayed, tmp_path):
    maps = tmp_path / "maps"
    assert "maps: No such file" in refusal(replayed(STRACE, "--maps", maps))
    maps.write_text("")
    assert "maps: no areas; expected a copy of /proc/PID/maps" in refusal(
        replayed(STRACE, "--maps", maps)
    )
    maps.write_text("\n".join([*AREAS[:2], "nonsense"]) + "\n")
    line = refusal(replayed(STRACE, "--maps", maps))
    assert "maps: line 3: expected 'start-end perms offset dev inode name': nonsense" in line
    maps.write_text("\n".join([AREAS[0], AREAS[0]]) + "\n")
    line = refusal(replayed(STRACE, "--maps", maps))
    assert "maps: line 2: not above the previous area: 5555" in line
    maps.write_text("\n".join(AREAS) + "\n")
    line = refusal(replayed(Recording().exec().mmap(1, ret=TOP - 4096), "--maps", maps))
    assert "a recording contains its maps; omit --maps" in line


def test_files_that_cannot_be_read(replayed, capsys, tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        assert main([str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"replay: {path}: ")
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(b"\x1f\x8bnonsense")
    assert main([str(damaged)]) == 2
    assert capsys.readouterr().err.startswith(f"replay: {damaged}: damaged: ")


def test_command_lines(capsys):
    for arguments in ([], ["record"], ["record", "--"], ["--odd"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("kernel.linux.replay")
    assert main(["trial", "unknown program"]) == 2
    message = "no program matches 'unknown program'; choose from python3"
    assert message in capsys.readouterr().err


@needs_linux
def test_commands_that_cannot_be_recorded(tmp_path):
    path = tmp_path / "calls"
    absent = run("record", "-o", path, "--", tmp_path / "absent")
    assert (absent.returncode, absent.stdout) == (127, "")
    assert absent.stderr == f"record: {tmp_path}/absent: No such file or directory\n"
    script = tmp_path / "script"
    script.write_text("")
    refused = run("record", "-o", path, "--", script)
    assert refused.returncode == 126
    assert refused.stderr.endswith("script: Permission denied\n")
    assert not path.exists()
    nowhere = run("record", "-o", tmp_path / "no" / "calls", "--", "true")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert nowhere.stderr.endswith(f"the directory {tmp_path / 'no'} does not exist\n")


@needs_linux
def test_refused_ptrace_is_reported(tmp_path):
    # A traced process cannot be traced by another.
    own = [
        sys.executable,
        "-m",
        "kernel.linux.replay",
        "record",
        "-o",
        tmp_path / "inner",
        "--",
        "true",
    ]
    outer = run("record", "-o", tmp_path / "outer", "--", *own)
    assert outer.returncode == 77
    assert outer.stderr.startswith("record: ptrace is not permitted here: Operation not permitted")
    assert not (tmp_path / "inner").exists()


def test_recording_on_another_system_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(recorder.sys, "platform", "darwin")
    assert main(["record", "-o", str(tmp_path / "calls"), "--", "true"]) == 77
    assert capsys.readouterr().err == "record: recording needs Linux on x86-64\n"
    assert not (tmp_path / "calls").exists()


@needs_linux
def test_refused_personality_is_reported(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(ptrace, "no_address_randomisation", lambda: False)
    assert main(["record", "--no-aslr", "-o", str(tmp_path / "calls"), "--", "true"]) == 77
    assert "personality(2) is refused" in capsys.readouterr().err
