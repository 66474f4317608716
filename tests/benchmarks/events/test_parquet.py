"""A Parquet trace is small, stores facts about its events, and can be read by other programs."""

import json

import numpy as np
import pytest
from pyarrow import parquet as pq

from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import (
    ALIGNED,
    FREE,
    MALLOC,
    OP_NAMES,
    REALLOC,
    THREAD_END,
    TOUCH_WRITE,
    Events,
    make_events,
    operation_count,
    slot_count,
)
from benchmarks.events.facts import Audit, Fingerprint
from benchmarks.events.ledger import Ledger
from benchmarks.trace import formats
from benchmarks.workloads.base.registry import fingerprint

#: Upper bound on bytes per event.
LIMIT = 8


def size_of(path, events):
    return path.stat().st_size / len(events.op)


@pytest.mark.parametrize(
    "name", ["android/surfaceflinger.zip", "wee_alloc/dogfood.trace", "wee_alloc/gcc-hello.trace"]
)
def test_recorded_traces_take_few_bytes_per_event(traces, tmp_path, name):
    out = tmp_path / "t.parquet"
    formats.convert(traces / name, out, strict=True)
    events, _ = formats.load(out)
    assert size_of(out, events) < 1.0
    with parquet.Reader(out) as reader:
        assert reader.facts.fingerprint == fingerprint(events)


def test_threads_and_times_are_stored_compactly(tmp_path):
    # Harder to compress than a recorded program: sizes, objects, threads and times are random.
    n = 300_000
    rng = np.random.default_rng(3)
    w = workloads.load({"name": "churn", "operations": n, "live": 5000})
    events = w.events._replace(
        thread=rng.integers(0, 8, n).astype("i4"), time=np.cumsum(rng.geometric(1e-2, n))
    )
    out = tmp_path / "t.parquet"
    parquet.write(out, events, {})
    assert size_of(out, events) < LIMIT
    assert all((a == b).all() for a, b in zip(formats.load(out)[0], events, strict=True))


def test_polars_and_duckdb_read_a_trace(tmp_path):
    polars = pytest.importorskip("polars")
    duckdb = pytest.importorskip("duckdb")
    events = workloads.load({"name": "churn", "operations": 5000, "live": 50}).events
    out = tmp_path / "t.parquet"
    parquet.write(out, events._replace(time=np.arange(5000)), {})
    for table in (polars.read_parquet(out).to_pandas(), duckdb.read_parquet(str(out)).df()):
        assert table["size"].tolist() == events.size.tolist()
        assert table["time"].tolist() == list(range(5000))


def facts_of(path):
    with parquet.Reader(path) as reader:
        return reader.facts


def test_facts(android, tmp_path, monkeypatch):
    out = tmp_path / "t.parquet"
    formats.convert(android, out, strict=True)
    events, _ = formats.load(out)
    facts = facts_of(out)
    assert (facts.events, facts.operations, facts.slots) == (
        len(events.op),
        operation_count(events),
        slot_count(events),
    )
    assert (facts.peak_live, facts.peak_live_objects) == (422, 4)  # as "info" prints
    assert facts.fingerprint == fingerprint(events)
    with parquet.Reader(out) as reader:
        assert parquet.compute_facts(reader) == facts
    stored = json.loads(pq.read_metadata(out).metadata[b"malloc-bench"])
    assert stored["facts"] == vars(facts)
    # The facts do not depend on how the events are cut into pieces.
    monkeypatch.setattr(parquet, "ROW_GROUP", 5)
    with parquet.Writer(out) as writer:
        for i in range(len(events.op)):
            writer.add(Events(*(column[i : i + 1] for column in events)))
    assert facts_of(out) == facts


@pytest.mark.parametrize(
    "facts",
    [None, 5, {}, {"events": 1}, "slots", "events", "fingerprint", "more"],
)
def test_malformed_facts_are_ignored(android, tmp_path, facts):
    out = tmp_path / "t.parquet"
    formats.convert(android, out, strict=True)
    content = json.loads(pq.read_metadata(out).metadata[b"malloc-bench"])
    if isinstance(facts, str):
        value = {"slots": -1, "events": 12, "fingerprint": 7, "more": 1}[facts]
        facts = content["facts"] | {facts: value}
    table = pq.read_table(out)
    meta = {"malloc-bench": json.dumps(content | {"facts": facts})}
    pq.write_table(table.replace_schema_metadata(meta), out)
    assert facts_of(out) is None
    assert len(formats.load(out)[0].op) == 13


def test_a_trace_without_events_has_facts(tmp_path):
    out = tmp_path / "t.parquet"
    none = make_events([], [], [])
    parquet.write(out, none, {})
    facts = facts_of(out)
    assert (facts.events, facts.slots, facts.peak_live) == (0, 0, 0)
    assert facts.fingerprint == fingerprint(none)


def test_the_fingerprint_does_not_depend_on_pieces():
    events = workloads.load({"name": "churn", "operations": 5000, "live": 50}).events
    silent = events._replace(time=np.zeros(5000, "i8"))
    for cuts in ([], [1], [1234, 1234, 4999]):
        whole = Fingerprint()
        for begin, end in zip([0, *cuts], [*cuts, 5000], strict=True):
            whole.add(Events(*(column[begin:end] for column in silent)))
        assert whole.hexdigest() == fingerprint(events)


def test_the_fingerprint_tells_columns_apart():
    events = workloads.load({"name": "churn", "operations": 5000, "live": 50}).events
    ones, zeros = np.ones(5000, "i4"), np.zeros(5000, "i4")
    variants = [events, events._replace(thread=ones), events._replace(site=ones)]
    assert len({fingerprint(variant) for variant in variants}) == 3
    assert fingerprint(events._replace(thread=zeros)) == fingerprint(events)


@pytest.mark.parametrize(("offset", "size", "fits"), [(3, 5, True), (3, 6, False), (-1, 1, False)])
def test_touches_stay_inside_their_blocks(offset, size, fits):
    wrong = Audit().add(make_events([MALLOC, TOUCH_WRITE], [0, 0], [8, size], offset=[0, offset]))
    assert (wrong is None) == fits
    if not fits:
        assert (
            wrong == f"event 1: touch_write of bytes {offset} to {offset + size} "
            "of an object of 8 bytes"
        )


# --- The audit against the ledger ----------------------------------------------------------------


def judged(events):
    """Find the first impossible event with the ledger and simple rules, one event at a time."""
    ledger, live, peak = Ledger(), 0, 0
    for i in range(len(events.op)):
        row = Events(*(column[i : i + 1] for column in events))
        op, slot, size = int(row.op[0]), int(row.slot[0]), int(row.size[0])
        offset = int(row.offset[0]) if len(row.offset) else 0
        if op >= len(OP_NAMES) or size < 0 or slot < (-1 if op in (FREE, THREAD_END) else 0):
            return i, peak
        followed = ledger.follow(row)
        before, after = int(followed.before[0]), int(followed.after[0])
        if op == THREAD_END:
            continue
        if op > ALIGNED:
            if before < 0 or not 0 <= offset <= before - size:
                return i, peak
        elif slot >= 0:
            if op == FREE and before < 0:
                return i, peak
            if op not in (FREE, REALLOC) and before >= 0:
                return i, peak
            live += max(after, 0) - max(before, 0)
            peak = max(peak, live)
    return -1, peak


def test_audit_and_ledger_agree():
    rng = np.random.default_rng(11)
    sound = 0
    for _ in range(150):
        n = int(rng.integers(1, 60))
        op = rng.choice([MALLOC, FREE, REALLOC, ALIGNED, TOUCH_WRITE, THREAD_END], n)
        size = rng.integers(0, 4, n) * (op != FREE)
        slot, offset = rng.integers(-1, 40, n), rng.integers(-1, 3, n) * (op == TOUCH_WRITE)
        events = make_events(op, slot, size, offset=offset)
        # Most random events are impossible: delete them, but sometimes keep one.
        while True:
            i, peak = judged(events)
            if i < 0 or rng.random() < 0.02:
                break
            n -= 1
            events = Events(*(np.delete(c, i) if len(c) else c for c in events))
        cut = int(rng.integers(len(events.op) + 1))
        audit = Audit()
        pieces = [Events(*(c[a:b] for c in events)) for a, b in ((0, cut), (cut, n))]
        found = [audit.add(piece) for piece in pieces]
        if i < 0:
            sound += 1
            assert found == [None, None]
            facts = audit.facts("")
            assert (facts.events, facts.peak_live) == (len(events.op), peak)
            assert facts.slots == slot_count(events)
        else:
            assert found[-1].startswith(f"event {i}: ")
            assert audit.add(pieces[0]) == found[-1]
    assert 15 < sound < 145
