"""A broken model is objected to, and the objection is short and can be repeated."""

import json
from pathlib import Path

import pytest

from kernel.linux.verify import operation
from kernel.linux.verify.__main__ import main
from kernel.linux.verify.compare import Setting, files
from kernel.linux.verify.modes import cannot_serve
from kernel.linux.verify.mutations import MUTATIONS
from kernel.linux.verify.run import Plan, Runner
from kernel.linux.verify.shrink import shrink
from tests.kernel.linux.verify.conftest import needs_host

pytestmark = pytest.mark.once

#: For each broken rule the shortest program that was found to show it
#: (kernel.linux.verify.mutations).
PROGRAMS = Path(__file__).with_name("programs")


def stored(rule):
    """The program stored for a rule, or None."""
    path = PROGRAMS / f"{rule.replace(' ', '_').replace(',', '')}.json"
    return operation.load(path) if path.exists() else None


def test_every_rule_has_a_program():
    assert len(MUTATIONS) >= 20
    assert [rule for rule in MUTATIONS if stored(rule) is None] == []


@needs_host
@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_is_noticed(rule, monkeypatch):
    # As plain Python: nothing is compiled for a rule.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    setting, ops = stored(rule)
    if setting["thp"] and (reason := cannot_serve("on")):
        pytest.skip(reason)
    with files() as opened:
        for bindings in ({}, MUTATIONS[rule]):
            runner = Runner(Plan(500, 1, count_branches=False, bindings=bindings), opened)
            if ops:
                differs = runner.run(Setting(**setting), ops)[1] != []
            else:
                differs = runner.by_hand(setting["seed"].removeprefix("directed/")).finding
            assert bool(differs) == bool(bindings)


@needs_host
def test_a_random_program_is_made_short(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    bindings = MUTATIONS["areas never merge with the one above"]
    plan = Plan(60, 1, "off", count_branches=False, shrink_seconds=5, bindings=bindings)
    with files() as opened:
        report = Runner(plan, opened).program(0)
    finding = report.finding
    assert "areas" in finding.what
    assert len(finding.ops) < 6
    assert any(line.startswith("    ! ") for line in finding.lines)


def test_shrinking_keeps_what_shows_the_difference():
    ops = [operation.syscall("munmap", 11, 4096 * n, 4096) for n in range(40)]

    def shows(candidate):
        wanted = [op for op in candidate if op.args[0] in (4096 * 7, 4096 * 30)]
        return candidate if len(wanted) == 2 else None

    found = shrink([*ops, ops[30]], shows, seconds=5)
    assert {op.args[0] for op in found} >= {4096 * 7, 4096 * 30}
    assert len(found) <= 3


@needs_host
@pytest.mark.usefixtures("plain")
def test_a_stored_program_is_run_again(tmp_path, capsys):
    path = tmp_path / "program.json"
    operation.dump(path, {"seed": "x"}, [operation.syscall("munmap", 11, 4096, 4096)])
    assert main(["--replay", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "munmap(0x1000, 4096) = 0",
        "1 operations, 0 mismatches",
    ]


@needs_host
@pytest.mark.parametrize("text", ["", "{}", '{"setting": {}, "operations": [[1]]}'])
def test_a_bad_program_is_refused(text, tmp_path, capsys):
    path = tmp_path / "program.json"
    path.write_text(text)
    assert main(["--replay", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_missing_program_is_refused(capsys):
    assert main(["--replay", "no/such/file.json"]) in (2, 77)
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--ops", "0"], ["--ops", "many"], ["--thp", "maybe"], ["--jobs", "-1"]]
)
def test_bad_arguments_are_one_line(arguments, capsys):
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
