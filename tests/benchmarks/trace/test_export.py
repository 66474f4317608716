"""Exported traces are the same when read again, except for losses, which are reported."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import (
    ALIGNED,
    ALLOCATOR_OPS,
    CALLOC,
    FREE,
    MALLOC,
    REALLOC,
    THREAD_END,
    TOUCH_READ,
    TOUCH_WRITE,
    Events,
    column,
    make_events,
)
from benchmarks.trace import formats
from benchmarks.trace.__main__ import main
from benchmarks.trace.formats import export
from benchmarks.trace.tools.info import describe
from kernel.engine.jit import disabled

STEP = st.tuples(
    st.sampled_from(
        [MALLOC, CALLOC, ALIGNED, REALLOC, REALLOC, FREE, FREE, THREAD_END, TOUCH_READ]
    ),
    st.integers(0, 1 << 30),
    st.sampled_from([0, 1, 8, 100, 4096, 1 << 40]),
    st.integers(0, 20),
    st.integers(0, 3),
    st.integers(0, 1 << 40),
)


def program(steps, timed):
    """Return consistent random events; slots and threads are numbered as by the importers."""
    spare, used, live, threads, rows, now = [], 0, [], {}, [], 0
    for op, choice, size, align, thread, pause in steps:
        thread = threads.setdefault(thread, len(threads))
        now += pause if rows and timed else 0
        slot = -1
        known = live and choice % 8
        if op == TOUCH_READ:
            if not live:
                continue
            slot, size = live[choice % len(live)], 0
        elif op == FREE and known:
            slot = live.pop(choice % len(live))
            spare.append(slot)
        elif op == REALLOC and known:
            slot = live[choice % len(live)]
            if size == 0:
                live.remove(slot)
                spare.append(slot)
        elif op not in (FREE, THREAD_END):
            if spare:
                slot = spare.pop()
            else:
                slot, used = used, used + 1
            live.append(slot)
        size = 0 if op in (FREE, THREAD_END) else size
        rows.append((op, slot, size, align if op == ALIGNED else 0, thread, now))
    columns = np.array(rows, "i8").reshape(-1, 6).T
    names = ("op", "slot", "size", "align", "thread", "time")
    return make_events(**dict(zip(names, columns, strict=True)))


def columns_of(events):
    """Return all columns; absent ones are filled with their defaults."""
    return {name: column(events, name).tolist() for name in Events._fields}


def only(events, kept):
    return Events(*(c[kept] if len(c) else c for c in events))


def there_and_back(directory, events, name):
    """Return the events after Parquet → ``name`` → Parquet."""
    source, out = directory / "source.parquet", directory / name
    parquet.write(source, events, {})
    form = export.form_of(out)
    lost = export.export(source, out, form, strict=True)[1]
    return formats.load(out)[0], lost


PROGRAMS = st.builds(program, st.lists(STEP, max_size=40), st.booleans())


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(export, "_ROWS", 3)


@settings(max_examples=40, deadline=None)
@given(events=PROGRAMS)
def test_android_loses_nothing(events, tmp_path_factory):
    events = only(events, events.op != TOUCH_READ)
    if not len(events.op):
        return
    again, lost = there_and_back(tmp_path_factory.mktemp("t"), events, "t.txt")
    assert columns_of(again) == columns_of(events)
    assert lost == {}


@settings(max_examples=40, deadline=None)
@given(events=PROGRAMS)
def test_rep_loses_what_it_tells(events, tmp_path_factory):
    kept = (events.op < ALLOCATOR_OPS) & (events.slot >= 0)
    if not kept.any():
        return
    again, lost = there_and_back(tmp_path_factory.mktemp("t"), events, "t.rep")
    expected, held = [], set()
    for op, slot, size in zip(*(c[kept].tolist() for c in events[:3]), strict=True):
        fresh = slot not in held
        shown = MALLOC if op in (CALLOC, ALIGNED) or (op == REALLOC and fresh) else op
        expected.append((shown, slot, size))
        held.add(slot)
        if op == FREE or (op == REALLOC and size == 0 and not fresh):
            held.discard(slot)
    assert list(zip(*(c.tolist() for c in again[:3]), strict=True)) == expected
    op = events.op
    assert lost.get("calloc (written as a)", 0) == np.count_nonzero(op == CALLOC)
    assert lost.get("aligned allocation (written as a)", 0) == np.count_nonzero(op == ALIGNED)
    assert lost.get("free of NULL (left out)", 0) == np.count_nonzero((op == FREE) & ~kept)
    assert lost.get("touch (left out)", 0) == np.count_nonzero(op == TOUCH_READ)


@pytest.mark.usefixtures("small_pieces")
def test_every_operation(android, tmp_path, capsys):
    """Export the trace with every operation of the Android format, in pieces of three events."""
    events, _ = formats.load(android)
    for name in ("a.txt", "a.txt.gz", "a.gz", "a.zip", "a.txt.zip"):
        assert main(["convert", str(android), str(tmp_path / name)]) == 0
        assert columns_of(formats.load(tmp_path / name)[0]) == columns_of(events)
        said = capsys.readouterr()
        assert said.out == f"{tmp_path / name}\n"
        assert said.err == ""
    assert (tmp_path / "a.txt").read_text() == (
        "1: malloc 0x10 100\n1: calloc 0x20 1 100\n1: malloc 0x30 8\n2: realloc 0x10 0x10 300\n"
        "2: free 0x20\n1: free 0x0\n1: realloc 0x20 0x0 50\n1: memalign 0x40 4096 64\n"
        "2: realloc 0x0 0x20 0\n1: free 0x30\n2: malloc 0x30 16\n2: thread_done 0x0\n"
        "1: free 0x30\n"
    )
    assert main(["convert", str(android), str(tmp_path / "a.rep")]) == 0
    assert (tmp_path / "a.rep").read_text() == (
        "422\n4\n11\n1\na 0 100\na 1 100\na 2 8\nr 0 300\nf 1\na 1 50\na 3 64\nr 1 0\n"
        "f 2\na 2 16\nf 2\n"
    )
    said = capsys.readouterr().err
    assert said.startswith(
        f"{tmp_path / 'a.rep'}: the format cannot represent 1 × calloc (written as a)"
    )
    assert "1 × free of NULL (left out)" in said


def test_a_rep_file_survives(tmp_path):
    text = "900\n3\n7\n1\na 0 512\na 1 128\nr 0 640\nf 1\na 1 0\nr 0 0\nf 1\n"
    first, second = tmp_path / "a.rep", tmp_path / "b.rep"
    first.write_text(text)
    assert main(["convert", str(first), str(second)]) == 0
    assert second.read_text() == text.replace("900\n3\n", "768\n2\n")


def test_times_and_threads_are_written(tmp_path):
    events = make_events([MALLOC, FREE], [0, 0], [8, 0], thread=[0, 1], time=[0, 2_000_000_000_000])
    again, _ = there_and_back(tmp_path, events, "t.txt")
    assert columns_of(again) == columns_of(events)
    assert (tmp_path / "t.txt").read_text().splitlines() == [
        "1: malloc 0x10 8 0 0",
        "2: free 0x10 2000000000000 2000000000000",
    ]


def test_what_is_lost_is_counted(tmp_path):
    events = make_events(
        [MALLOC, TOUCH_WRITE, FREE], [0, 0, 0], [8, 8, 8], site=[3, 0, 0], time=[0, 1, 2]
    )
    assert there_and_back(tmp_path, events, "t.txt")[1] == {
        "touch (left out)": 1,
        "size of a free": 1,
        "call site": 1,
    }
    assert there_and_back(tmp_path, events, "t.rep")[1] == {
        "touch (left out)": 1,
        "size of a free": 1,
        "time": 1,
        "call site": 1,
    }


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.rep", "rep"),
        ("a.rep.gz", "rep"),
        ("a.txt", "android"),
        ("a.b.gz", "android"),
        ("a.zip", "android"),
        ("a.parquet", "parquet"),
        ("a", "parquet"),
        ("rep", "parquet"),
    ],
)
def test_the_ending_chooses(tmp_path, name, form):
    assert export.form_of(tmp_path / name) == form


@pytest.mark.parametrize("form", ["android", "rep", "parquet"])
def test_the_choice_may_be_said(android, tmp_path, form):
    out = tmp_path / "out.bin"
    assert main(["convert", str(android), str(out), "--to", form]) == 0
    known = {"android": "Android memory_replay", "rep": "malloc-lab", "parquet": None}
    source = formats.recognise(out)
    assert (source.format and source.format.NAME) == known[form]


@pytest.mark.parametrize("name", ["out.txt", "out.rep", "out.zip"])
def test_all_or_nothing(android, tmp_path, name, capsys, monkeypatch):
    out = tmp_path / name
    good = android.read_text()
    android.write_text(good + "1: free 0x77\n")
    assert main(["convert", str(android), str(out)]) == 1
    assert re.match(rf"error: {android}:14: free of 0x77", capsys.readouterr().err)
    assert main(["convert", str(android), str(out), "--lenient"]) == 0
    assert "dropped 1 × unknown pointer" in capsys.readouterr().err
    out.unlink()

    wrong = tmp_path / "wrong.parquet"
    parquet.write(wrong, make_events([MALLOC, MALLOC], [0, 0], [8, 8]), {})
    assert main(["convert", str(wrong), str(out)]) == 1
    assert capsys.readouterr().err.endswith("event 1: malloc into slot 0, which is in use\n")
    assert main(["convert", str(android), str(tmp_path / "no" / name), "--lenient"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["convert", str(android), str(android), "--to", "rep", "--lenient"]) == 1
    assert "would overwrite an input trace" in capsys.readouterr().err

    def full(*_):
        raise OSError(28, "No space left on device")

    android.write_text(good)
    monkeypatch.setattr(export.android.Writer, "lines", full)
    monkeypatch.setattr(export.malloc_lab.Writer, "lines", full)
    assert main(["convert", str(android), str(out)]) == 1
    assert capsys.readouterr().err == f"error: {out}: No space left on device\n"
    assert {p.name for p in tmp_path.iterdir()} <= {"small.txt", "wrong.parquet", "cache"}


def test_a_workload_can_be_run_by_others(tmp_path):
    """Compare a generated trace with the traces that other tools' replays read."""
    w = workloads.load({"name": "churn", "operations": 20_000, "live": 500})
    for name in ("w.txt.gz", "w.rep"):
        there_and_back(tmp_path, w.events, name)
        shown = describe(tmp_path / name, strict=True)
        native_info = describe(tmp_path / "source.parquet", strict=True)
        for what in ("events", "operations", "peak_live_bytes", "allocated_bytes", "sizes"):
            assert shown[what] == native_info[what]


@pytest.mark.skipif(disabled(), reason="2.46 million lines take too long as plain Python")
def test_surfaceflinger_there_and_back(traces, tmp_path):
    source = traces / "android" / "surfaceflinger.zip"
    export.export(source, tmp_path / "s.txt", "android", strict=True)
    first, second = (formats.load(path)[0] for path in (source, tmp_path / "s.txt"))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
