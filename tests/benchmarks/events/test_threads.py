"""Thread numbers of a replay: those of threads that ended are used again."""

import numpy as np
import pytest

from allocators.base import registry
from allocators.base.contract import MAX_THREADS
from benchmarks import workloads
from benchmarks.events import parquet
from benchmarks.events.events import FREE, MALLOC, THREAD_END, Events, column, make_events, rows
from benchmarks.events.threads import ThreadError, ThreadNumbers, lives
from benchmarks.replay.simulation import OBSERVED, Simulation
from benchmarks.workloads import WorkloadError
from kernel.config import KernelConfig
from kernel.cost import COSTS


def numbered(limit, threads, ends=()):
    """Return the numbers of events by ``threads``; ``ends``: indices of thread ends."""
    op = [THREAD_END if i in ends else FREE for i in range(len(threads))]
    events = make_events(op, [-1] * len(op), [0] * len(op), thread=threads)
    return ThreadNumbers(limit).of(events).thread.tolist()


@pytest.mark.hardening(14)
@pytest.mark.parametrize(
    ("threads", "ends", "expected"),
    [
        ([0, 3, 1, 2], (), [0, 3, 1, 2]),
        ([3, 3, 3], (1,), [3, 3, 3]),  # a thread keeps its number, also after its end
        ([0, 7, 7, 8, 9], (2,), [0, 1, 1, 1, 2]),
        ([1, 2, 1, 7, 2, 3], (2,), [1, 2, 1, 1, 2, 3]),
        ([7, 1, 7, 1], (), [1, 2, 1, 2]),  # the number of thread 1 is taken
        ([7, 7, 1], (1,), [1, 1, 1]),
        ([0, 0, 7], (1,), [0, 0, 1]),  # number 0 is the main thread's
        ([2**31 - 1, 2**31 - 2], (), [1, 2]),
    ],
)
def test_numbers(threads, ends, expected):
    assert numbered(4, threads, ends) == expected


@pytest.mark.hardening(14)
def test_the_limit_is_on_threads_alive_at_once():
    assert numbered(3, [0, 1, 2, 2, 5], ends=(3,)) == [0, 1, 2, 2, 2]
    with pytest.raises(ThreadError, match="event 3: more than 3 threads are alive at once"):
        numbered(3, [0, 1, 2, 5])
    with pytest.raises(ThreadError, match="event 1: thread -2: expected 0 or more"):
        numbered(3, [0, -2])


def connections(n: int) -> Events:
    """Return the events of a program whose ``n`` threads run one after another.

    Each thread frees the block of the one before and leaves one of its own.
    """
    thread = np.arange(1, n + 1).repeat(4)
    slot = np.stack([np.arange(n), np.arange(n) - 1, np.full(n, -1), np.full(n, -1)], 1).ravel()
    op = np.tile([MALLOC, FREE, FREE, THREAD_END], n)
    return make_events(op, slot, np.where(op == MALLOC, 1000, 0), thread=thread)


@pytest.mark.hardening(14)
def test_pieces_make_no_difference():
    events = connections(50)
    whole = ThreadNumbers(4).of(events).thread
    numbers = ThreadNumbers(4)
    parts = [numbers.of(rows(events, i, i + 7)) for i in range(0, len(events.op), 7)]
    assert np.concatenate([part.thread for part in parts]).tolist() == whole.tolist()
    assert whole.max() == 3
    numbers = ThreadNumbers(2)
    for thread in [0] * 8 + [8]:
        numbers.of(make_events([FREE], [-1], [0], thread=[thread]))
    with pytest.raises(ThreadError, match="event 9: more than 2 threads"):
        numbers.of(make_events([FREE], [-1], [0], thread=[9]))


@pytest.mark.hardening(14)
def test_no_thread_has_events_after_its_end_in_a_part():
    events = make_events(
        [FREE, THREAD_END, FREE, THREAD_END, THREAD_END, FREE],
        [-1] * 6,
        [0] * 6,
        thread=[1, 1, 2, 2, 1, 2],
    )
    assert [part.thread.tolist() for part in lives(events)] == [[1, 1, 2, 2], [1, 2]]
    bare = make_events([FREE], [-1], [0])
    assert [len(part.op) for part in lives(bare)] == [1]


@pytest.mark.hardening(14)
def test_a_thread_for_each_connection(tmp_path, monkeypatch):
    """More threads in the life of a program than an allocator has room for."""
    monkeypatch.setattr(parquet, "ROW_GROUP", 700)
    path = tmp_path / "t.parquet"
    parquet.write(path, connections(MAX_THREADS + 100), {})
    found = []
    for how in ("always", "never"):
        workload = workloads.load({"name": "trace", "path": str(path), "stream": how})
        simulation = Simulation(registry.load("ptmalloc"), workload, KernelConfig(), OBSERVED)
        simulation.replay()
        simulation.verify_end()
        found.append(simulation.metrics(dict.fromkeys(COSTS, 1.0)))
    assert found[0] == found[1]
    assert found[0]["operations"] == 3 * (MAX_THREADS + 100)


@pytest.mark.hardening(14)
def test_too_many_threads_alive_is_told_as_such(tmp_path):
    events = connections(MAX_THREADS + 1)
    kept = events.op != THREAD_END
    path = tmp_path / "t.parquet"
    parquet.write(path, Events(*(c[kept] if len(c) else c for c in events)), {})
    workload = workloads.load({"name": "trace", "path": str(path)})
    assert column(workload.events, "thread").max() == MAX_THREADS + 1
    said = f"event {3 * (MAX_THREADS - 1)}: more than {MAX_THREADS} threads are alive at once"
    with pytest.raises(WorkloadError, match=said):
        Simulation(registry.load("bump"), workload, KernelConfig(), OBSERVED).replay()
