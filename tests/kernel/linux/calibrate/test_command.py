"""``python -m kernel.linux.calibrate`` from the arguments to the file."""

import json
import os
import signal
import stat

import pytest

from kernel.cost import COSTS
from kernel.linux.calibrate import __main__ as command
from kernel.linux.calibrate import measures
from kernel.linux.calibrate.prices import BESIDE, read_table
from kernel.linux.host import unavailable
from kernel.linux.host.process import HostError
from tests.conftest import ROOT


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder of cost tables with a reference."""
    folder = tmp_path / "tables"
    folder.mkdir()
    text = "".join(f"{name}: {i}\n" for i, name in enumerate(COSTS, 1000))
    (folder / "reference.yaml").write_text(text)
    monkeypatch.setattr(command, "TABLES", folder)
    return folder


@pytest.fixture
def served(monkeypatch):
    """A host that can serve, whose processes do nothing: every price is 5 ns."""
    monkeypatch.setattr("kernel.linux.host.unavailable", lambda: "")

    def measure_process(rounds, *, swap):
        for measure in measures.measures(0, swap=swap):
            yield measure.name, 5.0

    monkeypatch.setattr(measures, "measure_process", measure_process)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_default_file_is_the_project_s(tables, served, capsys):
    assert command.main(["--quick"]) == 0
    assert names(tables) == ["host.yaml", "reference.yaml"]
    assert read_table(tables / "host.yaml")["brk"] == 5
    assert "written: " in capsys.readouterr().out


def test_the_project_ignores_it():
    assert (ROOT / "conf/kernel/cost/reference.yaml").is_file()
    assert command.TABLES == ROOT / "conf/kernel/cost"
    assert "conf/kernel/cost/host.yaml" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unrecognized arguments: --fast"),
        (["-o"], "expected one argument"),
        (["-o", "."], "is a folder"),
        (["-o", "nowhere/host.yaml"], "there is no folder"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_bad_arguments(tables, served, monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("kernel.linux.calibrate: ")
    assert message in lines[0]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_host_that_cannot_serve(tables, monkeypatch, capsys, as_json):
    monkeypatch.setattr("kernel.linux.host.unavailable", lambda: "the host is Plan 9, not Linux")
    assert command.main(["--json"] if as_json else []) == 77
    captured = capsys.readouterr()
    if as_json:
        assert json.loads(captured.out) == {
            "status": "skipped",
            "reason": "the host is Plan 9, not Linux",
        }
    else:
        assert "nothing measured: the host is Plan 9, not Linux" in captured.err
    assert names(tables) == ["reference.yaml"]


@pytest.mark.parametrize("error", [HostError("it died"), OSError(11, "try again")])
def test_a_process_that_fails(tables, served, monkeypatch, capsys, error):
    def measure_process(rounds, *, swap):
        yield "brk", 5.0
        raise error

    monkeypatch.setattr(measures, "measure_process", measure_process)
    assert command.main([]) == 77
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert names(tables) == ["reference.yaml"]


def test_ctrl_c_writes_nothing(tables, served, monkeypatch, capsys):
    def measure_process(rounds, *, swap):
        yield "brk", 5.0
        os.kill(os.getpid(), signal.SIGINT)
        yield "mmap", 5.0

    monkeypatch.setattr(measures, "measure_process", measure_process)
    assert command.main([]) == 130
    assert capsys.readouterr().err == "kernel.linux.calibrate: interrupted: nothing written\n"
    assert command.main(["--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"status": "interrupted"}
    assert names(tables) == ["reference.yaml"]


def test_a_bad_reference_ends_it_before_measuring(tables, served, monkeypatch, capsys):
    (tables / "reference.yaml").write_text("brk: much\n")
    monkeypatch.setattr(measures, "measure_process", None)
    assert command.main([]) == 1
    assert "brk=much: expected nanoseconds" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tables, served, monkeypatch, capsys):
    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kernel.linux.calibrate.prices.write_table", fail)
    assert command.main([]) == 1
    assert "host.yaml: No space left on device" in capsys.readouterr().err


# --- the real kernel ------------------------------------------------------------------------------


def _really():
    if reason := unavailable():
        pytest.skip(f"no host to measure: {reason}")


def test_quick_run(tables, tmp_path, capsys):
    _really()
    path = tmp_path / "mine.yaml"
    assert command.main(["--quick", "--json", "-o", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "ok"
    assert set(told["prices"]) <= set(COSTS) | set(BESIDE)
    table = read_table(path)
    assert list(table) == list(COSTS)
    assert all(value > 0 for value in table.values())
    for name, price in told["prices"].items():
        assert price["processes"] in (1, 2, 3) or price["reason"], name
        assert price["q1"] <= price["ns"] <= price["q3"]
    # What no limit and no setting can take away.
    for name in ("syscall_floor", "brk", "mmap", "munmap", "madvise", "mremap", "mprotect"):
        assert told["prices"][name]["processes"] == 3
    assert stat.S_ISREG(path.stat().st_mode)


def test_work_that_is_not_what_was_meant_has_no_price():
    """A mapping that is written through is not one that is first read."""
    _really()
    wanted = {m.name: m for m in measures.measures(0, swap=False)}
    meant = wanted["fault_cow"]
    wrong = measures.Measure(
        "fault_cow", meant.sizes, meant.timed, before=wanted["returned_by_madvise"].before, faults=1
    )
    with measures.HostProcess() as host:
        with pytest.raises(measures.NotMeasuredError, match="0 minor and 0 major faults instead"):
            measures._measure(host, wrong, 1, {})
        assert measures._measure(host, meant, 1, {}) != 0


def test_a_refused_call_has_no_price():
    _really()
    import resource

    with measures.HostProcess(limits={resource.RLIMIT_MEMLOCK: 0}) as host:
        wanted = measures.measures(host.start_brk, swap=False)
        found = dict(measures._measure_all(host, wanted, 1))
    assert found["mlock"] in ("mlock: EPERM", "mlock: ENOMEM")
    assert not isinstance(found["fault_write"], str)


def test_small_pages_are_no_huge_ones():
    _really()
    wanted = {m.name: m for m in measures.measures(0, swap=False)}
    meant = wanted["fault_huge"]

    def small(n):
        return measures._area(n * 512)[:2]

    wrong = measures.Measure(
        "fault_huge", meant.sizes, meant.timed, before=small, proof=meant.proof, faults=1
    )
    with measures.HostProcess() as host:
        found = dict(measures._measure_all(host, [wrong, wanted["huge_page_returned"]], 1))
    assert found["fault_huge"] == "the host gives small pages instead of huge ones"
    assert found["huge_page_returned"] == found["fault_huge"]


def test_the_break_that_does_not_move_has_no_price():
    """brk(2) says so by its value, not by an error."""
    _really()
    stuck = measures.measures(0, swap=False)[2]
    assert stuck.name == "brk"
    with measures.HostProcess() as host, pytest.raises(measures.NotMeasuredError, match="brk"):
        measures._measure(host, stuck, 1, {})


def test_swap_is_priced_only_where_pages_go_out():
    """Where the host has no swap area, nothing goes there, and the count of faults tells."""
    _really()
    from kernel.linux.host.observe import host_settings

    if host_settings()["swap"]:
        pytest.skip("the host has swap: test_quick_run prices it")
    with measures.HostProcess() as host:
        wanted = measures.measures(host.start_brk, swap=True)
        found = dict(measures._measure_all(host, [m for m in wanted if "major" in m.name], 1))
    assert isinstance(found["fault_major"], str)


def test_the_clock():
    _really()
    import numpy as np

    monotonic, no_clock = 1, 99
    with measures.HostProcess() as host:
        ops = [(measures.OP_CLOCK, 0, (monotonic, *(0,) * 5))] * 3
        ops.append((measures.OP_CLOCK, 0, (no_clock, *(0,) * 5)))
        results = host.run(np.array(ops, measures.OP))
    first, second, third, refused = results["value"].tolist()
    assert 0 < first < second < third
    assert third - first < 60e9
    assert refused == -22
    assert not results["minflt"].any()
