"""A Parquet trace preserves all events, and info prints what a trace contains."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import COLUMNS, MALLOC, make_events
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.workloads.base.registry import fingerprint


def test_round_trip(android, tmp_path, capsys):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    assert main(["convert", str(android), str(first)]) == 0
    assert capsys.readouterr().out == f"{first}\n"
    assert main(["convert", str(first), str(second)]) == 0
    events, provenance = formats.load(android)
    for path in (first, second):
        again, stored = formats.load(path)
        assert fingerprint(again) == fingerprint(events)
        assert stored == provenance
    assert first.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_column_survives(tmp_path):
    n = 50
    rng = np.random.default_rng(1)
    columns = {
        name: rng.integers(0, 2, n) if name != "slot" else np.arange(n) for name, *_ in COLUMNS
    }
    columns["op"] = np.full(n, MALLOC)
    events = make_events(**columns)
    path = tmp_path / "t.parquet"
    parquet.write(path, events, {"by": "test"})
    again, provenance = formats.load(path)
    assert provenance == {"by": "test"}
    for a, b in zip(events, again, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    table = pd.read_parquet(path)
    assert list(table.columns) == [name for name, *_ in COLUMNS]
    assert table["size"].tolist() == events.size.tolist()


def test_columns_that_say_nothing_are_left_out(tmp_path):
    path = tmp_path / "t.parquet"
    nothing = np.zeros(3)
    parquet.write(path, make_events([0, 0, 0], [0, 1, 2], [8, 8, 8], thread=nothing), {})
    events, _ = formats.load(path)
    assert len(events.thread) == 0
    assert len(events.op) == 3
    assert fingerprint(events) == fingerprint(make_events([0, 0, 0], [0, 1, 2], [8, 8, 8]))


def test_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 1000)
    w = workloads.load({"name": "churn", "operations": 5500, "live": 100})
    path = tmp_path / "t.parquet"
    with parquet.Writer(path) as writer:
        for begin, end in ((0, 300), (300, 3100), (3100, 3100), (3100, 5500)):
            writer.add(type(w.events)(*(column[begin:end] for column in w.events)))
    with parquet.Reader(path) as reader:
        assert reader.events == 5500
        groups = list(reader.groups())
    assert [len(g.op) for g in groups] == [1000] * 5 + [500]
    assert np.array_equal(np.concatenate([g.slot for g in groups]), w.events.slot)
    assert fingerprint(formats.load(path)[0]) == w.fingerprint


def test_a_trace_without_events(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write(path, make_events([], [], []), {})
    assert len(formats.load(path)[0].op) == 0
    assert main(["info", str(path)]) == 0


def test_info(android, capsys):
    assert main(["info", str(android), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about.pop("file") == str(android)
    assert about.pop("sizes") == [
        {"from": 5, "to": 8, "requests": 1, "bytes": 8},
        {"from": 9, "to": 16, "requests": 1, "bytes": 16},
        {"from": 33, "to": 64, "requests": 2, "bytes": 114},
        {"from": 65, "to": 128, "requests": 2, "bytes": 200},
        {"from": 257, "to": 512, "requests": 1, "bytes": 300},
    ]
    for name in ("live", "lifetimes", "by_thread"):  # checked in test_tools_info
        assert about.pop(name)
    assert about == {
        "format": "Android memory_replay",
        "events": 13,
        "operations": {
            "malloc": 3,
            "free": 4,
            "realloc": 3,
            "calloc": 1,
            "aligned": 1,
            "thread_end": 1,
        },
        "free_null": 1,
        "threads": 2,
        "frees_by_another_thread": 2,
        "allocated_bytes": 638,
        "peak_live_bytes": 422,
        "peak_live_objects": 4,
        "end_live_bytes": 364,
        "end_live_objects": 2,
        "slots": 4,
        "mean_request": pytest.approx(638 / 7, abs=1e-3),
        "dropped": {},
    }
    assert main(["info", str(android)]) == 0
    shown = capsys.readouterr().out
    for text in ("Android memory_replay", "frees by another thread", "422 bytes", "≤ 512"):
        assert text in shown


def test_lenient_info_counts_what_it_drops(android, capsys):
    android.write_text(android.read_text() + "1: free 0x10\nnonsense\n")
    assert main(["info", str(android)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["info", str(android), "--lenient", "--json"]) == 0
    said = capsys.readouterr()
    dropped = json.loads(said.out)["dropped"]
    assert dropped == {"unknown_pointer": 1, "unreadable_line": 1}
    assert "dropped 1 × unknown pointer, 1 × unreadable line; first problem: line 14" in said.err
