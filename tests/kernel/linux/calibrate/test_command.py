"""The command ``python -m kernel.linux.calibrate``, from its arguments to the file it writes."""

import json
import os
import signal
import stat

import pytest

from kernel.cost import COSTS
from kernel.linux.calibrate import __main__ as command
from kernel.linux.calibrate import measures
from kernel.linux.calibrate.prices import ADDITIONAL, read_table
from kernel.linux.host import unavailable
from kernel.linux.host.process import HostError
from tests.conftest import ROOT


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Create a folder of cost tables that contains a reference."""
    folder = tmp_path / "tables"
    folder.mkdir()
    text = "".join(f"{name}: {i}\n" for i, name in enumerate(COSTS, 1000))
    (folder / "reference.yaml").write_text(text)
    monkeypatch.setattr(command, "TABLES", folder)
    return folder


@pytest.fixture
def served(monkeypatch):
    """Fake a usable host whose processes do nothing: every price is 5 ns."""
    monkeypatch.setattr("kernel.linux.host.unavailable", lambda: "")

    def measure_process(rounds, *, swap):
        for measure in measures.measures(0, swap=swap):
            yield measure.name, 5.0

    monkeypatch.setattr(measures, "measure_process", measure_process)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_default_file_is_in_the_project_s_folder(tables, served, capsys):
    assert command.main(["--quick"]) == 0
    assert names(tables) == ["host.yaml", "reference.yaml"]
    assert read_table(tables / "host.yaml")["brk"] == 5
    assert "written: " in capsys.readouterr().out


def test_git_ignores_the_default_file():
    assert (ROOT / "conf/kernel/cost/reference.yaml").is_file()
    assert command.TABLES == ROOT / "conf/kernel/cost"
    assert "conf/kernel/cost/host.yaml" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unrecognized arguments: --fast"),
        (["-o"], "expected one argument"),
        (["-o", "."], "--output .: is a directory"),
        (["-o", "nowhere/host.yaml"], "nowhere/host.yaml: the directory nowhere does not exist"),
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


def test_a_bad_reference_is_refused_before_measuring(tables, served, monkeypatch, capsys):
    (tables / "reference.yaml").write_text("brk: much\n")
    monkeypatch.setattr(measures, "measure_process", None)
    assert command.main([]) == 1
    assert "brk=much: expected nanoseconds" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tables, served, monkeypatch, capsys):
    def fail(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("kernel.linux.calibrate.__main__.write_text", fail)
    assert command.main([]) == 1
    assert "host.yaml: No space left on device" in capsys.readouterr().err


@pytest.mark.hardening(5)
def test_only_a_regular_file_is_replaced(tables, served, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null"):
        with pytest.raises(SystemExit) as ended:
            command.main(["-o", str(path)])
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(
            f"--output {path}: not a regular file, so it cannot be replaced\n"
        )
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


# --- the real kernel ------------------------------------------------------------------------------


def _skip_without_host():
    if reason := unavailable():
        pytest.skip(f"no host to measure: {reason}")


def test_quick_run(tables, tmp_path, capsys):
    _skip_without_host()
    path = tmp_path / "mine.yaml"
    assert command.main(["--quick", "--json", "-o", str(path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "ok"
    assert set(result["prices"]) <= set(COSTS) | set(ADDITIONAL)
    table = read_table(path)
    assert list(table) == list(COSTS)
    assert all(value > 0 for value in table.values())
    for name, price in result["prices"].items():
        assert price["processes"] in (1, 2, 3) or price["reason"], name
        assert price["q1"] <= price["ns"] <= price["q3"]
    # Prices that can be measured under all limits and settings.
    for name in ("syscall_floor", "brk", "mmap", "munmap", "madvise", "mremap", "mprotect"):
        assert result["prices"][name]["processes"] == 3
    assert stat.S_ISREG(path.stat().st_mode)


def test_work_with_unexpected_faults_has_no_price():
    """Pages that were already written cause no copy-on-write faults."""
    _skip_without_host()
    wanted = {m.name: m for m in measures.measures(0, swap=False)}
    right = wanted["fault_cow"]
    wrong = measures.Measure(
        "fault_cow", right.sizes, right.timed, before=wanted["returned_by_madvise"].before, faults=1
    )
    with measures.HostProcess() as host:
        with pytest.raises(measures.NotMeasuredError, match="0 minor and 0 major faults instead"):
            measures._measure(host, wrong, 1, {})
        assert measures._measure(host, right, 1, {}) != 0


def test_a_refused_call_has_no_price():
    _skip_without_host()
    import resource

    with measures.HostProcess(limits={resource.RLIMIT_MEMLOCK: 0}) as host:
        wanted = measures.measures(host.start_brk, swap=False)
        found = dict(measures._measure_all(host, wanted, 1))
    assert found["mlock"] in ("mlock: EPERM", "mlock: ENOMEM")
    assert not isinstance(found["fault_write"], str)


def test_small_pages_are_not_priced_as_huge_ones():
    _skip_without_host()
    wanted = {m.name: m for m in measures.measures(0, swap=False)}
    right = wanted["fault_huge"]

    def small(n):
        return measures._area(n * 512)[:2]

    wrong = measures.Measure(
        "fault_huge", right.sizes, right.timed, before=small, proof=right.proof, faults=1
    )
    with measures.HostProcess() as host:
        found = dict(measures._measure_all(host, [wrong, wanted["huge_page_returned"]], 1))
    assert found["fault_huge"] == "the host maps small pages instead of huge ones"
    assert found["huge_page_returned"] == found["fault_huge"]


def test_a_break_that_does_not_move_has_no_price():
    """brk(2) reports failure by its value, not by an error."""
    _skip_without_host()
    stuck = measures.measures(0, swap=False)[2]
    assert stuck.name == "brk"
    with measures.HostProcess() as host, pytest.raises(measures.NotMeasuredError, match="brk"):
        measures._measure(host, stuck, 1, {})


def test_swap_has_no_price_if_pages_are_not_swapped_out():
    """Without a swap area no page is swapped out, which the number of faults shows."""
    _skip_without_host()
    from kernel.linux.host.observe import host_settings

    if host_settings()["swap"]:
        pytest.skip("the host has swap: test_quick_run prices it")
    with measures.HostProcess() as host:
        wanted = measures.measures(host.start_brk, swap=True)
        found = dict(measures._measure_all(host, [m for m in wanted if "major" in m.name], 1))
    assert isinstance(found["fault_major"], str)


def test_the_clock():
    _skip_without_host()
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
