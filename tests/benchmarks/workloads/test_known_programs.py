"""Each well-known workload shows the characteristics of its original."""

import hashlib
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.events.events import FREE, MALLOC, THREAD_END, TOUCH_WRITE
from benchmarks.events.ledger import Ledger
from benchmarks.events.parquet import audited
from benchmarks.workloads import alloc_test, robson, sh6bench
from benchmarks.workloads.base import pieces, registry
from kernel.engine.jit import build
from tests.benchmarks.workloads.driver import BASE, drive_bump


def events_of(name, **settings):
    events = workloads.load({"name": name} | settings).events
    for _ in audited(name, iter([events])):
        pass
    return events


def foreign_share(events):
    """Return the share of frees by a thread other than the allocating one."""
    return Ledger().follow(events).foreign.sum() / np.count_nonzero(events.op == FREE)


def live_bytes(events):
    followed = Ledger().follow(events)
    return np.cumsum(np.maximum(followed.after, 0) - np.maximum(followed.before, 0))


def test_lifetimes_use_the_fewest_slots():
    born = np.array([0, 10, 20, 30, 40, 50])
    died = np.array([15, 35, pieces.NEVER, 45, 47, pieces.NEVER])
    events = pieces.lives(born, died, np.arange(1, 7))
    assert events.slot.max() + 1 == 3
    assert events.op.tolist() == [MALLOC] * 2 + [FREE] + [MALLOC] * 2 + [FREE, MALLOC] + [
        FREE,
        FREE,
        MALLOC,
    ]
    for _ in audited("lives", iter([events])):
        pass
    assert len(pieces.lives(born, died, born, operations=4).op) == 4


def test_a_moment_is_the_inverse_of_taking_turns():
    thread, number = pieces.take_turns(1000, 3, 7)
    assert pieces.moment(thread, number, 3, 7).tolist() == list(range(1000))
    assert np.bincount(thread).tolist() == [336, 335, 329]
    assert all((np.diff(number[thread == t]) == 1).all() for t in range(3))


def test_malloc_thread_follows_the_inverse_square():
    events = events_of("malloc_thread")
    sizes = events.size[events.op == MALLOC]
    assert (sizes.min(), sizes.max() <= 32768) == (4, True)
    # P(size > x) = (1/x - 1/high) / (1/low - 1/high)
    for x in (8, 32, 256, 2048):
        true = (1 / x - 1 / 32768) / (1 / 4 - 1 / 32768)
        assert (sizes > x + 0.5).mean() == pytest.approx(true, rel=0.1)
    assert np.count_nonzero(events.slot == -1) == 4 * 1024  # free(NULL) while the slots fill
    assert foreign_share(events) == 0


def test_malloc_simple_goes_through_its_levels():
    events = events_of("malloc_simple")
    live = np.cumsum(np.where(events.op == MALLOC, 1, -1))
    tips = live[:-1][(events.op[:-1] == MALLOC) & (events.op[1:] == FREE)]
    assert set(tips.tolist()) == {25, 100, 400, 1600}
    assert np.unique(events.size[events.op == MALLOC]).tolist() == [16, 32, 64]
    assert set(events.thread.tolist()) == {0, 1}
    # Freed in the order of allocation:
    frees = np.flatnonzero(events.op[:50] == FREE)
    assert events.slot[frees].tolist() == events.slot[: len(frees)].tolist()


def test_rptest_replaces_a_tenth_and_hands_batches_on():
    events = events_of("rptest", operations=400_000, blocks=5000)
    sizes = events.size[events.op == MALLOC]
    blocks = sizes[(sizes != 32) & (sizes != 500 * 8)]
    assert blocks.min() >= 16
    assert blocks.max() <= 8000
    assert blocks.mean() == pytest.approx(16 + 7984 / 6, rel=0.02)  # the linear falloff
    # A batch of 500 in every second loop, compared with 500 replaced blocks in each loop:
    assert 0.3 < foreign_share(events) < 0.4
    assert foreign_share(events_of("rptest", operations=50_000, blocks=500, cross=0)) == 0
    assert events_of("rptest", operations=9000, blocks=900, falloff="even").size.max() > 7500


def test_xmalloc_frees_nothing_where_it_was_allocated():
    events = events_of("xmalloc_test")
    assert foreign_share(events) == 1
    owners = set(events.thread[events.op == MALLOC].tolist())
    assert owners == {0, 1, 2, 3}
    assert set(events.thread[events.op == FREE].tolist()) == {4, 5, 6, 7}
    sizes, counts = np.unique(events.size[events.op == MALLOC], return_counts=True)
    assert sizes.tolist() == [64, 4097 * 8]
    assert counts[0] / counts[1] == pytest.approx(4096, rel=0.05)
    small = events_of("xmalloc_test", operations=20_000, batch=10, limit=3)
    live = np.cumsum(np.where(small.op == MALLOC, 1, -1))
    assert live.max() <= 11 * (3 + 2 * 4)  # batches on the stack, and those held by threads


def test_sh6bench_frees_forwards_and_backwards():
    events = events_of("sh6bench", operations=4000, threads=1, blocks=100, turn=1)
    op, slot = events.op, events.slot
    assert op[:100].tolist() == [MALLOC] * 100
    births = np.full(100, -1)
    births[slot[:100]] = np.arange(100)
    # The first fifth is kept; the rest is freed in reverse order.
    assert op[100:180].tolist() == [FREE] * 80
    assert births[slot[100:180]].tolist() == list(range(99, 19, -1))
    # Then the second fifth is kept: the first is freed in order, then the rest in reverse.
    second = slot[260:340]
    assert op[180:260].tolist() == [MALLOC] * 80
    assert op[260:340].tolist() == [FREE] * 80
    assert births[second[:20]].tolist() == list(range(20))
    sizes = sh6bench.size_sequence(1000)
    assert sizes[:3].tolist() == [1, 1, 1]
    assert len(sizes) == sum(
        250 if size < 100 else 50
        for base in (1, 2, 4, 7, 11, 17, 26, 40, 61, 92, 139, 209, 314, 472, 709)
        for size in [base >> i for i in range(base.bit_length())]
    )


def test_alloc_test_visits_few_slots_most_of_the_time():
    events = events_of("alloc_test", operations=400_000, places=1 << 14)
    visits = np.sort(np.bincount(events.slot[1 << 13 :], minlength=1 << 14))[::-1]
    top = np.cumsum(visits) / visits.sum()
    assert top[int(0.2 * len(top))] > 0.75
    assert np.count_nonzero(events.op[: 1 << 13] == MALLOC) == 1 << 13
    sizes = events.size[events.op == MALLOC]
    assert (sizes.min(), sizes.max()) == (5, 1024)
    for bits in range(3, 9):
        share = ((sizes > 1 << (bits - 1)) & (sizes <= 1 << bits)).mean()
        assert share == pytest.approx(2.0 ** (2 - bits), rel=0.1)
    assert alloc_test._VISITS.sum() == alloc_test._PLACES.sum() == 5**6


def test_mstress_moves_blocks_between_threads():
    events = events_of("mstress", operations=200_000, scale=5)
    assert 0.02 < foreign_share(events) < 0.3
    ended = set()
    for op, thread in zip(events.op.tolist(), events.thread.tolist(), strict=True):
        assert thread not in ended
        if op == THREAD_END:
            ended.add(thread)
    assert len(ended) > 20
    sizes = events.size[events.op == MALLOC]
    usual = sizes[sizes <= 512]
    assert set(usual.tolist()) == {8, 16, 32, 64, 128, 256, 512}
    assert 0.005 < 1 - len(usual) / len(sizes) < 0.02


@pytest.mark.parametrize(("name", "foreign"), [("cache_scratch", 4), ("cache_thrash", 0)])
def test_threads_write_their_small_blocks(name, foreign):
    events = events_of(name, operations=4000)
    assert Ledger().follow(events).foreign.sum() == foreign
    writes = np.count_nonzero(events.op == TOUCH_WRITE)
    mallocs = np.count_nonzero(events.op == MALLOC) - foreign
    assert writes == 10 * mallocs
    assert events.size[events.op != FREE].tolist() == [8] * (writes + mallocs + foreign)


def test_ffworst_frees_every_other_survivor():
    events = events_of("ffworst", space=1 << 12, smallest=64, rounds=4)
    live = np.cumsum(np.where(events.op == MALLOC, 1, -1))
    last = np.flatnonzero(np.diff(events.op.astype(int)) == MALLOC - FREE)
    assert live[last].tolist() == [32, 32, 24]  # (0 + 64)/2, (32 + 32)/2, (32 + 16)/2
    assert live_bytes(events).max() == (1 << 12) * (2 - 2**-3)


def test_hoardworst_keeps_one_block_in_every_superblock():
    w = workloads.load({"name": "hoardworst"})
    sizes = np.unique(w.events.size[w.events.op == MALLOC])
    known = [16, 32, 48, 64, 80, 96, 128, 160, 192, 240, 288, 352, 432, 528, 640, 768, 928, 1120]
    assert sizes[: len(known)].tolist() == known
    assert sizes[-1] == 109_824
    live = np.cumsum(np.where(w.events.op == MALLOC, 1, -1))
    kept = sum(len(range(0, (4 << 20) // s, (256 << 10) // s)) for s in sizes.tolist())
    assert live[-1] == kept


def test_sawtooth_frees_most_blocks_at_once():
    events = events_of("sawtooth", operations=50_000, peak=1000, kept=10)
    live = np.cumsum(np.where(events.op == MALLOC, 1, -1))
    turns = np.flatnonzero(np.diff(events.op.astype(int)))
    assert set(live[turns[0::2]].tolist()) == {1000}
    assert set(live[turns[1::2]].tolist()) == {100}
    fifo = events_of("sawtooth", operations=2000, peak=1000, kept=0, order="fifo")
    assert fifo.slot[1000:].tolist() == list(range(1000))


ROBSON = {"name": "robson", "budget": 1 << 14, "doublings": 5, "steps": 2}


def test_robson_compiled_and_plain_agree_on_pinned_events():
    w = workloads.load(ROBSON)
    log = np.zeros((w.program.length + 1, 3), "i8")
    n = build(drive_bump, cache=False, next_event=w.program.next_event)(w.program.state(), log, 8)
    assert n <= w.program.length
    g, last, top = w.program.state(), 0, BASE
    holes, blocks, previous = [], {}, None
    for i in range(n):
        assert w.program.next_event(g, last)
        assert (g.op, g.slot, g.request) == tuple(log[i])
        last = 0
        if g.op == MALLOC:
            if previous == FREE:
                # No hole fits the new size: this is the purpose of the program.
                ends = sorted((a, a + size) for a, size in blocks.values())
                holes = [b - a for (_, a), (b, _) in pairwise(ends)]
                assert max(holes) < g.request + 8
            assert int(g.slot) not in blocks
            blocks[int(g.slot)] = (top, int(g.request) + 8)
            last, top = top + 8, top + 8 + int(g.request)
        else:
            del blocks[int(g.slot)]
        assert sum(size for _, size in blocks.values()) <= 1 << 14
        previous = int(g.op)
    assert holes
    assert not w.program.next_event(g, last)
    digest = hashlib.sha256(log[:n].astype("<i8").tobytes()).hexdigest()[:16]
    assert digest == "fde64a4632001a51"


def test_robson_sizes_grow_by_the_root():
    s = registry._choose(ROBSON).settings
    sizes = robson.sizes(SimpleNamespace(**s))
    assert sizes[::2] == [64, 128, 256, 512, 1024, 2048]
    assert sizes[1::2] == [80, 176, 352, 720, 1440]


def test_robson_stops_when_memory_is_exhausted():
    program = workloads.load(ROBSON).program
    g = program.state()
    assert program.next_event(g, 0)
    assert program.next_event(g, BASE)
    assert not program.next_event(g, 0)
