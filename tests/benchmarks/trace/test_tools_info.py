"""info's lifetimes, live bytes over time and threads agree with plain Python, event by event.

What is drawn of them is a picture with all four panels, or nothing and one line.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, REALLOC, make_events
from benchmarks.trace.__main__ import main
from benchmarks.trace.tools import info


def followed(events):
    """Compute lifetimes by size class, live bytes after each event and sums by thread."""
    birth, size, owner = {}, {}, {}
    lifetimes, ns, live, total = defaultdict(list), defaultdict(list), [], 0
    threads = defaultdict(Counter)
    for i, (op, slot, n) in enumerate(zip(events.op, events.slot, events.size, strict=True)):
        thread = threads[int(events.thread[i])]
        thread["events"] += 1
        if op == FREE:
            total -= size[slot]
            octave = max(int(size[slot]) - 1, 0).bit_length()
            lifetimes[octave].append(i - birth[slot])
            ns[octave].append(int(events.time[i] - events.time[birth[slot]]))
            thread["frees"] += 1
            thread["frees_of_others"] += owner[slot] != events.thread[i]
            del birth[slot], size[slot]
        else:
            if op == MALLOC:
                birth[slot], owner[slot] = i, events.thread[i]
            total += n - size.get(slot, 0)
            size[slot] = n
            thread["requests"] += 1
            thread["bytes"] += n
        live.append(total)
    return lifetimes, ns, live, threads, size


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Return a trace of 5000 events with threads, times and reallocs, in row groups of 700."""
    monkeypatch.setattr(parquet, "ROW_GROUP", 700)
    events = workloads.load({"name": "churn", "operations": 5000, "live": 300}).events
    rng = np.random.default_rng(3)
    op = events.op.copy()
    some = np.flatnonzero((op[:-1] == FREE) & (events.slot[:-1] == events.slot[1:]))[::5] + 1
    op = np.delete(np.where(np.isin(np.arange(len(op)), some), REALLOC, op), some - 1)
    keep = np.setdiff1d(np.arange(len(events.op)), some - 1)
    n = len(keep)
    events = make_events(
        op,
        events.slot[keep],
        events.size[keep],
        thread=rng.integers(0, 3, n),
        time=np.cumsum(rng.integers(0, 5000, n)),
    )
    path = tmp_path / "t.parquet"
    parquet.write(path, events, {})
    return path, events


def test_lifetimes(trace):
    path, events = trace
    about = info.describe(path, True)
    lifetimes, ns, _, _, left = followed(events)
    for unit, expected in (("events", lifetimes), ("ns", ns)):
        shown = about["lifetimes"][unit]
        everything = sorted(t for row in expected.values() for t in row)
        assert shown["freed"] == len(everything)
        assert shown["alive"] == len(left) == sum(row["alive"] for row in shown["sizes"])
        counts = Counter(t.bit_length() for t in everything)
        assert {row["below"].bit_length() - 1: row["objects"] for row in shown["distribution"]} == (
            dict(counts)
        )
        for row in shown["sizes"]:
            mine = sorted(expected[row["to"].bit_length() - 1])
            assert row["freed"] == len(mine)
            for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)) if mine else ():
                exact = mine[max(-(-len(mine) * int(share * 10) // 10) - 1, 0)]
                assert exact * 15 / 16 - 1 <= row["quantiles"][name] <= exact


def test_live_over_time(trace, monkeypatch):
    path, events = trace
    monkeypatch.setattr(info, "_LIVE_ROWS", 16)
    rows = info.describe(path, True)["live"]
    live = followed(events)[2]
    assert 8 <= len(rows) <= 16
    begin = 0
    for row in rows:
        assert row["peak_bytes"] == max(live[begin : row["event"] + 1])
        assert row["bytes"] == live[row["event"]]
        begin = row["event"] + 1
    assert begin == len(events.op)


def test_threads(trace):
    path, events = trace
    shown = {row.pop("thread"): row for row in info.describe(path, True)["by_thread"]}
    assert shown == followed(events)[3]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(trace, tmp_path, capsys, suffix):
    out = tmp_path / f"figure.{suffix}"
    assert main(["info", str(trace[0]), "--plot", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert out.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])
    assert {p for p in tmp_path.iterdir() if p.is_file()} == {trace[0], out}


def test_plot_of_nothing(tmp_path, capsys):
    path, out = tmp_path / "t.parquet", tmp_path / "figure.png"
    parquet.write(path, make_events([], [], []), {})
    assert main(["info", str(path), "--json", "--plot", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["live"] == []
    assert out.exists()


def test_no_plot(trace, tmp_path, capsys):
    assert main(["info", str(trace[0]), "--plot", str(tmp_path / "none" / "x.png")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"x.png: the directory {tmp_path / 'none'} does not exist" in said
    with pytest.raises(SystemExit, match="2"):
        main(["info", str(trace[0]), "--plot", "x.pdf"])
    assert "expected a name that ends in .png or .svg" in capsys.readouterr().err
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"file": "x"}')
    done = subprocess.run(
        [sys.executable, "-m", "analysis.fig_trace", str(wrong), "-o", str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not the output of trace info --json" in done.stderr
