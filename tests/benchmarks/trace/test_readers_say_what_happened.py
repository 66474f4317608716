"""Every reader returns the recorded events, with dense slots that are reused."""

import gzip
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import workloads
from benchmarks.events.events import CALLOC, FREE, MALLOC, OP_NAMES, REALLOC
from benchmarks.events.ledger import Ledger
from benchmarks.trace import formats
from benchmarks.trace.formats import objects, packing
from benchmarks.trace.formats.lines import ABSENT, BAD, NUMBER, WORD, split_lines, word
from benchmarks.trace.tools.info import Statistics, describe
from kernel.engine.jit import disabled
from tests.conftest import ROOT

EXPECTED = [
    ("malloc", 0, 100, 0, 0),
    ("calloc", 1, 100, 0, 0),
    ("malloc", 2, 8, 0, 0),
    ("realloc", 0, 300, 0, 1),
    ("free", 1, 0, 0, 1),
    ("free", -1, 0, 0, 0),
    ("realloc", 1, 50, 0, 0),
    ("aligned", 3, 64, 12, 0),
    ("realloc", 1, 0, 0, 1),
    ("free", 2, 0, 0, 0),
    ("malloc", 2, 16, 0, 1),
    ("thread_end", -1, 0, 0, 1),
    ("free", 2, 0, 0, 0),
]


def rows(events):
    names = [OP_NAMES[op] for op in events.op]
    columns = (events.slot, events.size, events.align, events.thread)
    return list(zip(names, *(c.tolist() for c in columns), strict=True))


def test_android(android):
    events, provenance = formats.load(android)
    assert rows(events) == EXPECTED
    assert provenance["format"] == "Android memory_replay"
    assert provenance["lines"] == 13
    assert provenance["dropped"] == {}


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_pieces_make_no_difference(android, monkeypatch, piece):
    monkeypatch.setattr(packing, "_PIECE", piece)
    monkeypatch.setattr(packing, "_LONGEST_LINE", piece)
    monkeypatch.setattr(formats, "_HEAD", 30)
    if piece < 40:  # shorter than a line: refused as not text
        with pytest.raises(formats.TraceError, match=r"a line exceeds \d+ bytes"):
            formats.load(android)
        return
    assert rows(formats.load(android)[0]) == EXPECTED
    android.write_text(android.read_text() + "186: free 0x9999\n")
    with pytest.raises(formats.TraceError, match=r"small\.txt:14: free of 0x9999, which was never"):
        formats.load(android)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \t\n"])
def test_line_ends(android, end):
    android.write_bytes(android.read_bytes().replace(b"\n", end.encode())[: -len(end)])
    assert rows(formats.load(android)[0]) == EXPECTED


def test_packed(android, tmp_path):
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(android.read_bytes()))
    assert rows(formats.load(packed)[0]) == EXPECTED
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("folder/", "")
        z.writestr("folder/README", "nothing")
        z.write(android, "folder/a.txt")
    assert rows(formats.load(archive)[0]) == EXPECTED
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(android, "whatever")
    assert rows(formats.load(archive)[0]) == EXPECTED


def test_times_of_newer_android_recordings(tmp_path):
    path = tmp_path / "timed.txt"
    path.write_text(
        "1: malloc 0x10 8 1000 1005\n1: calloc 0x20 2 8 1100 1105\n1: free 0x10 1250 1251\n"
    )
    events, _ = formats.load(path)
    assert events.time.tolist() == [0, 100, 250]
    assert events.size.tolist() == [8, 16, 0]


def test_what_the_program_was_refused_is_dropped(tmp_path, capsys):
    path = tmp_path / "t.txt"
    path.write_text("1: malloc 0x10 8\n1: malloc 0x0 99\n1: realloc 0x0 0x10 99\n1: free 0x10\n")
    events, provenance = formats.load(path)
    assert [OP_NAMES[op] for op in events.op] == ["malloc", "free"]
    assert provenance["dropped"] == {"failed_request": 2}
    assert "dropped 2 × failed request" in capsys.readouterr().err


def test_realloc_to_nothing_that_gives_a_pointer(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("1: malloc 0x10 8\n1: realloc 0x20 0x10 0\n1: free 0x20\n1: malloc 0x20 5\n")
    events, _ = formats.load(path)
    assert [(OP_NAMES[op], s) for op, s in zip(events.op, events.slot, strict=True)] == [
        ("malloc", 0),
        ("realloc", 0),
        ("free", -1),
        ("malloc", 0),
    ]


def test_wee_alloc(tmp_path):
    path = tmp_path / "w.trace"
    path.write_text("Alloc(552),\nAlloc(120),\nFree(0),\nAlloc(8),\nFree(2),\nFree(1),\n")
    events, provenance = formats.load(path)
    assert provenance["format"] == "wee_alloc"
    assert events.op.tolist() == [MALLOC, MALLOC, FREE, MALLOC, FREE, FREE]
    assert events.slot.tolist() == [0, 1, 0, 0, 0, 1]
    assert events.size.tolist() == [552, 120, 0, 8, 0, 0]


def test_malloc_lab(tmp_path):
    path = tmp_path / "m.rep"
    path.write_text("20000\n2\n5\n1\na 0 512\na 1 128\nr 0 640\nf 1\nf 0\n")
    events, provenance = formats.load(path)
    assert provenance["format"] == "malloc-lab"
    assert events.op.tolist() == [MALLOC, MALLOC, REALLOC, FREE, FREE]
    assert events.slot.tolist() == [0, 1, 0, 1, 0]
    assert events.size.tolist() == [512, 128, 640, 0, 0]


@pytest.mark.parametrize(
    ("name", "allocations", "events"),
    [("dogfood", 32_472, 46_076), ("gcc-hello", 11_431, 17_775), ("ffmpeg", 1832, 3637)],
)
def test_real_wee_alloc_traces(traces, name, allocations, events):
    about = describe(traces / "wee_alloc" / f"{name}.trace", strict=True)
    assert about["operations"]["malloc"] == allocations
    assert about["events"] == events


@pytest.mark.skipif(disabled(), reason="2.46 million lines take too long as plain Python")
def test_surfaceflinger(traces):
    about = describe(traces / "android" / "surfaceflinger.zip", strict=True)
    assert about["events"] == 2_455_240
    assert about["operations"] == {
        "malloc": 1_142_990,
        "free": 1_194_239,
        "realloc": 73_781,
        "calloc": 44_229,
        "thread_end": 1,
    }
    assert about["threads"] == 15
    assert about["frees_by_another_thread"] == 22_209
    assert about["free_null"] == 2514
    assert about["allocated_bytes"] == 359_355_753
    assert about["peak_live_bytes"] == 2_063_697
    assert about["peak_live_objects"] == about["slots"] == 3833
    assert about["end_live_bytes"] == 1_516_677
    w = workloads.load({"name": "trace", "path": str(traces / "android" / "surfaceflinger.zip")})
    assert (w.slots, w.operations) == (3833, 2_455_239)
    assert w.label == "trace(surfaceflinger.zip)"
    pinned = "b4280862aa0ce5dce16971ecd3449a1096aa2ef0de1b5d7826a87f9127e7d76d"
    assert w.fingerprint == pinned


def test_the_same_with_the_jit_off(android):
    code = f"""
from benchmarks import workloads
print(workloads.load({{"name": "trace", "path": {str(android)!r}}}).fingerprint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "XDG_CACHE_HOME": str(android.parent / "off")},
        check=True,
        capture_output=True,
        text=True,
    )
    here = workloads.load({"name": "trace", "path": str(android)})
    assert done.stdout.strip() == here.fingerprint


def test_second_load_comes_from_the_cache(android, monkeypatch):
    first = workloads.load({"name": "trace", "path": str(android)})
    monkeypatch.setattr(formats, "pieces", None)
    again = workloads.load({"name": "trace", "path": str(android)})
    assert first.fingerprint == again.fingerprint
    assert first.provenance == again.provenance


def test_an_edited_trace_is_imported_anew(android):
    formats.load(android)
    stat = android.stat()
    android.write_text(android.read_text().replace("0x3000 8\n", "0x3000 9\n", 1))
    os.utime(android, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert formats.load(android)[0].size[2] == 9


def test_without_a_cache_it_still_works(android, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert rows(formats.load(android)[0]) == EXPECTED


def test_a_damaged_cache_is_replaced(android):
    formats.load(android)
    (cached,) = formats.cache_directory().iterdir()
    cached.write_bytes(cached.read_bytes()[:-10])
    assert rows(formats.load(android)[0]) == EXPECTED


def test_concurrent_imports_agree(android):
    code = f"""
from pathlib import Path
from benchmarks.trace import formats
print(len(formats.load(Path({str(android)!r}))[0].op))
"""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["13"] * 3
    assert len(list(formats.cache_directory().iterdir())) == 1


# --- Compiled parts compared with plain Python ---------------------------------------------------


def test_fields():
    lines = split_lines(
        b"12: ab 0xfF,\t0x\n\n9223372036854775807 9223372036854775808 0x12g 3a\r\n(a)"
    )
    assert lines.fields.tolist() == [4, 0, 4, 1]
    assert lines.kinds[0].tolist() == [NUMBER, WORD, NUMBER, BAD] + [ABSENT] * 4
    assert lines.values[0, :3].tolist() == [12, word("ab"), 255]
    # The largest decimal numbers are refused, since no size comes near them.
    assert lines.kinds[2, :4].tolist() == [BAD, BAD, BAD, WORD]
    assert lines.values[3, 0] == word("a")


def test_addresses_of_64_bits():
    lines = split_lines(
        b"0x7fffffffffffffff 0x8000000000000000 0xffffffffffffffff 0x10000000000000000"
    )
    assert lines.values[0, :3].tolist() == [2**63 - 1, -(2**63), -1]
    assert lines.kinds[0, :4].tolist() == [NUMBER, NUMBER, NUMBER, BAD]
    assert split_lines(b"0x0000000000000000000000ff").values[0, 0] == 255


def test_more_fields_than_are_kept():
    lines = split_lines(b" ".join([b"1"] * 20))
    assert lines.fields.tolist() == [20]


RECORD = st.tuples(
    st.sampled_from([MALLOC, FREE, REALLOC, CALLOC]),
    st.sampled_from([0, 16, 32, 48, -16]),
    st.sampled_from([0, 16, 32, 48]),
    st.sampled_from([0, 8, 100]),
)


def by_plain_code(records):
    """Compute slots and problems of records with dictionaries."""
    live, nothing, seen, spare, used = {}, set(), set(), [], 0
    result = []
    for op, new, old, size in records:
        argument = {FREE: new, REALLOC: old}.get(op, 0)
        if argument and argument not in live and argument not in nothing:
            result.append((-1, objects.DEAD if argument in seen else objects.UNKNOWN))
            continue
        held = live.get(argument)
        if op == FREE or (op == REALLOC and held is not None and size == 0):
            if held is not None:
                spare.append(live.pop(argument))
            nothing.discard(argument)
            if op == REALLOC and new:
                nothing.add(new)
                seen.add(new)
            result.append((-1 if held is None else held, objects.FINE))
        elif new == 0:
            result.append((-1, objects.FAILED))
        elif new != argument and new in live:
            result.append((-1, objects.LIVE))
        else:
            if held is None:
                if not spare:
                    spare.append(used)
                    used += 1
                held = spare.pop()
            else:
                live.pop(argument)
            live[new] = held
            nothing.discard(new)
            seen.add(new)
            result.append((held, objects.FINE))
    return result


@given(st.lists(RECORD, max_size=40), st.integers(1, 40))
def test_slots_against_plain_code(records, piece):
    columns = np.array(records, "i8").reshape(-1, 4)
    columns[columns[:, 0] != REALLOC, 2] = 0
    records = [tuple(row) for row in columns.tolist()]
    them = objects.Objects()
    seen = []
    for begin in range(0, len(records), piece):
        part = columns[begin : begin + piece]
        none = np.zeros(len(part), "i8")
        op, pointer, old, size = (np.ascontiguousarray(part[:, i]) for i in range(4))
        made = objects.Records(none, op.astype("u1"), pointer, old, size, none, none, none, none)
        slot, problem = them.rename(made, strict=False)
        seen += zip(slot.tolist(), problem.tolist(), strict=True)
    assert seen == by_plain_code(records)


def test_many_pointers():
    n = 20_000
    pointer = 16 * np.arange(1, n + 1)
    zero = np.zeros(n, "i8")
    them = objects.Objects()
    for repeat in range(3):
        op = np.full(n, MALLOC, "u1")
        made = objects.Records(zero, op, pointer, zero, zero, zero, zero, zero, zero)
        slot, problem = them.rename(made, strict=True)
        assert not problem.any()
        assert sorted(slot.tolist()) == list(range(n)), repeat
        made = made._replace(op=np.full(n, FREE, "u1"))
        assert np.array_equal(them.rename(made, strict=True)[0], slot)


EVENT = st.tuples(
    st.sampled_from([0, 1, 2, 3, 5, 7]), st.integers(0, 3), st.sampled_from([0, 8, 9])
)


@given(st.lists(EVENT, max_size=40), st.integers(1, 40))
def test_ledger_against_plain_code(rows_, piece):
    from benchmarks.events.events import make_events

    held, owner, expected, live, peak = {}, {}, [], 0, 0
    for i, (op, slot, size) in enumerate(rows_):
        before = held.get(slot, -1)
        if op == 7:
            expected.append((-1, -1, False))
            continue
        after = {1: -1, 5: before}.get(op, size)
        if op == 2 and size == 0 and before >= 0:
            after = -1
        foreign = op == 1 and before >= 0 and owner[slot] != i % 2
        if op in (0, 2, 3) and before < 0:
            owner[slot] = i % 2
        held[slot] = after
        expected.append((before, after, foreign))
        live += max(after, 0) - max(before, 0)
        peak = max(peak, live)
    op, slot, size = np.array(rows_, "i8").reshape(-1, 3).T
    slot = np.where(op == 7, -1, slot)
    thread = np.arange(len(op)) % 2
    ledger, statistics, seen = Ledger(), Statistics(), []
    for begin in range(0, len(op), piece):
        part = slice(begin, begin + piece)
        events = make_events(op[part], slot[part], size[part], thread=thread[part])
        f = ledger.follow(events)
        seen += zip(f.before.tolist(), f.after.tolist(), f.foreign.tolist(), strict=True)
        statistics.add(events)
    assert seen == expected
    summary = statistics.summary()
    assert (summary["peak_live_bytes"], summary["end_live_bytes"]) == (peak, live)
