"""Checkerboard, which sees addresses, makes the heap large under every placement policy."""

import hashlib

import numpy as np
import pytest

from benchmarks import workloads
from benchmarks.events.events import FREE, MALLOC
from kernel.engine.jit import build
from tests.benchmarks.workloads.driver import BASE, drive_bump

SETTINGS = {"name": "checkerboard", "budget": 1 << 15, "unit": 64, "rounds": 5, "overhead": 16}


class Toy:
    """Reference allocator in simple code: a list of free intervals, in bytes."""

    def __init__(self, fit):
        self.fit, self.free, self.end = fit, [], 0

    def malloc(self, size):
        holes = [(b - a, a) for a, b in self.free if b - a >= size]
        if not holes:
            self.end += size
            return self.end - size
        length, a = min(holes) if self.fit == "best" else min(holes, key=lambda hole: hole[1])
        self.free.remove((a, a + length))
        if length > size:
            self.free.append((a + size, a + length))
        return a

    def release(self, a, size):
        b = a + size
        for hole in [h for h in self.free if h[1] == a or h[0] == b]:
            self.free.remove(hole)
            a, b = min(a, hole[0]), max(b, hole[1])
        self.free.append((a, b))


@pytest.mark.parametrize("fit", ["first", "best"])
def test_heap_grows_to_robsons_bound(fit):
    w = workloads.load(SETTINGS)
    g, toy = w.program.state(), Toy(fit)
    blocks, live, peak, events, last = {}, 0, 0, 0, 0
    while w.program.next_event(g, last):
        events += 1
        slot = int(g.slot)
        assert 0 <= slot < w.slots
        if g.op == FREE:
            address, size = blocks.pop(slot)
            toy.release(address, size)
            live -= size
            last = 0
        else:
            assert slot not in blocks
            size = int(g.request) + 16
            blocks[slot] = (toy.malloc(size), size)
            live += size
            peak = max(peak, live)
            last = BASE + blocks[slot][0] + 16
    assert peak <= 1 << 15
    assert events <= w.program.length
    assert toy.end >= (1 << 15) * 5 / 2


def test_checkerboard_stops_when_memory_is_exhausted():
    g = workloads.load(SETTINGS).program.state()
    step = workloads.load(SETTINGS).program.next_event
    assert step(g, 0)
    assert step(g, BASE)
    assert not step(g, 0)


def test_each_replay_starts_with_a_fresh_state():
    program = workloads.load(SETTINGS).program
    first = program.state()
    program.next_event(first, 0)
    assert program.state().pending == -1


def test_compiled_and_plain_agree_on_pinned_events():
    w = workloads.load(SETTINGS)
    log, plain = (np.zeros((w.program.length, 3), "i8") for _ in range(2))
    compiled = build(drive_bump, cache=False, next_event=w.program.next_event)
    n = compiled(w.program.state(), log, 16)

    g, last, top = w.program.state(), 0, BASE
    for i in range(n):
        assert w.program.next_event(g, last)
        plain[i] = g.op, g.slot, g.request
        last = 0
        if g.op == MALLOC:
            last, top = top + 16, top + 16 + int(g.request)
    assert not w.program.next_event(g, last)
    assert np.array_equal(log, plain)
    assert hashlib.sha256(log[:n].astype("<i8").tobytes()).hexdigest()[:16] == "010f57ae7fb6c6ad"
