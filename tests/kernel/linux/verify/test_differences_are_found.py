"""A mutated model is detected, with a short counterexample that can be replayed."""

import json
from pathlib import Path

import pytest

from kernel.differential.pool import Mistake
from kernel.differential.program import dump, load
from kernel.differential.run import Runner
from kernel.differential.shrink import shrink
from kernel.linux.scope import cannot_serve
from kernel.linux.verify import operation
from kernel.linux.verify.__main__ import main
from kernel.linux.verify.compare import ProcessSetting
from kernel.linux.verify.mutations import MUTATIONS
from kernel.linux.verify.subject import Linux
from tests.kernel.linux.verify.conftest import needs_host

pytestmark = pytest.mark.once

#: For each mutation the shortest program found that detects it (kernel.linux.verify.mutations).
PROGRAMS = Path(__file__).with_name("programs")


def stored(rule):
    """Return the setting and operations of the program stored for a rule."""
    return load(Linux(), rule.path(PROGRAMS))


def test_every_rule_has_a_program():
    assert len(MUTATIONS) >= 20
    assert [m.rule for m in MUTATIONS if not m.path(PROGRAMS).exists()] == []


@needs_host
@pytest.mark.parametrize("rule", MUTATIONS, ids=lambda m: m.rule)
def test_a_broken_rule_is_detected(rule, monkeypatch):
    # Run as plain Python, so that nothing is compiled for each rule.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    setting, ops = stored(rule)
    if setting.thp and (reason := cannot_serve("on")):
        pytest.skip(reason)
    for bindings in ({}, rule.bindings()):
        with Linux(count_branches=False, bindings=bindings).sides() as sides:
            assert bool(sides.repeat(setting, ops).what) == bool(bindings)


@needs_host
def test_a_random_program_is_shrunk(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    (rule,) = (m for m in MUTATIONS if m.rule == "areas never merge with the area above")
    bindings = rule.bindings()
    subject = Linux(60, 1, "off", count_branches=False, bindings=bindings)
    with subject.sides() as sides:
        finding = Runner(subject, sides, shrink_seconds=5).check(subject.program(0)).finding
    assert "areas" in finding.what
    assert len(finding.ops) < 6
    assert any(line.startswith("    ! ") for line in finding.lines)


def test_shrinking_keeps_the_difference():
    ops = [operation.syscall("munmap", 11, 4096 * n, 4096) for n in range(40)]

    def reproduce(candidate):
        wanted = [op for op in candidate if op.args[0] in (4096 * 7, 4096 * 30)]
        return candidate if len(wanted) == 2 else None

    found = shrink([*ops, ops[30]], reproduce, operation.variants, seconds=5)
    assert {op.args[0] for op in found} >= {4096 * 7, 4096 * 30}
    assert len(found) <= 3


@needs_host
@pytest.mark.usefixtures("plain")
def test_a_stored_program_is_replayed(tmp_path, capsys):
    path = tmp_path / "program.json"
    ops = [operation.syscall("munmap", 11, 4096, 4096)]
    dump(Linux(), path, ProcessSetting("x"), ops)
    assert load(Linux(), path) == (ProcessSetting("x"), ops)
    assert main(["--replay", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "munmap(0x1000, 4096) = 0",
        "1 operations, 0 mismatches",
    ]


@needs_host
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"setting": {}, "operations": [[1]]}',
        '{"setting": {"sed": "x"}, "operations": []}',
        '{"setting": {"seed": "x"}, "operations": [["x", 0, 9, ["0x10000000000000000"]]]}',
    ],
)
def test_a_bad_program_is_refused(text, tmp_path, capsys):
    path = tmp_path / "program.json"
    path.write_text(text)
    with pytest.raises(Mistake, match=str(path)):
        load(Linux(), path)
    assert main(["--replay", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_program_is_refused(capsys):
    assert main(["--replay", "no/such/file.json"]) in (2, 77)
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--ops", "0"], ["--ops", "many"], ["--thp", "maybe"], ["--jobs", "-1"]]
)
def test_bad_arguments_are_reported_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_host_that_cannot_serve_is_never_a_success(monkeypatch, capsys):
    monkeypatch.setattr("kernel.linux.host.unavailable", lambda: "exec of a memfd is refused")
    assert main(["--ops", "10"]) == 77
    captured = capsys.readouterr()
    assert "refused" in captured.err
    assert "0 mismatches" not in captured.out
    assert main(["--ops", "10", "--json"]) == 77
    assert json.loads(capsys.readouterr().out)["status"] == "skipped"
