"""The engine with a toy subject: a bug is found, shrunk, stored, replayed and reported."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from kernel.differential import mutations
from kernel.differential.command import add_arguments, verify
from kernel.differential.mutations import Mutation
from kernel.differential.pool import Lost, Mistake, TaskProgress, run_tasks
from kernel.differential.program import dump, load
from kernel.differential.reach import Coverage, Rule
from kernel.differential.run import Runner, WorkerError, run_programs
from kernel.differential.shrink import shrink
from kernel.differential.subject import Outcome, Program
from kernel.differential.tally import Tally, table
from kernel.engine.branches import Branch
from kernel.engine.command import OneLineParser
from tests.conftest import ROOT
from tests.kernel.differential import toy
from tests.kernel.differential.toy import Toy, ToySetting

pytestmark = pytest.mark.once


def options(*arguments):
    parser = OneLineParser(prog="python -m tests.toy")
    add_arguments(parser, 400, "in total", "counter")
    return parser.parse_args(arguments)


# --- one run --------------------------------------------------------------------------------------


def test_a_bug_is_found_shrunk_stored_and_replayed(tmp_path, capsys):
    path = tmp_path / "program.json"
    assert verify(Toy(toy.carry), options("--save", str(path))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a counter"
    assert re.fullmatch(
        r"MISMATCH: the total \(seed 1/0\); 2 operations of a program of \d+ operations", lines[1]
    )
    # The shortest program: 7 added to an odd total, with the smallest possible digits.
    assert lines[2:5] == ["add 1 = 1", "add 7 = -2", "! counter 8, model -2"]
    assert lines[5] == f"repeat with: python -m tests.toy counter --replay {path}"
    assert lines[-1].endswith(" operations, 1 mismatches")
    assert load(Toy(), path) == (ToySetting("1/0"), [1, 7])
    assert verify(Toy(toy.carry), options("--replay", str(path))) == 1
    assert capsys.readouterr().out.splitlines() == [*lines[2:5], "2 operations, 1 mismatches"]
    assert verify(Toy(), options("--replay", str(path))) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 operations, 0 mismatches"


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_run_without_a_bug(jobs, capsys):
    assert verify(Toy(), options("--jobs", jobs)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "operations by parity"
    assert sum(int(line.split()[1]) for line in lines[2:4]) == 400
    assert lines[-2].startswith("4 programs, ")
    assert lines[-1] == "400 operations, 0 mismatches"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_after_a_mismatch_no_program_starts_without_keep_going(jobs, tmp_path, capsys):
    save = ["--save", str(tmp_path / "x.json"), "--jobs", jobs, "--json"]
    assert verify(Toy(toy.carry), options(*save)) == 1
    some = json.loads(capsys.readouterr().out)
    assert verify(Toy(toy.carry), options(*save, "--keep-going")) == 1
    every = json.loads(capsys.readouterr().out)
    assert some["status"] == every["status"] == "mismatch"
    assert 1 <= some["programs"] <= int(jobs) < 4 == every["programs"]
    assert every["mismatches"] == len(every["findings"]) == 4
    assert {path.name for path in tmp_path.iterdir()} >= {"x.json", "x-2.json", "x-4.json"}
    assert {finding["seed"] for finding in every["findings"]} == {f"1/{n}" for n in range(4)}
    assert every["findings"][0]["program"][-1].startswith("! counter")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Create a folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.hardening(5)
def test_a_program_is_stored_in_a_new_temporary_file_by_default(temporary, capsys):
    victim = temporary.parent / "victim"
    (temporary / "verify-1-0.json").symlink_to(victim)  # the name that it once had
    paths = set()
    for _ in range(2):
        assert verify(Toy(toy.carry), options()) == 1
        paths |= set(re.findall(r"--replay (.*)", capsys.readouterr().out))
    assert len(paths) == 2
    for path in map(Path, paths):
        assert path.parent == temporary
        assert load(Toy(), path) == (ToySetting("1/0"), [1, 7])
    assert not victim.exists()


@pytest.mark.hardening(5)
@pytest.mark.parametrize("place", ["nowhere/x.json", ".", "/dev/full", "/dev/null"])
def test_save_is_refused_before_the_run_where_no_file_can_be_written(place, tmp_path, capsys):
    path = tmp_path / place
    subject = Toy(toy.carry)
    subject.prepare = None  # it would fail if the run began
    assert verify(subject, options("--save", str(path))) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"tests.toy: --save {path}: ")


@pytest.mark.hardening(5)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_program_is_kept_if_its_place_vanishes_during_the_run(
    as_json, tmp_path, temporary, capsys
):
    folder = tmp_path / "results"
    folder.mkdir()
    subject = Toy(toy.carry)
    subject.prepare = folder.rmdir
    json_option = ["--json"] if as_json else []
    assert verify(subject, options("--save", str(folder / "x.json"), *json_option)) == 1
    (path,) = temporary.iterdir()
    assert load(Toy(), path) == (ToySetting("1/0"), [1, 7])
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.endswith(f"the directory {folder} does not exist; the program is in {path}")
    if as_json:
        assert json.loads(printed.out)["findings"][0]["file"] == str(path)
    else:
        assert f"--replay {path}" in printed.out


@pytest.mark.hardening(5)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_program_that_no_file_can_hold_is_printed(as_json, tmp_path, temporary, capsys):
    temporary.rmdir()
    assert verify(Toy(toy.carry), options(*["--json"] * as_json)) == 1
    printed = capsys.readouterr()
    assert f"{temporary}: No such file or directory; the program is printed" in printed.err
    if as_json:
        text = json.loads(printed.out)["findings"][0]["stored"]
    else:
        text = '{"setting"' + printed.out.partition('{"setting"')[2].partition("]}\n")[0] + "]}\n"
    path = tmp_path / "x.json"
    path.write_text(text)
    assert load(Toy(), path) == (ToySetting("1/0"), [1, 7])


@pytest.mark.hardening(5)
@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_program_is_kept_if_shrinking_it_fails(how, tmp_path, capsys, monkeypatch):
    path = tmp_path / "x.json"

    def shrinking(self, setting, first):
        os.kill(os.getpid(), signal.SIGKILL) if how == "dies" else time.sleep(60)

    monkeypatch.setattr(Runner, "find", shrinking)
    assert verify(Toy(toy.carry), options("--save", str(path))) == 1
    ended = "the process died (SIGKILL)" if how == "dies" else "does not return"
    out = capsys.readouterr().out
    assert f"not shrunk: {ended} while the program was repeated" in out
    setting, ops = load(Toy(), path)
    assert (setting, ops[-1]) == (ToySetting("1/0"), 7)
    assert verify(Toy(toy.carry), options("--replay", str(path))) == 1


@pytest.mark.hardening(5)
def test_a_program_is_kept_if_the_run_ends_while_it_is_shrunk(tmp_path, capsys, monkeypatch):
    path = tmp_path / "x.json"
    parent = os.getpid()

    def shrinking(self, setting, first):
        time.sleep(0.2)
        os.kill(parent, signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(Runner, "find", shrinking)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert verify(Toy(toy.carry, operation_timeout=None), options("--save", str(path))) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "MISMATCH: the total" in capsys.readouterr().out
    assert load(Toy(), path)[1][-1] == 7


@pytest.mark.hardening(5)
def test_a_program_is_named_if_standard_output_is_full(tmp_path, capfd, monkeypatch):
    path = tmp_path / "x.json"
    subject = Toy(toy.carry)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        subject.prepare = lambda: monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space left"):
            verify(subject, options("--save", str(path)))
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert f"tests.toy: mismatch, stored in {path}" in capfd.readouterr().err


def test_a_difference_that_does_not_recur_is_reported():
    class Once(toy.ToySides):
        def run(self, program):
            return Outcome(Tally(), [1, 2], "the total", 1, 2, ["! seen once"])

    finding = (
        Runner(Toy(), Once(toy.no_fault, TaskProgress())).check(Program(ToySetting("x"), 2)).finding
    )
    assert finding.what == "a difference that did not recur when the program was repeated"
    assert finding.lines == ["add 1 = 1", "add 2 = 3", "! seen once"]


def test_a_program_is_rerun_if_the_host_may_have_interfered():
    class Disturbed(toy.ToySides):
        def __init__(self, places):
            super().__init__(toy.no_fault, TaskProgress())
            self.places = list(places)

        def run(self, program):
            at = self.places.pop(0)
            what = "the total" if at else ""
            return Outcome(Tally(), [1], what, at, at, suspect=True, final=True)

    def check(*places):
        return Runner(Toy(), Disturbed(places)).check(Program(ToySetting("x"), 1))

    assert check(3, 0).finding is None
    assert check(3, 0).tally.reruns == 1
    assert check(3, 4, 0).tally.reruns == 2
    assert check(3, 3).finding.length == 3  # it recurs at the same operation: no interference
    assert check(*range(1, 9)).finding.length == 6


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [toy.dies, toy.raises])
def test_a_failed_worker_is_reported_with_its_operation(fault, capsys):
    how = "the process died (SIGKILL)" if fault is toy.dies else "KeyError: 9"
    first = (
        toy.ToySides(fault, TaskProgress()).operations(Program(ToySetting("1/0"), 1), 100).index(9)
    )
    assert verify(Toy(fault), options()) == 1
    printed = capsys.readouterr()
    assert f"a worker failed: seed 1/0, operation {first}: {how}" in printed.err
    assert "mismatches" not in printed.out


def test_a_model_that_hangs_is_found(tmp_path, capsys):
    path = tmp_path / "x.json"
    begin = time.monotonic()
    assert verify(Toy(toy.hangs), options("--save", str(path))) == 1
    assert time.monotonic() - begin < 10
    out = capsys.readouterr().out
    assert "MISMATCH: the model does not return (seed 1/0)" in out
    assert "add 9 = ? (the model does not return)" in out
    assert load(Toy(), path)[1][-1] == 9


def test_nothing_is_verified_without_a_reference(capsys):
    assert verify(Toy(absent="no counter here"), options()) == 77
    printed = capsys.readouterr()
    assert printed.err == "tests.toy: nothing verified: no counter here\n"
    assert printed.out == ""
    assert verify(Toy(absent="no counter here"), options("--json")) == 77
    assert json.loads(capsys.readouterr().out) == {
        "status": "skipped",
        "reason": "no counter here",
    }


@pytest.mark.parametrize("fault", [toy.no_fault, toy.carry])
def test_with_the_wrong_reference_nothing_passes(fault, capsys):
    assert verify(Toy(fault, wrong_one="it counts downwards"), options()) == 77
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "wrong reference: it counts downwards"
    assert "% of the operations are the same; it counts downwards" in lines[-2]
    assert (lines[-1] == "400 operations, 0 mismatches") == (fault is toy.no_fault)
    assert not any("MISMATCH" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "not a stored program"),
        ("[]", "not a stored program"),
        ('{"setting": {"seed": "x"}, "operations": [[1], ["one"]]}', "operation 1 is not a number"),
        ('{"setting": {"sed": "x"}, "operations": [[1]]}', "not a stored program"),
    ],
)
def test_an_unreadable_program_is_reported_in_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "program.json"
    if text is not None:
        path.write_text(text)
    assert verify(Toy(), options("--replay", str(path))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize(
    "arguments", [["--ops", "0"], ["--jobs", "x"], ["--shrink", "soon"], ["x"]]
)
def test_bad_arguments_are_reported_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        options(*arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("tests.toy: ")


def test_ctrl_c_ends_the_run_and_reports_the_completed_part():
    script = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored SIGINT
from tests.kernel.differential.test_engine import options, toy, verify
sys.exit(verify(toy.Toy(toy.slow, total=100_000), options("--jobs", "2")))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "a counter\n"
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # like a terminal, which signals the workers too
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""
    assert "interrupted" in out
    assert out.splitlines()[-1].endswith(" operations, 0 mismatches")


# --- the parts ------------------------------------------------------------------------------------


def test_workers_take_tasks_when_they_are_free_and_closing_kills_them():
    asked = []

    def tasks():
        for n in range(100):
            asked.append(n)
            yield n

    found = run_tasks(opened_pid, tasks(), 2)
    pids = {next(found)[1] for _ in range(10)}
    assert 1 <= len(pids) <= 2
    assert len(asked) <= 13
    found.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_is_replaced_on_request():
    pids = [pid for _, pid in run_tasks(opened_once, range(3))]
    assert len(set(pids)) == 3


def test_a_worker_reports_its_part_and_operation():
    parts = []

    def on_progress(workers):
        parts.extend(worker.part for worker in workers)

    ((task, lost),) = run_tasks(opened_to_die, ["x"], on_progress=on_progress)
    assert task == "x"
    assert lost == Lost(5, "the middle", "the process died (exit code 3)")
    assert "the middle" in parts


def test_a_mistake_in_a_worker_is_raised_in_the_parent():
    with pytest.raises(Mistake, match="no x here"):
        list(run_tasks(opened_mistaken, ["x"]))
    with pytest.raises(WorkerError, match="seed 1/0"):
        list(run_programs(Toy(toy.dies)))


class Opened:
    """Set-up of a worker that does its tasks with ``work``."""

    def __init__(self, work):
        self.work = work

    def __call__(self, progress):
        self.progress = progress
        return self

    def __enter__(self):
        return lambda task: self.work(self.progress, task)

    def __exit__(self, *error):
        pass


def _pid_once(progress, task):
    progress.replace_worker = True
    return os.getpid()


def _die(progress, task):
    progress.start_part("the middle")
    time.sleep(0.1)
    progress.start_operation(5)
    os._exit(3)


def _mistake(progress, task):
    raise Mistake(f"no {task} here")


opened_pid = Opened(lambda progress, task: os.getpid())
opened_once, opened_to_die, opened_mistaken = Opened(_pid_once), Opened(_die), Opened(_mistake)


def test_shrinking_keeps_the_difference():
    def reproduce(candidate):
        return candidate if sum(candidate) > 20 and 9 in candidate else None

    found = shrink([*range(10)] * 3, reproduce, Toy().variants, seconds=5)
    assert sum(found) == 21
    assert 9 in found
    assert len(found) <= 4


def test_tallies_add_up():
    one, two = Tally(operations=3, asked=5, programs=1), Tally(operations=4, reruns=2)
    one.tables["kinds"]["a"] += 2
    two.tables["kinds"].update(a=1, b=1)
    two.numbers["refused"] += 0
    one.hits, two.hits = None, np.array([1, 0, 2])
    whole = Tally()
    for part in (one, two, two):
        whole.add(part)
    assert whole.as_dict() == {
        "operations": 11,
        "asked": 5,
        "programs": 1,
        "reruns": 4,
        "refused": 0,
        "kinds": {"a": 4, "b": 2},
    }
    assert whole.hits.tolist() == [2, 0, 4]
    assert two.hits.tolist() == [1, 0, 2]
    assert table("kinds", whole.tables["kinds"], share=True) == [
        "kinds",
        f"  a {4:>12}  66.67 %",
        f"  b {2:>12}  33.33 %",
    ]


def test_branches_are_reached_missed_or_unreachable():
    def branch(n, text, under=""):
        return Branch(n, "kernel.x", "f", "x.py", n, text, under)

    branches = [branch(0, "if a:"), branch(1, "if b:"), branch(2, "if c:"), branch(3, "d", "TLB")]
    rules = [Rule("c is never", "if c:"), Rule("neither", function="g"), Rule("off", under=".+")]
    found = Coverage.of(np.array([7, 0, 0, 0]), branches, rules)
    assert found.as_dict() == {
        "reached": 1,
        "total": 2,
        "counts": {"kernel/x.py:0: f: if a:": 7},
        "never_reached": ["kernel/x.py:1: f: if b:"],
        "out_of_reach": ["kernel/x.py:2: f: if c:  (c is never)", "kernel/x.py:3: f: d  (off)"],
    }
    assert found.lines("it", 90)[0] == (
        "branches of it: 1 of 2 reached, 50.0 % (target of a complete run: 90 %)"
    )
    # A branch that was executed counts as reached in spite of the rule.
    assert Coverage.of(np.array([7, 0, 1, 0]), branches, rules).total == 3


# --- mutations ------------------------------------------------------------------------------------


def hunt(rules, *arguments):
    return mutations.main("tests.toy", Toy, rules, arguments, programs=3)


def test_broken_rules_are_detected_and_their_programs_stored(tmp_path, capsys):
    assert hunt(toy.MUTATIONS, "--store", str(tmp_path), "--jobs", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 of 2 broken rules detected"
    assert any(line.endswith("a digit is carried (the total; seed 1/0)") for line in lines)
    assert any("the model returns (the model does not return)" in line for line in lines)
    (path,) = tmp_path.iterdir()
    assert path.name == "a_digit_is_carried.json"
    assert load(Toy(), path)[1] == [1, 7]


def test_an_undetected_rule_exits_with_code_1(capsys):
    harmless = Mutation("nothing, it's whole", "fault", toy.no_fault)
    assert hunt([*toy.MUTATIONS, harmless], "--only", "nothing") == 1
    assert capsys.readouterr().out.splitlines() == [
        "NOT DETECTED in 300 operations: nothing, it's whole",
        "0 of 1 broken rules detected",
    ]
    assert harmless.path(ROOT).name == "nothing_its_whole.json"


def test_mutation_testing_needs_a_subject_without_bugs(capsys, monkeypatch):
    monkeypatch.setattr(Toy, "fault", toy.carry)
    assert mutations.main("tests.toy", lambda: Toy(toy.carry), toy.MUTATIONS, [], programs=3) == 1
    assert "without any broken rule both sides differ: the total" in capsys.readouterr().err
    assert mutations.main("tests.toy", lambda: Toy(absent="gone"), toy.MUTATIONS, [], 3) == 77
    assert hunt(toy.MUTATIONS, "--only", "nonesuch") == 2
    mistaken = [Mutation("x", "fault", toy.dies)]
    assert hunt(mistaken) == 1
    assert "x: the process died (SIGKILL)" in capsys.readouterr().err


def mutation(text):
    """Return the bindings of a table's only mutation, which is of the toy module."""
    (found,) = mutations.read(text, "tests.kernel.differential.toy")
    return found.bindings()


def test_a_table_of_mutations_is_parsed():
    one, two = mutations.read("""
carry: the model carries after 7
- op == 7 and
+ op == 8 and
- else
-  total
+ else total
kernel.merge.can_merge_after: areas merge
= False
""")
    assert (one.name, one.module, one.rule) == ("carry", "", "the model carries after 7")
    assert one.edits == (("op == 7 and", "op == 8 and"), ("else\n total", "else total"))
    assert (two.name, two.module, two.answer) == ("can_merge_after", "kernel.merge", "False")


def test_functions_and_constants_are_replaced():
    changed = mutation("carry: x\n- op == 7\n+ op == 8\n")["carry"]
    assert [changed(10, op) for op in (7, 8)] == [10, 0]
    assert toy.carry(10, 7) == 0
    assert mutation("carry: x\n= DIGITS * op + total\n")["carry"](4, 3) == 34
    assert mutation("DIGITS: x\n= 8\n") == {"DIGITS": 8}


def test_a_mutation_that_changes_nothing_is_refused():
    with pytest.raises(Mistake, match="'nowhere' 0 times"):
        mutation("carry: x\n- nowhere\n+ somewhere\n")
    with pytest.raises(Mistake, match="DIGITS is 10 already"):
        mutation("DIGITS: x\n= 5 + 5\n")


def test_programs_are_stored_one_operation_per_line(tmp_path):
    path = tmp_path / "x.json"
    dump(Toy(), path, ToySetting("a/1", 4), [3, 4])
    assert path.read_text() == (
        '{"setting": {"seed": "a/1", "start": 4},\n"operations": [\n  [3],\n  [4]\n]}\n'
    )
    assert load(Toy(), path) == (ToySetting("a/1", 4), [3, 4])


def test_positive_numbers_are_parsed():
    assert options("--ops", "1_000").ops == options("--ops", "1,000").ops == 1000
    assert isinstance(options(), argparse.Namespace)
