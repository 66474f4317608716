"""A trace that is decoded during its replay gives the same results as one held in memory."""

import json

import numpy as np
import pytest
import yaml

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events import parquet, stream
from benchmarks.events.events import (
    ALIGNED,
    CALLOC,
    FREE,
    MALLOC,
    REALLOC,
    THREAD_END,
    TOUCH_READ,
    Events,
    make_events,
)
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.run import observe, results, worker
from benchmarks.workloads import WorkloadError
from benchmarks.workloads.base.registry import fingerprint
from kernel.config import KernelConfig
from kernel.cost import COSTS

GROUP = 700
EVENTS = 10_000


def drawn(n: int) -> Events:
    """Return ``n`` random, consistent events that use every operation and every column."""
    rng = np.random.default_rng(7)
    rows, live = [], {}
    while len(rows) < n:
        s, thread = int(rng.integers(300)), int(rng.integers(5))
        kind, align, offset = FREE, 0, 0
        size = int(rng.integers(1, 3000))
        if s not in live:
            kind = int(rng.choice([MALLOC, CALLOC, ALIGNED, REALLOC]))
            align = int(rng.integers(4, 13)) if kind == ALIGNED else 0
            live[s] = size
        elif rng.random() < 0.2:
            kind = REALLOC
            live[s] = size
        elif rng.random() < 0.2:
            kind, offset = TOUCH_READ, int(rng.integers(live[s]))
            size = live[s] - offset
        elif rng.random() < 0.02:
            kind, s, size = THREAD_END, -1, 0
        else:
            del live[s]
            size = 0
        rows.append((kind, s, size, align, thread, offset, 100 * len(rows), s % 7))
    return make_events(**dict(zip(Events._fields, np.array(rows).T, strict=True)))


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Return the path of a Parquet trace with many row groups, of which the last is short."""
    monkeypatch.setattr(parquet, "ROW_GROUP", GROUP)
    path = tmp_path / "t.parquet"
    parquet.write(path, drawn(EVENTS), {"by": "test"})
    return path


def load(path, how, **settings):
    return workloads.load({"name": "trace", "path": str(path), "stream": how} | settings)


def simulation(workload, **kernel):
    return Simulation(registry.load("first_fit"), workload, KernelConfig(**kernel), OBSERVED)


def outcome(s):
    """Return everything that a run stores, and the final state of the loop."""
    s.verify_end()
    state = {name: s.r[name].tolist() for name in s.r.dtype.names}
    table = {name: column.tolist() for name, column in s.timeline().items()}
    return s.metrics(dict.fromkeys(COSTS, 1.5)), table, state, s.objects.tolist(), s.stopped_at


def test_streamed_and_whole_are_the_same_to_the_last_digit(trace):
    whole, streamed = load(trace, "never"), load(trace, "always")
    assert whole.stream is None
    assert streamed.events is None
    assert " ".join(streamed.stream.names) == "op slot size align thread offset site"
    for name in ("slots", "operations", "fingerprint", "touch", "name"):
        assert getattr(whole, name) == getattr(streamed, name)
    a, b = simulation(whole), simulation(streamed)
    assert a.length == b.length == EVENTS
    assert a.loop_bindings() == b.loop_bindings()
    for end in (None, None, 0, 1, GROUP, GROUP + 1, EVENTS - 1, 3 * GROUP - 1):
        a.replay(end)
        b.replay(end)
        assert outcome(a) == outcome(b)
        assert b.k.task.now == max((EVENTS if end is None else end) - 1, 0)
    assert b.waited > 0


def test_a_killed_process_ends_the_stream(trace):
    small = {"memory": 388 << 10, "overcommit": 1}
    a, b = (simulation(load(trace, how), **small) for how in ("never", "always"))
    for s in (a, b):
        s.replay()
    assert GROUP < a.stopped_at < EVENTS - GROUP
    assert outcome(a) == outcome(b)
    b.replay()  # works because the decoder of the abandoned pass has ended
    assert outcome(a) == outcome(b)


def test_auto_streams_long_traces_only(trace, monkeypatch):
    from benchmarks.workloads import trace as module

    assert load(trace, "auto").stream is None
    monkeypatch.setattr(module, "LONG", EVENTS)
    assert load(trace, "auto").stream is None
    monkeypatch.setattr(module, "LONG", EVENTS - 1)
    assert load(trace, "auto").stream is not None
    with pytest.raises(WorkloadError, match="stream=yes: choose one of auto, always, never"):
        load(trace, "yes")


def test_a_text_trace_streams_from_its_import(android, tmp_path):
    whole, streamed = load(android, "never"), load(android, "always")
    assert streamed.fingerprint == whole.fingerprint
    assert [len(piece.op) for piece in streamed.stream.pieces()] == [13]
    assert streamed.provenance["trace"] == whole.provenance["trace"]


def test_a_deleted_temporary_import_can_still_be_read(android, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.trace.formats._writable", lambda directory, otherwise: otherwise
    )
    pieces = list(load(android, "always").stream.pieces())
    assert fingerprint(pieces[0]) == load(android, "never").fingerprint


def test_a_file_without_facts_is_read_through_first(trace, monkeypatch):
    whole = load(trace, "never")
    monkeypatch.setattr(parquet.Facts, "parse", lambda given, events: None)
    reports = []
    streamed = workloads.load(
        {"name": "trace", "path": str(trace), "stream": "always"}, lambda *x: reports.append(x)
    )
    assert (streamed.slots, streamed.operations) == (whole.slots, whole.operations)
    assert streamed.fingerprint == whole.fingerprint
    assert reports[-1] == (1.0, "reading t.parquet")


def bad_trace(path, at):
    events = drawn(EVENTS)
    op, slot = events.op.copy(), events.slot.copy()
    at += int(np.flatnonzero(op[at:] == FREE)[0])
    slot[at] = 299_999
    parquet.write(path, events._replace(slot=slot), {})
    return at


@pytest.mark.parametrize("facts", ["none", "those of the sound trace"])
def test_impossible_events_stop_the_replay(trace, monkeypatch, facts):
    sound = parquet.Reader(trace).facts
    at = bad_trace(trace, 5000)
    assert parquet.Reader(trace).facts is None
    message = f"workload trace: {trace}: event {at}: free of slot 299999, which is empty"
    with pytest.raises(WorkloadError) as caught:
        load(trace, "never")
    assert str(caught.value) == message
    if facts == "none":
        with pytest.raises(WorkloadError) as caught:
            load(trace, "always")
        assert str(caught.value) == message
        return
    monkeypatch.setattr(parquet.Facts, "parse", lambda given, events: sound)
    s = simulation(load(trace, "always"))
    for _ in range(2):
        with pytest.raises(WorkloadError) as caught:
            s.replay()
        assert str(caught.value) == message
        assert s.k.task.now < at


def test_facts_of_another_trace(trace, monkeypatch):
    with parquet.Reader(trace) as reader:
        facts = reader.facts
    for name, change in (("slots", -1), ("slots", 1), ("operations", 1), ("peak_live", -8)):
        wrong = parquet.Facts(**(vars(facts) | {name: getattr(facts, name) + change}))
        monkeypatch.setattr(parquet.Facts, "parse", lambda given, events, wrong=wrong: wrong)
        pieces = []
        with pytest.raises(WorkloadError, match="facts in its metadata do not match its events"):
            pieces.extend(load(trace, "always").stream.pieces())
        # No piece was yielded whose slots exceed the table of objects.
        assert all(piece.slot.max() < wrong.slots for piece in pieces)


def test_at_most_AHEAD_pieces_are_decoded_early():
    made = []

    def pieces():
        for i in range(10):
            made.append(i)
            yield i

    used = stream.ahead(pieces())
    for i in range(10):
        assert next(used) == i
        assert len(made) <= i + 1 + stream.AHEAD
    assert next(used, None) is None


def test_closing_a_pass_stops_its_decoder():
    made = []

    def pieces():
        try:
            for i in range(1000):
                made.append(i)
                yield i
        finally:
            made.append("closed")

    used = stream.ahead(pieces())
    next(used)
    used.close()
    assert len(made) <= 2 + stream.AHEAD


def job(directory, trace, how):
    """Write the configuration of a run to ``directory``, where observe and worker read it."""
    from benchmarks.run.compose import compose

    overrides = ["allocator=first_fit", "workload=trace", f"workload.path={trace}"]
    content = compose([*overrides, f"workload.stream={how}"])
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(content))
    return directory


def test_observed_and_timed_runs(trace, tmp_path):
    runs = [job(tmp_path / how, trace, how) for how in ("never", "always")]
    for run in runs:
        assert observe.main(run) == observe.EXIT_OK, results.read_run(run)
    for name in ("metrics.json", "timeline.parquet"):
        assert runs[0].joinpath(name).read_bytes() == runs[1].joinpath(name).read_bytes()
    never, always = (results.read_run(run) for run in runs)
    for name in ("outcome", "events", "hashes", "address_checksum"):
        assert never[name] == always[name]
    assert json.loads((runs[1] / "metrics.json").read_text())["operations"] > 0
    assert worker.time_replays(2, runs[1], always, EVENTS) > 0
