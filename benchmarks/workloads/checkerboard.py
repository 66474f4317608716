"""Checkerboard: an adversary that looks where its blocks lie and keeps those that hurt most.

    round 0   ████████████████   blocks of one unit fill the budget
              █ █ █ █ █ █ █ █    every other is freed: no hole holds two units
    round 1   …                  blocks of two units, then keep what cuts every run of four, …

In round i it keeps the blocks that lie on units ≡ f (mod 2**i), f chosen from two candidates so
that the kept blocks spoil most room, frees all others, and allocates blocks of 2**i units up to
its budget again.  Whatever the policy, the heap grows to about ½ · budget · rounds (Robson 1971,
1974); any allocator that cannot move blocks is open to it.

Blocks are asked for ``overhead`` bytes smaller than their units, so that an allocator with headers
of that size places them without gaps.
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
OVERHEAD = size(16, low=0, high=4096, text="bytes of a block that are taken to be the allocator's")


def check_settings(s: SimpleNamespace) -> None:
    """Units are a power of two, larger than the overhead, and the budget holds the last block."""
    if s.unit & (s.unit - 1):
        raise ValueError(f"unit={s.unit}: must be a power of two")
    budget.check(s, s.rounds)


slots = budget.slots


def length(s: SimpleNamespace) -> int:
    """Fewer than 2 · slots blocks are ever allocated, and each is freed at most once."""
    return 4 * slots(s)


def start(s: SimpleNamespace, random: Random) -> np.record:
    """The generator's record at the start; nothing is random."""
    g = budget.program(
        s,
        {
            "unit_shift": (),
            "rounds": (),
            "residue": (),  # f: kept blocks lie on units ≡ f (mod 2**level)
            "origin": (),  # address of the first block; units are counted from it
        },
    )
    g.unit_shift, g.rounds = s.unit.bit_length() - 1, s.rounds
    return g


@jit
def lies_on(g, slot, residue):
    """Whether the block in ``slot`` covers a unit ≡ ``residue`` (mod 2**level)."""
    begin = g.address[slot] - g.origin
    first = begin >> g.unit_shift
    last = (begin + g.bytes[slot] - g.overhead - 1) >> g.unit_shift
    return ((residue - first) & ((1 << g.level) - 1)) <= last - first


@jit
def spoiled(g, residue):
    """Bytes that blocks kept for ``residue`` deny to blocks of this round, beyond their own."""
    total = 0
    for slot in range(g.slots):
        if g.address[slot] != 0 and lies_on(g, slot, residue):
            total += (1 << (g.unit_shift + g.level)) - g.bytes[slot]
    return total


@jit
def next_event(g, last):
    """Take note of the address, then free or allocate the next block; False at the end."""
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
