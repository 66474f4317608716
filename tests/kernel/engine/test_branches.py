"""Instrumented copies: hooks of switches keep their bodies, and their branches are counted."""

import pytest

from kernel.boot import Machine
from kernel.config import KernelConfig
from kernel.engine.branches import instrument
from kernel.engine.jit import build, jit

pytestmark = pytest.mark.once


@jit(when="FRAMES")
def is_last(k, pfn):
    if pfn == k.phys.nr_frames - 1:
        return 1
    return 0


@jit
def count_last(k, n):
    found = 0
    for pfn in range(n):
        found += is_last(k, pfn)
    return found


@pytest.mark.parametrize(("frames", "found"), [(False, 0), (True, 1)])
def test_a_hook_is_counted_where_its_switch_is_on(frames, found):
    machine = Machine(KernelConfig(window_bits=32, frames=frames, memory=1 << 20))
    counting, branches = instrument(count_last)
    assert build(counting, cache=False, **machine.config.switches())(machine.k, 256) == found
    hits = {
        (b.function, b.text.split()[-1], b.under): int(machine.k.hits[b.number]) for b in branches
    }
    assert hits == {
        ("count_last", "entered", ""): 1,
        ("count_last", "range(n):", ""): 256,
        ("count_last", "else", ""): 1,
        ("is_last", "entered", "FRAMES"): 256 * frames,
        ("is_last", "1:", "FRAMES"): found,
        ("is_last", "else", "FRAMES"): 255 * frames,
    }
