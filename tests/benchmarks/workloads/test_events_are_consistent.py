"""Generated events are consistent, and match the description of each workload."""

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.events.events import ALLOCATOR_OPS, FREE, MALLOC, REALLOC, THREAD_END
from benchmarks.events.ledger import Ledger
from benchmarks.events.parquet import audited

SMALL = {
    "alloc_test": {"operations": 5001, "threads": 3, "places": 2000, "turn": 7},
    "cache_scratch": {"operations": 5001, "threads": 3, "writes": 2},
    "cache_thrash": {"operations": 5001, "threads": 3, "writes": 2},
    "churn": {"operations": 5001, "live": 100},
    "larson": {"operations": 5001, "threads": 3, "blocks": 40, "lifetime": 150, "turn": 7},
    "malloc_simple": {"operations": 5001, "least": 3, "most": 50},
    "malloc_thread": {"operations": 5001, "threads": 3, "slots": 64, "turn": 7},
    "mstress": {"operations": 5001, "threads": 3, "scale": 1, "places": 20, "turn": 7},
    "queue": {"operations": 5001, "live": 100, "burst": 9},
    "ramp": {"operations": 5001, "peak": 300, "plateau": 40, "cycles": 3},
    "realloc_growth": {"operations": 5001, "vectors": 60},
    "rptest": {"operations": 5001, "threads": 3, "blocks": 200, "turn": 7},
    "sawtooth": {"operations": 5001, "peak": 300, "kept": 5},
    "sh6bench": {"operations": 5001, "threads": 3, "blocks": 200, "turn": 7},
    "stack": {"operations": 5001, "depth": 50},
    "xmalloc_test": {"operations": 5001, "workers": 3, "batch": 50, "limit": 5, "turn": 7},
}
#: Nothing in these is random.
FIXED = {"cache_scratch", "cache_thrash", "malloc_simple", "sh6bench"}
GENERATED = sorted(SMALL)


def small(name, **more):
    return workloads.load({"name": name, "seed": 4} | SMALL[name] | more)


def live_objects(events):
    """Return the number of live objects after each event."""
    followed = Ledger().follow(events)
    return np.cumsum((followed.after >= 0).astype(int) - (followed.before >= 0))


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("operations", [0, 1])
def test_events_are_consistent(name, operations):
    w = small(name, operations=SMALL[name]["operations"] + operations)
    assert w.operations == SMALL[name]["operations"] + operations
    for _ in audited(name, iter([w.events])):
        pass
    assert w.slots == w.events.slot.max() + 1
    assert (w.events.size[w.events.op == MALLOC] > 0).all()
    # Only a realloc may name an empty slot, but these workloads have no such realloc.
    before = Ledger().follow(w.events).before
    assert (before[w.events.op == REALLOC] >= 0).all()


@pytest.mark.parametrize("name", GENERATED)
def test_equal_seeds_give_equal_events(name):
    one, again, other = small(name), small(name), small(name, seed=5)
    assert one.fingerprint == again.fingerprint
    assert (one.fingerprint == other.fingerprint) == (name in FIXED)
    assert one.touch == "all"
    assert small(name, touch="first").fingerprint == one.fingerprint


def test_churn_keeps_its_number_of_live_blocks():
    w = small("churn")
    live = live_objects(w.events)
    assert w.slots == 100
    assert live[99] == 100
    assert set(live[99:].tolist()) == {99, 100}
    assert live[-1] == 100 - (5001 - 100) % 2


def test_stack_is_last_in_first_out():
    w = small("stack")
    stack = []
    for op, slot in zip(w.events.op, w.events.slot, strict=True):
        if op == MALLOC:
            stack.append(slot)
        else:
            assert stack.pop() == slot
    assert 45 <= w.slots <= 50


def test_queue_is_first_in_first_out():
    w = small("queue")
    queue = []
    for op, slot in zip(w.events.op, w.events.slot, strict=True):
        if op == MALLOC:
            queue.append(slot)
        else:
            assert queue.pop(0) == slot
    live = live_objects(w.events)
    assert live.max() == 109
    assert live[100:].min() == 100


def test_ramp_reaches_peak_and_plateau():
    live = live_objects(small("ramp").events)
    assert live.max() == 300
    assert np.count_nonzero((live[1:] == 300) & (live[:-1] < 300)) > 3
    first_peak = int(np.argmax(live == 300))
    assert live[first_peak:].min() == 39
    assert live[-1] in (39, 40)


def test_larson_bleeds_between_threads():
    w = small("larson")
    events = w.events
    assert w.slots == 120
    assert (live_objects(events)[120:] >= 119).all()
    followed = Ledger().follow(events)
    foreign = np.count_nonzero(followed.foreign)
    frees = np.count_nonzero(events.op == FREE)
    assert 120 < foreign < 0.6 * frees
    ended = set()
    for op, thread in zip(events.op.tolist(), events.thread.tolist(), strict=True):
        assert thread not in ended
        if op == THREAD_END:
            ended.add(thread)
    threads = set(events.thread.tolist())
    assert threads == set(range(len(threads)))
    assert len(threads - ended) <= 3
    lives = [np.count_nonzero((events.thread == t) & (events.op == FREE)) for t in ended - {0}]
    assert set(lives) == {150}
    mallocs = events.size[events.op == MALLOC]
    assert mallocs.min() >= 8
    assert mallocs.max() <= 1000


@pytest.mark.parametrize("factor", [101, 150, 200])
def test_vectors_grow_by_the_factor(factor):
    w = small("realloc_growth", factor=factor, largest=4096)
    followed = Ledger().follow(w.events)
    grows = w.events.op == REALLOC
    old, new = followed.before[grows], followed.after[grows]
    assert (new % 8 == 0).all()
    exact = old * factor // 100
    assert (new >= np.minimum(exact - 7, old + 8)).all()
    assert (new <= np.maximum(exact, old + 8)).all()
    assert new.max() <= 4096
    assert (w.events.size[w.events.op == MALLOC] == 32).all()
    assert np.count_nonzero(w.events.op == FREE) > 0


def test_operation_codes_are_those_of_allocators():
    w = small("larson")
    assert w.operations == np.count_nonzero(w.events.op < ALLOCATOR_OPS) == 5001
    assert len(w.events.op) > 5001


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "churn", "operations": 1, "live": 1},
        {"name": "stack", "operations": 1, "depth": 1},
        {"name": "queue", "operations": 1, "live": 1, "burst": 1},
        {"name": "ramp", "operations": 1, "peak": 1, "plateau": 1, "cycles": 1},
        {"name": "larson", "operations": 1, "threads": 1, "blocks": 1},
        {"name": "larson", "operations": 9, "threads": 1, "blocks": 1, "lifetime": 1, "turn": 1},
        {"name": "realloc_growth", "operations": 1, "vectors": 1},
        {"name": "realloc_growth", "operations": 50, "vectors": 100, "largest": 32},
        {"name": "alloc_test", "operations": 1, "places": 2, "largest": 8},
        {"name": "cache_scratch", "operations": 4, "threads": 2},
        {"name": "cache_thrash", "operations": 1, "threads": 2, "writes": 0},
        {"name": "malloc_simple", "operations": 18, "least": 1, "most": 1},
        {"name": "malloc_thread", "operations": 1, "threads": 1, "slots": 1, "turn": 1},
        {"name": "mstress", "operations": 1, "threads": 1},
        {"name": "rptest", "operations": 1, "threads": 1, "blocks": 1},
        {"name": "rptest", "operations": 50, "threads": 2, "blocks": 1, "cross": 1, "turn": 1},
        {"name": "sawtooth", "operations": 1, "peak": 1, "kept": 100},
        {"name": "sh6bench", "operations": 1, "threads": 1, "blocks": 5, "largest": 2},
        {"name": "xmalloc_test", "operations": 1, "workers": 1, "batch": 1, "limit": 1},
    ],
)
def test_smallest(settings):
    w = workloads.load(settings)
    assert w.operations == settings["operations"]
    for _ in audited(settings["name"], iter([w.events])):
        pass
