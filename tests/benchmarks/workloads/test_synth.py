"""Synth generates a trace from a trace: properties that it preserves, scales or destroys."""

import numpy as np
import pytest

from allocators.base import registry
from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, REALLOC, THREAD_END, TOUCH_WRITE, make_events
from benchmarks.events.ledger import Ledger
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.workloads import WorkloadError, synth
from kernel.config import KernelConfig
from kernel.cost import COSTS

#: Shipped traces that the model is judged on, and allocators.
TRACES = ("sqlite", "git", "jq", "python")
ALLOCATORS = ("first_fit", "segregated", "buddy")
#: What must be within 10 %.
MEASURES = ("peak_heap", "mean_heap", "peak_rss", "mean_rss", "faults")


@pytest.fixture
def trace(tmp_path):
    """Return a program of 6000 requests: small objects, then a few large ones, then a drain."""
    rng = np.random.default_rng(1)
    rows, live, spare = [], [], list(range(5000))[::-1]
    for i in range(6000):
        large = 2000 <= i < 4000 and i % 100 == 0
        slot = spare.pop()
        rows.append((MALLOC, slot, 200_000 if large else int(rng.integers(16, 200)), i % 3))
        live.append(slot)
        if i % 7 == 0:
            rows.append((REALLOC, live[-int(rng.integers(1, 1 + min(len(live), 300)))], 300, 1))
        if i % 11 == 0:
            rows.append((TOUCH_WRITE, slot, 8, 1))
        for _ in range(2 if i > 4000 else int(rng.integers(0, 2))):
            if live:
                gone = live.pop(-min(int(rng.integers(1, 40)), len(live)))
                rows.append((FREE, gone, 0, 2))
                spare.append(gone)
        if i % 1000 == 0:
            rows.append((FREE, -1, 0, 0))
    rows.append((THREAD_END, -1, 0, 2))
    path = tmp_path / "t.parquet"
    op, slot, size, thread = np.array(rows).T
    parquet.write(path, make_events(op, slot, size, thread=thread, time=np.arange(len(op))), {})
    return path


def load(path, **settings):
    return workloads.load({"name": "synth", "path": str(path)} | settings)


def live(events):
    """Return live bytes and objects after each event."""
    f = Ledger().follow(events)
    there = (f.after >= 0).astype(int) - (f.before >= 0)
    return np.cumsum(np.maximum(f.after, 0) - np.maximum(f.before, 0)), np.cumsum(there)


@pytest.fixture
def simple(tmp_path):
    """Return a program of 20,000 objects of 16 · (1 + lifetime) bytes, lifetimes up to 30 births.

    It also has 400 objects that are never freed, all born in the first half.
    """
    rng = np.random.default_rng(2)
    n = 20_000
    born = np.arange(n, dtype=float)
    age = rng.integers(0, 31, n)
    stay = np.sort(rng.uniform(0, n / 2, 400))
    at = np.concatenate([born, born + age + 0.5, stay])
    op = np.concatenate([np.full(n, MALLOC), np.full(n, FREE), np.full(400, MALLOC)])
    slot = np.concatenate([np.arange(n), np.arange(n), n + np.arange(400)])
    size = np.concatenate([16 * (1 + age), np.zeros(n, "i8"), np.full(400, 1000)])
    order = np.argsort(at, kind="stable")
    path = tmp_path / "simple.parquet"
    parquet.write(path, make_events(op[order], slot[order], size[order]), {})
    return path


def true_lifetimes(events, times):
    """Return the share of freed objects whose lifetime matches their size, scaled by ``times``."""
    t = synth.lives(events)
    owner = t.object[t.dies]
    age = (t.clock - t.object)[t.dies] / times
    said = events.size[t.birth][owner] / 16 - 1
    return np.mean(np.abs(age - said) <= 0.03 * said + 1), len(owner)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"block": 1},
        {"longer": 2.5, "block": 8},
        {"larger": 1.7, "block": 8},
        {"longer": 1.3, "larger": 2, "seed": 5},
        {"shuffle": True},
        {"shuffle": True, "larger": 2},
    ],
)
def test_events_are_consistent(trace, settings):
    w = load(trace, **settings)
    for _ in parquet.audited("synth", iter([w.events])):
        pass
    # A thread ends once, after its last event.
    ends = np.flatnonzero(w.events.op == THREAD_END)
    assert w.events.thread[ends].tolist() == [2]
    assert (w.events.thread[ends[0] + 1 :] != 2).all()
    # Every realloc finds its object: after the free it would be a new allocation.
    assert (Ledger().follow(w.events).before[w.events.op == REALLOC] >= 0).all()
    assert w.slots == w.events.slot.max() + 1
    assert load(trace, **settings).fingerprint == w.fingerprint
    assert load(trace, **settings | {"seed": 77}).fingerprint != w.fingerprint


def test_one_block_is_the_trace_itself(trace, monkeypatch):
    monkeypatch.setattr(synth, "PHASES", 1)
    monkeypatch.setattr(synth, "SWING", 100)
    original = workloads.load({"name": "trace", "path": str(trace)}).events
    again = load(trace, block=1 << 30).events
    for name in ("op", "size", "thread"):
        assert np.array_equal(getattr(again, name), getattr(original, name))
    assert all(np.array_equal(*pair) for pair in zip(live(again), live(original), strict=True))
    assert len(again.time) == 0


def test_every_event_recurs(trace):
    original = workloads.load({"name": "trace", "path": str(trace)}).events
    again = load(trace, block=4).events
    assert not np.array_equal(again.size, original.size)
    columns = [np.stack([e.op, e.size, e.thread]) for e in (original, again)]
    first, second = (c[:, np.lexsort(c)] for c in columns)
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("longer", "larger"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_sizes_keep_their_lifetimes(simple, longer, larger):
    settings = {"longer": longer, "larger": larger, "block": 1}
    share, objects = true_lifetimes(load(simple, **settings).events, larger)
    assert share > 0.9  # some die in the next phase, whose blocks are permuted
    assert objects == pytest.approx(longer * larger * 20_000, rel=0.05)
    null, _ = true_lifetimes(load(simple, **settings, shuffle=True).events, larger)
    assert null < 0.2


@pytest.mark.parametrize(("longer", "larger"), [(1, 1), (3, 1), (1, 3), (2, 2.5)])
def test_longer_and_larger(simple, longer, larger):
    bytes_, counts = live(workloads.load({"name": "trace", "path": str(simple)}).events)
    events = load(simple, longer=longer, larger=larger, block=16).events
    more, many = live(events)
    assert len(events.op) == pytest.approx(longer * larger * len(bytes_), rel=0.05)
    assert more.mean() == pytest.approx(larger * bytes_.mean(), rel=0.05)
    assert many.max() == pytest.approx(larger * counts.max(), rel=0.1)
    # Phases keep their order: the objects that stay are born in the first half.
    for part in (0.25, 0.5, 0.75):
        expected = larger * counts[int(len(counts) * part)]
        assert many[int(len(many) * part)] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", ["jq", "python", "pythreads", "gdb"])
def test_factor_longer_multiplies_the_length(name):
    """In these programs, up to half of the objects outlive their phase."""
    path = f"shipped:{name}"
    original = workloads.load({"name": "trace", "path": path}).events
    events = load(path, longer=3).events
    assert len(events.op) == pytest.approx(3 * len(original.op), rel=0.05)
    assert live(events)[0].max() == pytest.approx(live(original)[0].max(), rel=0.05)
    for column in (original, events):
        ends = column.thread[column.op == THREAD_END] if len(column.thread) else []
        assert len(ends) == len(set(ends))


def test_phases_follow_live_bytes(monkeypatch):
    """Live bytes change by 50 % twice; each time the next birth starts a phase."""
    monkeypatch.setattr(synth, "PHASES", 1)
    op = [MALLOC] * 4 + [MALLOC, MALLOC, FREE, MALLOC, MALLOC]
    slot = [0, 1, 2, 3, 4, 5, 4, 6, 7]
    size = [10, 1, 1, 1, 50, 1, 0, 1, 1]
    trace = synth.lives(make_events(op, slot, size))
    # The first birth itself exceeds the swing (10 of 65 bytes), so the next starts a phase.
    assert trace.phase.tolist() == [0, 1, 1, 1, 1, 2, 3, 3]


def test_a_trace_without_objects(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write(path, make_events([FREE, THREAD_END], [-1, -1], [0, 0]), {})
    with pytest.raises(WorkloadError, match=r"t.parquet: the trace has no allocations$"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"longer": 0.5}, "longer=0.5: must be 1 to 1000"),
        ({"larger": 1001}, "larger=1001: must be 1 to 1000"),
        ({"longer": "twice"}, "longer=twice: expected a number"),
        ({"longer": True}, "longer=True: expected a number"),
        ({"longer": float("nan")}, "longer=nan: must be"),
        ({"block": 0}, "block=0: must be 1 to"),
        ({"shuffle": "some"}, "shuffle=some: choose one of false, true"),
        ({"longer": 1000, "larger": 1000}, "more than 2147483648 events"),
        ({"path": "none.parquet"}, "none.parquet: No such file"),
    ],
)
def test_bad_settings(trace, settings, complaint):
    with pytest.raises(WorkloadError, match=complaint.replace("(", "\\(")):
        load(**{"path": trace} | settings)
    assert "\n" not in complaint


@pytest.fixture(scope="module")
def models():
    """Return the shipped traces, the synthetic ones made from them, and their null models."""
    kinds = {"trace": {}, "synth": {}, "null": {"name": "synth", "shuffle": True}}
    return {
        (trace, kind): workloads.load({"name": kind, "path": f"shipped:{trace}"} | more)
        for trace in TRACES
        for kind, more in kinds.items()
    }


def measured(plugin, w):
    """Return the MEASURES of one replay."""
    simulation = Simulation(plugin, w, KernelConfig(), OBSERVED)
    simulation.replay()
    metrics = simulation.metrics(dict.fromkeys(COSTS, 1.0))
    return np.array([metrics[name] for name in MEASURES])


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_allocators_behave_as_on_the_trace(models, allocator):
    """Heap, RSS and faults are within 10 % of the trace's, but not with shuffled lifetimes."""
    plugin = registry.load(allocator)
    for name in TRACES:
        original, true, null = (
            measured(plugin, models[name, kind]) for kind in ("trace", "synth", "null")
        )
        ratios = (name, MEASURES, true / original, null / original)
        assert np.abs(true / original - 1).max() < 0.1, ratios
        assert np.abs(null / original - 1).max() > 0.2, ratios


def test_label(trace):
    settings = {"name": "synth", "path": str(trace), "longer": 1.5, "shuffle": True}
    assert workloads.label(settings) == "synth(t.parquet, longer=1.5, shuffle=true)"
