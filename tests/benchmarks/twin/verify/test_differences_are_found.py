"""Mutations of the twin are detected, and the reported programs are short and reproducible."""

import json
from pathlib import Path

import pytest

from benchmarks.twin.verify import directed, libc
from benchmarks.twin.verify.__main__ import main
from benchmarks.twin.verify.compare import HeapSetting
from benchmarks.twin.verify.mutations import MUTATIONS
from benchmarks.twin.verify.operation import FREE, MALLOC, Row, to_ops, to_rows
from benchmarks.twin.verify.subject import Glibc
from kernel.differential.pool import Mistake
from kernel.differential.program import dump, load
from kernel.linux import host
from tests.benchmarks.twin.verify.conftest import needs_glibc

#: The shortest program found for each mutation (benchmarks.twin.verify.mutations --store).
PROGRAMS = Path(__file__).with_name("programs")


def test_every_rule_has_a_program():
    assert len(MUTATIONS) == 55
    assert [m.rule for m in MUTATIONS if not m.path(PROGRAMS).exists()] == []


@needs_glibc
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.rule)
def test_a_broken_rule_is_noticed(mutation, plain):
    plainly = Glibc(count_branches=False)
    setting, ops = load(plainly, mutation.path(PROGRAMS))
    for subject in (plainly, plainly.mutated(mutation.bindings())):
        with subject.sides() as sides:
            outcome = sides.repeat(setting, ops)
        assert bool(outcome.what) == (subject is not plainly), outcome.what


@needs_glibc
def test_another_allocator_differs_at_once(plain, capsys, tmp_path):
    save = tmp_path / "program.json"
    arguments = ["bump", "--ops", "50", "--mode", "small", "--no-branches", "--save", str(save)]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" operations, 1 mismatches")
    assert any("libc  0x" in line for line in lines)
    assert any(line.startswith("! ") for line in lines)
    assert main(["bump", "--no-branches", "--replay", str(save)]) == 1
    assert main(["ptmalloc", "--no-branches", "--replay", str(save)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" operations, 0 mismatches")


@needs_glibc
def test_json_output(plain, capsys):
    assert main(["bump", "--ops", "50", "--mode", "big", "--no-branches", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "mismatch"
    assert printed["mismatches"] == len(printed["findings"]) == 1
    assert "phases 10 to 400 operations" in printed["ranges"]["big"]


@needs_glibc
def test_another_version_is_never_a_success(plain, capsys, monkeypatch):
    monkeypatch.setattr(libc, "VERSION", "2.99")
    monkeypatch.setattr(directed, "PROGRAMS", {})
    assert main(["ptmalloc", "--ops", "60", "--mode", "small", "--no-branches"]) == 77
    lines = capsys.readouterr().out.splitlines()
    assert "% of the operations are the same; the C library is glibc" in lines[-2]


def test_a_host_that_cannot_serve_is_never_a_success(monkeypatch, capsys):
    monkeypatch.setattr(host, "unavailable", lambda: "exec of a memfd is refused")
    assert main(["ptmalloc", "--ops", "10"]) == 77
    captured = capsys.readouterr()
    assert "exec of a memfd is refused" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ops", "0"], "must be a whole number from 1"),
        (["--against", "musl"], "musl"),
        (["--mode", "tiny"], "small, mixed, big, burst, threads"),
        (["--tunable", "top_pad"], "NAME=NUMBER"),
        (["--tunable", "nonsense=1"], "no such setting"),
        (["--tunable", "mxfast=161"], "0 to 160"),
        (["--trace", "shipped:jq", "--mode", "big"], "--mode"),
        (["--trace", "shipped:nonesuch"], "nonesuch"),
        (["--threads", "--mode", "big"], "--trace"),
        (["--replay", "no/such/file.json"], "no/such/file.json"),
    ],
)
def test_bad_arguments_are_reported_on_one_line(arguments, said, capsys, plain):
    try:
        code = main(["ptmalloc", *arguments])
    except SystemExit as end:
        code = end.code
    assert code in (2, 77)  # 77: without a reference, files are not read
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert code == 77 or said in errors[0]


def test_programs_are_stored_and_loaded_unchanged(tmp_path):
    ops = [Row(MALLOC, 3, -1), Row(MALLOC, 1, 24, use=1, length=9), Row(FREE, 3, thread=2)]
    path = tmp_path / "program.json"
    subject, setting = Glibc(count_branches=False), HeapSetting("x", "small", {"mxfast": 0})
    dump(subject, path, setting, ops)
    assert load(subject, path) == (setting, ops)
    assert to_ops(to_rows(ops)) == ops


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"setting": {}, "operations": [[1]]}',
        '{"setting": {}, "operations": []}',
        '{"setting": {}, "operations": [["grow", 0, 0, 0, 0, 0, 0]]}',
        '{"setting": {}, "operations": [["malloc", 0, 1e3, 0, 0, 0, 0]]}',
        '{"setting": {}, "operations": [["aligned_alloc", 0, 8, 99, 0, 0, 0]]}',
        '{"setting": {}, "operations": [["malloc", 0, 8, 0, 0, 0, 0, 64]]}',
    ],
)
def test_a_bad_program_is_refused(text, tmp_path):
    path = tmp_path / "program.json"
    path.write_text(text)
    with pytest.raises(Mistake, match=str(path)):
        load(Glibc(count_branches=False), path)
