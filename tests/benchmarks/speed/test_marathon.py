"""Tests of the marathon: both sides replay the same events, and the table shows both."""

import json
from pathlib import Path

import pytest

from allocators import bump
from benchmarks.events import parquet
from benchmarks.speed import marathon
from benchmarks.speed.marathon import main, run_side, summarise, write_parts


def test_both_sides_get_the_same_addresses(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 10_000)
    write_parts(tmp_path, 40_000)
    events = 25_000 + 3 * 40_000 + 123
    memory, stream = (run_side(tmp_path, side, "bump", events) for side in marathon.SIDES)
    assert memory["checksum"] == stream["checksum"] != 0
    assert run_side(tmp_path, "stream", "bump", events - 2)["checksum"] != stream["checksum"]
    assert min(stream["seconds"], stream["waited"], stream["peak_memory"]) > 0


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(marathon, "PERIOD", 40_000)
    assert main(["--events", "100000", "--rounds", "1", "--allocator", "bump", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["events"] == 100_000
    assert result["ratio"] == pytest.approx(
        result["stream"]["ns_per_event"] / result["memory"]["ns_per_event"]
    )
    assert 0 < result["bytes_per_event"] < 8
    marathon._print_table(result)
    shown = capsys.readouterr().out
    for text in ("100,000 events, bump", "memory", "stream", "ratio"):
        assert text in shown


def test_bad_input(capsys):
    for arguments in (["--events", "0"], ["--rounds", "-1"], ["--events", "9" * 99]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("benchmarks.speed.marathon: argument ")
    assert main(["--allocator", "nosuch"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("marathon: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_interruption_and_errors_print_one_line(monkeypatch, capsys, raised, code, said):
    def fail(*_):
        raise raised

    monkeypatch.setattr(marathon, "write_parts", fail)
    assert main(["--events", "1000"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"marathon: {said}"


def test_medians_and_ratios():
    def run(seconds, waited, memory, checksum=1):
        return {"seconds": seconds, "waited": waited, "peak_memory": memory, "checksum": checksum}

    found = {
        "memory": [run(1.0, 0.0, 10), run(4.0, 0.0, 30), run(2.0, 0.0, 20)],
        "stream": [run(1.0, 0.5, 5), run(4.0, 0.0, 6), run(2.0, 0.4, 7)],
    }
    result = summarise(found, 10**9)
    assert result["memory"] == {"ns_per_event": 2.0, "loop_ns_per_event": 2.0, "peak_memory": 30}
    assert result["stream"] == {"ns_per_event": 2.4, "loop_ns_per_event": 2.0, "peak_memory": 7}
    assert result["ratio"] == pytest.approx(1.2)
    found["stream"][1]["checksum"] = 2
    with pytest.raises(RuntimeError, match="returned different addresses"):
        summarise(found, 10**9)


def test_an_allocator_that_fails(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(marathon, "PERIOD", 40_000)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # the failure is the same, without compiling
    path = tmp_path / "broken.py"
    text = Path(bump.__file__).read_text()
    path.write_text(
        text.replace("def malloc(k, a, size):", "def malloc(k, a, size):\n    size.x", 1)
    )
    assert main(["--events", "1000", "--rounds", "1", "--allocator", str(path)]) == 1
    said = capfd.readouterr().err
    assert f"marathon: {path}: {path}:" in said
    assert ": event 0, malloc(): " in said
    assert "Traceback" not in said
