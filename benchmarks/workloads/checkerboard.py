"""Checkerboard: an adversary that reads its blocks' addresses and keeps the most harmful blocks.

    round 0   ████████████████   blocks of one unit fill the budget
              █ █ █ █ █ █ █ █    every other one is freed: no hole fits two units
    round 1   …                  blocks of two units; keep those that split every run of four, …

In round i it keeps the blocks that cover units ≡ f (mod 2**i), with f chosen from two candidates
so that the kept blocks waste the most space.  It frees all others, and allocates blocks of 2**i
units up to its budget again.  With any policy the heap grows to about ½ · budget · rounds (Robson
1971, 1974), unless the allocator can move blocks.

The request for a block is ``overhead`` bytes smaller than its units, so that an allocator with
headers of that size places blocks without gaps.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number, size
from benchmarks.workloads.base import budget
from benchmarks.workloads.base.budget import allocate, note, release
from benchmarks.workloads.base.prng import Random
from kernel.engine.jit import jit

BUDGET = budget.BUDGET
UNIT = size(64, low=16, high=1 << 20, text="bytes of the smallest block, a power of two")
ROUNDS = number(8, low=1, high=20, text="times that the block size doubles")
OVERHEAD = size(16, low=0, high=4096, text="assumed bytes of allocator metadata per block")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the unit is a power of two and passes :func:`budget.check`."""
    if s.unit & (s.unit - 1):
        raise ValueError(f"unit={s.unit}: must be a power of two")
    budget.check(s, s.rounds)


slots = budget.slots


def length(s: SimpleNamespace) -> int:
    """Return an upper bound on events: under 2 · slots allocations, each freed at most once."""
    return 4 * slots(s)


def start(s: SimpleNamespace, random: Random) -> np.record:
    """Return the generator's initial record; nothing is random."""
    g = budget.program(
        s,
        {
            "unit_shift": (),
            "rounds": (),
            "residue": (),  # f: kept blocks cover units ≡ f (mod 2**level)
            "origin": (),  # address of the first block; units are counted from it
        },
    )
    g.unit_shift, g.rounds = s.unit.bit_length() - 1, s.rounds
    return g


@jit
def lies_on(g, slot, residue):
    """Return True if the block in ``slot`` covers a unit ≡ ``residue`` (mod 2**level)."""
    begin = g.address[slot] - g.origin
    first = begin >> g.unit_shift
    last = (begin + g.bytes[slot] - g.overhead - 1) >> g.unit_shift
    return ((residue - first) & ((1 << g.level) - 1)) <= last - first


@jit
def spoiled(g, residue):
    """Return the bytes that blocks kept for ``residue`` waste for blocks of this round.

    A kept block makes a whole block of this round's size unusable; its own bytes do not count.
    """
    total = 0
    for slot in range(g.slots):
        if g.address[slot] != 0 and lies_on(g, slot, residue):
            total += (1 << (g.unit_shift + g.level)) - g.bytes[slot]
    return total


@jit
def next_event(g, last):
    """Store the last address, then free or allocate the next block; return False at the end."""
    if not note(g, last):
        return False
    if g.origin == 0:
        g.origin = last
    while True:
        if g.freeing:
            while g.cursor < g.slots:
                slot = g.cursor
                g.cursor += 1
                if g.address[slot] != 0 and not lies_on(g, slot, g.residue):
                    release(g, slot)
                    return True
            g.freeing = 0
            g.cursor = 0
        if allocate(g, 1 << (g.unit_shift + g.level)):
            return True
        if g.level == g.rounds:
            return False
        g.level += 1
        other = g.residue + (1 << (g.level - 1))
        if spoiled(g, other) > spoiled(g, g.residue):
            g.residue = other
        g.freeing = 1
        g.cursor = 0
