"""Replay of traces on real threads: order is kept within a thread and within an object only."""

import dataclasses

import numpy as np
import pytest

from allocators.base.library import LibraryError
from benchmarks import workloads
from benchmarks.events.events import FREE, MALLOC, REALLOC, THREAD_END, make_events
from benchmarks.real import machine_code
from benchmarks.real.loop import LoopError, compare
from benchmarks.real.memory import RealRun
from benchmarks.real.threads import Naming, ThreadedProcess
from benchmarks.real.timed import ThreadedTimed, Timed, make_timed

from .conftest import library

LARSON = {"name": "larson", "operations": 20_000, "blocks": 100, "lifetime": 1500, "seed": 1}


@pytest.fixture
def threaded():
    """The C library of this machine, with real threads."""
    return library("native/glibc", threads="real")


def test_naming_gives_each_object_its_own_number():
    # Slot 0 is filled twice; the number of its first object is not reused before reuse().
    naming = Naming(2, 8)
    op = [MALLOC, MALLOC, FREE, REALLOC, REALLOC, FREE, THREAD_END]
    slot = [0, 1, 0, 0, 0, -1, -1]
    ids, turn = naming.name(make_events(op, slot, [8, 8, 0, 8, 0, 0, 0]))
    assert ids.tolist() == [0, 1, 0, 2, 2, -1, -1]
    assert turn.tolist() == [0, 0, 1, 0, 1, -1, -1]
    assert sorted(naming.reuse().tolist()) == [0, 2]
    ids, turn = naming.name(make_events([MALLOC, FREE], [0, 1], [8, 0]))
    assert ids[0] in (0, 2)
    assert (ids[1], turn.tolist()) == (1, [0, 1])


def test_threads_and_objects_keep_their_order(threaded):
    larson = workloads.load(LARSON).events
    with ThreadedProcess(threaded, slots=int(larson.slot.max()) + 1, touch="all") as process:
        size, held, seen = ThreadedProcess.BATCH, set(), []
        for first in range(0, len(larson.op), size):
            events = larson._replace(
                **{n: c[first : first + size] for n, c in larson._asdict().items() if len(c)}
            )
            moved, answers, log = process.play_threads(events)
            seen.append(moved.thread)
            for thread in np.unique(events.thread):
                then, now = events.thread == thread, moved.thread == thread
                assert (events.op[then] == moved.op[now]).all()
                assert (events.size[then] == moved.size[now]).all()
            for op, slot in zip(moved.op.tolist(), moved.slot.tolist(), strict=True):
                if op == MALLOC:
                    assert slot not in held
                    held.add(slot)
                elif op == FREE:
                    held.remove(slot)
            assert (np.diff(log["event"]) >= 0).all()
            assert (answers["address"][moved.op == MALLOC] > 0).all()
    assert (np.concatenate(seen) != larson.thread).any()  # the threads ran in parallel
    assert process.thread_count > 1


def test_some_metrics_do_not_depend_on_the_interleaving(threaded):
    larson = workloads.load(LARSON)
    one, real = RealRun(library("native/glibc", threads="one"), larson), RealRun(threaded, larson)
    for name in ("operations", "failed", "skipped", "allocated", "end_live"):
        assert one.metrics()[name] == real.metrics()[name], name
    assert (one.thread_count, real.thread_count) == (1, len(np.unique(larson.events.thread)))
    # Each thread has its own arena, which grows by mprotect.
    assert one.metrics()["syscalls_mprotect"] == 0
    assert real.metrics()["syscalls_mprotect"] > 0
    assert real.metrics()["end_rss"] == (real.end.private - real.start.private) * 4096


def test_full_logs_stop_all_threads_and_lose_nothing(threaded, monkeypatch):
    larson = workloads.load(LARSON)
    monkeypatch.setattr(ThreadedProcess, "LOG_ROOM", machine_code.MARGIN + 2)
    monkeypatch.setattr(ThreadedProcess, "BATCH", 1500)
    found = RealRun(threaded, larson).metrics()
    assert found["operations"] == larson.operations
    assert found["failed"] == 0


def test_a_thread_number_may_be_used_again_after_its_end(threaded):
    op = [MALLOC, MALLOC, THREAD_END, FREE, MALLOC]
    columns = {"thread": [0, 1, 1, 0, 1], "align": [0] * 5}
    events = make_events(op, [0, 1, -1, 1, 2], [8, 8, 0, 0, 8], **columns)
    with ThreadedProcess(threaded, slots=3, touch="all") as process:
        for first, last in ((0, 3), (3, 5)):
            part = type(events)(*(c[first:last] for c in events))
            moved, answers, _ = process.play_threads(part)
            assert (answers["address"][moved.op == MALLOC] > 0).all()


@pytest.mark.hardening(14)
def test_numbers_of_threads_that_ended_are_used_again(threaded, monkeypatch):
    """Each thread frees the block of the one before, in one batch."""
    n = 9
    op = np.tile([MALLOC, FREE, THREAD_END], n)
    slot = np.stack([np.arange(n), np.arange(n) - 1, np.full(n, -1)], 1).ravel()
    size = np.where(op == MALLOC, 1000, 0)
    events = make_events(op, slot, size, thread=np.arange(1, n + 1).repeat(3), align=[0] * len(op))
    monkeypatch.setattr(ThreadedProcess, "THREADS", 4)
    with ThreadedProcess(threaded, slots=n, touch="all") as process:
        parts = [process.play_threads(part) for part in process.parts(events)]
        assert sum(int((a["address"][m.op == MALLOC] > 0).sum()) for m, a, _ in parts) == n
        assert process.thread_count == n + 1
        alive = make_events([FREE] * 4, [-1] * 4, [0] * 4, thread=[20, 21, 22, 23])
        with pytest.raises(LibraryError, match="event 30: more than 4 threads are alive at once"):
            list(process.parts(alive))


def test_timed_on_threads(threaded, glibc):
    larson = workloads.load(LARSON)
    timing = make_timed(threaded, larson)
    assert isinstance(timing, ThreadedTimed)
    assert timing.replay() > 0
    assert timing.replay() > 0
    robson = workloads.load({"name": "robson", "budget": 65536, "doublings": 4})
    assert isinstance(make_timed(threaded, robson), Timed)
    with pytest.raises(LibraryError, match=r"workload\.stream=never"):
        make_timed(threaded, dataclasses.replace(larson, events=None, stream=object()))


def test_the_compiled_loop_is_compared_with_the_loop_in_c():
    churn = workloads.load({"name": "churn", "operations": 5000, "live": 100})
    try:
        found = compare(churn, rounds=2)
    except LoopError as error:
        pytest.skip(str(error))
    assert found["events"] == 5000
    assert found["ratio"] == pytest.approx(found["compiled_ns"] / found["c_ns"])
