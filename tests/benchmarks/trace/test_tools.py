"""cat, head, slice, merge and scale work as their docstrings specify."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.events import parquet
from benchmarks.events.events import (
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    MALLOPT,
    REALLOC,
    SBRK,
    THREAD_END,
    TOUCH_WRITE,
    TRIM,
    Events,
    make_events,
)
from benchmarks.events.ledger import Ledger
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main

#: malloc_trim, mallopt and sbrk among others: op, slot, size, align, thread, offset.
OTHERS = [
    (MALLOC, 0, 100, 0, 0, 0),
    (MALLOPT, -1, 0, 0, 1, -3 << 32 | 1 << 20),
    (SBRK, -1, 0, 0, 0, -4096),
    (MALLOC, 1, 50, 0, 1, 0),
    (FREE, 0, 0, 0, 0, 0),
    (TRIM, -1, 7, 0, 0, 0),
]
OTHERS_CAT = """\
        0 0: malloc #0 100
        1 1: mallopt -3 1048576
        2 0: sbrk -4096
        3 1: malloc #1 50
        4 0: free #0
        5 0: malloc_trim 7
"""

CAT = """\
        0 0: malloc #0 100
        1 0: calloc #1 100
        2 0: malloc #2 8
        3 1: realloc #0 300
        4 1: free #1
        5 0: free NULL
        6 0: realloc #1 50
        7 0: aligned #3 64 align 4096
        8 1: realloc #1 0
        9 0: free #2
       10 1: malloc #2 16
       11 1: thread_end
       12 0: free #2
"""

#: op, slot, size, align, thread, offset, time, site
ROWS = [
    (MALLOC, 0, 100, 0, 0, 0, 5, 0),
    (ALIGNED, 1, 64, 6, 1, 0, 7, 3),
    (MALLOC, 2, 40, 0, 1, 0, 8, 0),
    (REALLOC, 0, 300, 0, 0, 0, 8, 1),
    (TOUCH_WRITE, 0, 20, 0, 1, 280, 9, 0),
    (FREE, 2, 0, 0, 0, 0, 10, 0),
    (CALLOC, 2, 7, 0, 0, 0, 12, 0),
    (FREE, 1, 64, 0, 0, 0, 15, 0),
    (FREE, -1, 0, 0, 0, 0, 16, 0),
    (MALLOC, 1, 9, 0, 1, 0, 17, 0),
    (THREAD_END, -1, 0, 0, 1, 0, 18, 0),
    (FREE, 0, 0, 0, 0, 0, 20, 0),
    (FREE, 1, 0, 0, 0, 0, 21, 0),
]


#: Columns of OTHERS.
NAMES = Events._fields[:6]


def columns(rows):
    return make_events(**dict(zip(Events._fields, np.array(rows).T, strict=True)))


@pytest.fixture
def rows(tmp_path):
    """Return a Parquet trace of ROWS, with every column."""
    path = tmp_path / "rows.parquet"
    parquet.write(path, columns(ROWS), {"by": "test"})
    return path


@pytest.mark.hardening(15)
def test_operations_of_no_object_pass_through_every_tool(tmp_path, capsys):
    path, out = tmp_path / "t.parquet", tmp_path / "out.parquet"
    parquet.write(path, make_events(**dict(zip(NAMES, np.array(OTHERS).T, strict=True))), {})
    assert text(capsys, "cat", path) == OTHERS_CAT
    assert json.loads(text(capsys, "info", path, "--json"))["operations"] == {
        "malloc": 2,
        "free": 1,
        "malloc_trim": 1,
        "mallopt": 1,
        "sbrk": 1,
    }
    text(capsys, "scale", path, out, "--sizes", "2")
    doubled = OTHERS_CAT.replace("100", "200").replace("50", "100").replace("trim 7", "trim 14")
    assert text(capsys, "cat", out) == doubled
    text(capsys, "slice", path, out, "--from", "1", "--to", "6")
    assert [line.split()[2] for line in text(capsys, "cat", out).splitlines()][-4:] == [
        "sbrk",
        "malloc",
        "free",
        "malloc_trim",
    ]
    text(capsys, "merge", out, path, path)
    assert text(capsys, "cat", out).count("mallopt -3 1048576") == 2
    for name in ("out.rep", "out.txt"):
        assert main(["convert", str(path), str(tmp_path / name)]) == 0
        assert "3 × malloc_trim, mallopt or sbrk (left out)" in capsys.readouterr().err
        kept = [line.split()[2] for line in text(capsys, "cat", tmp_path / name).splitlines()]
        assert kept == ["malloc", "malloc", "free"]


def text(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def lines(capsys, path):
    """Return the events of a trace as printed by cat, without numbers."""
    return [line.strip().split(" ", 1)[1] for line in text(capsys, "cat", path).splitlines()]


def long_trace(path, n, monkeypatch, **more):
    """Write a consistent trace of at most ``n`` events in row groups of 100, with reallocs."""
    rng = np.random.default_rng(n)
    op, slot, size, live = [], [], [], {}
    while len(op) < n:
        s = int(rng.integers(40))
        kind = rng.integers(3)
        if s not in live:
            live[s] = int(rng.integers(1, 99))
            new = (MALLOC, s, live[s])
        elif kind == 0:
            live[s] = int(rng.integers(1, 99))
            new = (REALLOC, s, live[s])
        else:
            del live[s]
            new = (FREE, s, 0)
        for column, value in zip((op, slot, size), new, strict=True):
            column.append(value)
    monkeypatch.setattr(parquet, "ROW_GROUP", 100)
    more = {name: make(n) for name, make in more.items()}
    parquet.write(path, make_events(op, slot, size, **more), {})
    return formats.load(path)[0]


def live_bytes(events):
    followed = Ledger().follow(events)
    return np.cumsum(np.maximum(followed.after, 0) - np.maximum(followed.before, 0))


def test_cat(android, capsys):
    assert text(capsys, "cat", android) == CAT
    assert text(capsys, "head", android, "-n", "3") == "".join(CAT.splitlines(True)[:3])
    assert text(capsys, "head", android, "-n", "0") == ""
    assert text(capsys, "head", android) == "".join(CAT.splitlines(True)[:10])


def test_cat_shows_every_column(rows, capsys):
    shown = lines(capsys, rows)
    assert shown[1] == "1: aligned #1 64 align 64 @7 site 3"
    assert shown[4] == "1: touch_write #0 20 at 280 @9"
    assert shown[7] == "0: free #1 64 @15"
    assert shown[10] == "1: thread_end @18"


def test_cat_in_blocks_and_row_groups(tmp_path, capsys, monkeypatch):
    events = long_trace(tmp_path / "t.parquet", 450, monkeypatch)
    monkeypatch.setattr("benchmarks.trace.tools.cat._BLOCK", 64)
    shown = text(capsys, "cat", tmp_path / "t.parquet").splitlines()
    assert [int(line.split()[0]) for line in shown] == list(range(450))
    assert [int(line.split("#")[1].split()[0]) for line in shown] == events.slot.tolist()
    assert text(capsys, "head", "-n", 130, tmp_path / "t.parquet").splitlines() == shown[:130]


@pytest.mark.parametrize("reader", ["head -n 2", "true"])
def test_a_reader_that_goes_away(tmp_path, reader):
    path = tmp_path / "t.parquet"
    n = 100_000
    parquet.write(path, make_events(np.zeros(n), np.arange(n), np.ones(n)), {})
    done = subprocess.run(
        f"{sys.executable} -m benchmarks.trace cat {path} | {reader}",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == (2 if "head" in reader else 0)


def test_a_full_disk(android):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.trace", "cat", str(android)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_shipped_trace_by_name(tmp_path, capsys):
    out = tmp_path / "o.parquet"
    assert main(["head", "-n", "3", "shipped:bash"]) == 0
    first = capsys.readouterr().out
    assert main(["convert", "shipped:bash", str(out)]) == 0
    capsys.readouterr()
    assert main(["head", "-n", "3", str(out)]) == 0
    assert capsys.readouterr().out == first != ""
    with pytest.raises(SystemExit):
        main(["merge", str(out), "shipped:bash", "shipped:bush"])
    assert "unknown shipped trace 'bush'; choose one of bash, " in capsys.readouterr().err


def test_slice_allocates_earlier_objects_first(rows, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    said = text(capsys, "slice", rows, out, "--from", 4, "--to", 12)
    assert said == f"objects allocated first: 3\n{out}\n"
    assert lines(capsys, out) == [
        "0: malloc #0 300 @0",
        "1: aligned #1 64 align 64 @0 site 3",
        "1: malloc #2 40 @0",
        "1: touch_write #0 20 at 280 @0",
        "0: free #2 @1",
        "0: calloc #2 7 @3",
        "0: free #1 64 @6",
        "0: free NULL @7",
        "1: malloc #1 9 @8",
        "1: thread_end @9",
        "0: free #0 @11",
    ]
    provenance = formats.load(out)[1]
    assert provenance["objects_allocated_first"] == 3
    assert provenance["parents"][0]["file"] == rows.name
    assert provenance["parents"][0]["provenance"] == {"by": "test"}
    assert len(provenance["parents"][0]["sha256"]) == 64
    assert provenance["command"].startswith("python -m benchmarks.trace slice ")


def test_slice_drops_earlier_objects(rows, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    said = text(capsys, "slice", rows, out, "--from", 4, "--drop-earlier")
    assert said == f"objects dropped: 3\nevents dropped: 4\n{out}\n"
    assert lines(capsys, out) == [
        "0: calloc #0 7 @3",
        "0: free NULL @7",
        "1: malloc #1 9 @8",
        "1: thread_end @9",
        "0: free #1 @12",
    ]


@pytest.mark.parametrize("begin", [0, 77, 250, 300])
def test_slices_over_row_groups(tmp_path, capsys, monkeypatch, begin):
    path, out = tmp_path / "t.parquet", tmp_path / "out.parquet"
    whole = long_trace(path, 500, monkeypatch)
    text(capsys, "slice", path, out, "--from", begin, "--to", 430)
    part, provenance = formats.load(out)
    first = provenance["objects_allocated_first"]
    assert first + 430 - begin == len(part.op)
    assert np.array_equal(live_bytes(part)[first:], live_bytes(whole)[begin:430])
    assert part.slot.max() < 40
    text(capsys, "slice", path, out, "--from", begin, "--to", 430, "--drop-earlier")
    rest, provenance = formats.load(out)
    assert len(rest.op) + provenance["events_dropped"] == 430 - begin


@pytest.mark.parametrize("bounds", [("--from", "13"), ("--from", "5", "--to", "5")])
def test_slice_of_nothing(rows, tmp_path, capsys, bounds):
    out = tmp_path / "out.parquet"
    assert main(["slice", str(rows), str(out), *bounds]) == 1
    assert "the trace has 13" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [rows]


def test_merge_by_time(rows, tmp_path, capsys):
    other, out = tmp_path / "other.parquet", tmp_path / "out.parquet"
    times = [100, 102, 101, 116]
    parquet.write(other, make_events([0, 0, 1, 1], [0, 1, 0, 1], [5, 6, 0, 0], time=times), {})
    assert text(capsys, "merge", out, rows, other) == f"interleaved by time\n{out}\n"
    events, provenance = formats.load(out)
    assert events.time.tolist() == [0, 0, 2, 2, 1, 3, 3, 4, 5, 7, 10, 11, 12, 13, 15, 16, 16]
    assert events.thread.tolist() == [0, 2, 1, 2, 2, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert [parent["file"] for parent in provenance["parents"]] == [rows.name, other.name]
    assert provenance["interleaved_by"] == "time"


def test_merge_by_length(tmp_path, capsys, monkeypatch):
    names = ("a", "b", "c")
    paths, out = [tmp_path / f"{name}.parquet" for name in names], tmp_path / "out.parquet"
    lengths = (900, 300, 90)
    traces = [long_trace(p, n, monkeypatch) for p, n in zip(paths, lengths, strict=True)]
    text(capsys, "merge", out, *paths)
    events, _ = formats.load(out)
    assert np.bincount(events.thread).tolist() == list(lengths)
    assert np.bincount(events.thread[:645]).tolist() == [450, 150, 45]
    assert events.slot.max() + 1 == sum(len(np.unique(t.slot)) for t in traces)
    for thread, trace in enumerate(traces):
        mine = Events(*(c[events.thread == thread] if len(c) else c for c in events))
        assert np.array_equal(live_bytes(mine), live_bytes(trace))


def test_copies(rows, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    assert text(capsys, "scale", rows, out, "--copies", 3) == f"{out}\n"
    whole, scaled = formats.load(rows)[0], formats.load(out)[0]
    assert np.array_equal(live_bytes(scaled)[2::3], 3 * live_bytes(whole))
    assert len(np.unique(scaled.thread)) == 6
    for copy in range(3):
        thread = scaled.thread[copy::3]
        assert ((thread - copy) // 3).tolist() == whole.thread.tolist()


def test_sizes(rows, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    text(capsys, "scale", rows, out, "--sizes", 0.011)
    shown = lines(capsys, out)
    assert shown[:3] == [
        "0: malloc #0 1 @5",
        "1: aligned #1 1 align 64 @7 site 3",
        "1: malloc #2 1 @8",
    ]
    text(capsys, "scale", rows, out, "--sizes", 2.5)
    assert "1: touch_write #0 50 at 700 @9" in lines(capsys, out)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["scale", "IN", "OUT", "--copies", "0"], 1, "--copies 0: must be 1 to"),
        (["scale", "IN", "OUT", "--sizes", "1e13"], 1, "event 0: 100 bytes times 1e+13"),
        (["scale", "IN", "OUT"], 1, "scale takes --copies N, --sizes F, or both"),
        (["scale", "IN", "IN", "--copies", "2"], 1, "would overwrite an input trace"),
        (["merge", "none/OUT", "IN", "IN"], 1, "the directory none does not exist"),
        (["slice", "IN", "."], 1, ".: is a directory"),
        (["merge", "OUT", "IN", "missing"], 1, "missing: No such file"),
        (["cat", "missing"], 1, "missing: No such file"),
    ],
)
def test_one_line_for_what_cannot_be_done(rows, tmp_path, capsys, arguments, code, complaint):
    names = {"IN": str(rows), "OUT": str(tmp_path / "out.parquet")}
    assert main([names.get(a, a) for a in arguments]) == code
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [rows]


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "IN", "OUT"],
        ["convert", "IN", "OUT", "--to", "rep"],
        ["slice", "IN", "OUT"],
        ["record", "-o", "OUT", "--", "true"],
    ],
)
def test_a_device_is_not_replaced(rows, tmp_path, capsys, arguments):
    """An output such as /dev/null is refused; the test uses a pipe, which is harmless."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    names = {"IN": str(rows), "OUT": str(pipe)}
    assert main([names.get(a, a) for a in arguments]) == 1
    error = f"error: {pipe}: not a regular file, so it cannot be replaced\n"
    assert capsys.readouterr().err == error
    assert pipe.is_fifo()


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "²"])
def test_bad_numbers(rows, capsys, value):
    with pytest.raises(SystemExit, match="2"):
        main(["head", str(rows), "-n", value])
    assert "expected a whole number" in capsys.readouterr().err
