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

from allocators.settings import number, size
from benchmarks.events import FREE, MALLOC
from benchmarks.prng import Random
from kernel.boot import record
from kernel.jit import jit

BUDGET = size(1 << 20, low=64, high=1 << 30, text="bytes that its live blocks occupy at most")
UNIT = size(64, low=16, high=1 << 20, text="bytes of the smallest block, a power of two")
ROUNDS = number(8, low=1, high=20, text="times that the block size doubles")
OVERHEAD = size(16, low=0, high=4096, text="bytes of a block that are taken to be the allocator's")


def check_settings(s: SimpleNamespace) -> None:
    """Units are a power of two, larger than the overhead, and the budget holds the last block."""
    if s.unit & (s.unit - 1):
        raise ValueError(f"unit={s.unit}: must be a power of two")
    if s.overhead >= s.unit:
        raise ValueError(f"overhead={s.overhead}: must be less than unit={s.unit}")
    if s.unit << s.rounds > s.budget:
        raise ValueError(f"budget={s.budget}: the last round's block takes {s.unit << s.rounds}")


def slots(s: SimpleNamespace) -> int:
    """No more blocks than units live at a time."""
    return s.budget // s.unit


def length(s: SimpleNamespace) -> int:
    """Fewer than 2 · slots blocks are ever allocated, and each is freed at most once."""
    return 4 * slots(s)


def start(s: SimpleNamespace, random: Random) -> np.record:
    """The generator's record at the start; nothing is random."""
    g = record(
        np.dtype(
            [
                ("op", "i8"),  # the event: what the replay loop reads
                ("slot", "i8"),
                ("request", "i8"),
                ("align", "i8"),
                ("offset", "i8"),
                ("budget", "i8"),  # bytes, as the settings say
                ("unit_shift", "i8"),
                ("rounds", "i8"),
                ("overhead", "i8"),
                ("slots", "i8"),
                ("level", "i8"),  # number of the round
                ("freeing", "i8"),  # 1 while the round frees, 0 while it allocates
                ("residue", "i8"),  # f: kept blocks lie on units ≡ f (mod 2**level)
                ("cursor", "i8"),  # next slot to look at
                ("occupied", "i8"),  # bytes of the budget in use
                ("pending", "i8"),  # slot whose address comes with the next call, or -1
                ("origin", "i8"),  # address of the first block; units are counted from it
                ("address", "i8", (slots(s),)),  # of each slot's block, 0 if none
                ("units", "i8", (slots(s),)),  # of each slot's block
            ]
        )
    )
    g.budget, g.unit_shift, g.rounds = s.budget, s.unit.bit_length() - 1, s.rounds
    g.overhead, g.slots, g.pending = s.overhead, slots(s), -1
    return g


@jit
def lies_on(g, slot, residue):
    """Whether the block in ``slot`` covers a unit ≡ ``residue`` (mod 2**level)."""
    begin = g.address[slot] - g.origin
    first = begin >> g.unit_shift
    last = (begin + (g.units[slot] << g.unit_shift) - g.overhead - 1) >> g.unit_shift
    return ((residue - first) & ((1 << g.level) - 1)) <= last - first


@jit
def spoiled(g, residue):
    """Units that blocks kept for ``residue`` deny to blocks of this round, beyond their own."""
    total = 0
    for slot in range(g.slots):
        if g.address[slot] != 0 and lies_on(g, slot, residue):
            total += (1 << g.level) - g.units[slot]
    return total


@jit
def next_event(g, last):
    """Take note of the address, then free or allocate the next block; False at the end."""
    if g.pending >= 0:
        if last == 0:
            return False  # out of memory
        if g.origin == 0:
            g.origin = last
        g.address[g.pending] = last
        g.pending = -1
    while True:
        if g.freeing:
            while g.cursor < g.slots:
                slot = g.cursor
                g.cursor += 1
                if g.address[slot] != 0 and not lies_on(g, slot, g.residue):
                    g.occupied -= g.units[slot] << g.unit_shift
                    g.address[slot] = 0
                    g.op = FREE
                    g.slot = slot
                    g.request = 0
                    return True
            g.freeing = 0
            g.cursor = 0
        footprint = 1 << (g.unit_shift + g.level)
        if g.occupied + footprint <= g.budget:
            while g.address[g.cursor] != 0:
                g.cursor += 1
            g.occupied += footprint
            g.units[g.cursor] = 1 << g.level
            g.pending = g.cursor
            g.op = MALLOC
            g.slot = g.cursor
            g.request = footprint - g.overhead
            return True
        if g.level == g.rounds:
            return False
        g.level += 1
        other = g.residue + (1 << (g.level - 1))
        if spoiled(g, other) > spoiled(g, g.residue):
            g.residue = other
        g.freeing = 1
        g.cursor = 0
