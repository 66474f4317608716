"""Robson: an adversary of first fit that frees whatever it can without making room.

    live   ██ █ ████ █ ██    it looks at the addresses of its blocks, from the lowest up, and frees
           ██   ████   ██    each one whose hole, with the holes beside it, stays smaller than the
                             next size; then it allocates blocks of that size up to its budget

No hole takes a block of the next size, so all new blocks go to fresh memory, and the few survivors
hold down everything below.  With ``steps=1`` sizes double: the heap grows by about half the budget
in each round, to ½ · M · log2 n in all, which some program extorts from any policy (checkerboard is
that program).  Sizes closer together need fewer survivors a round: against address-ordered first
fit the heap nears 3/4 · M · log2 n, above that lower bound and below first fit's own worst case,
M · H(n) / ln 2 or about M · log2 n.  M is the budget, n the largest size in units, H(n) the sum of
1/1 … 1/n.

Blocks are asked for ``overhead`` bytes smaller than their size, so that an allocator with tags of
that size places them without gaps.  Sizes are multiples of 16.

Sources: Robson, "An estimate of the store size necessary for dynamic storage allocation", JACM
18(3), 1971; "Bounds for some functions concerning dynamic storage allocation", JACM 21(3), 1974;
"Worst case fragmentation of first fit and best fit storage allocation strategies", Computer Journal
20(3), 1977; Knuth, TAOCP 1, exercise 2.5-43.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number, size
from benchmarks.workloads.base import budget
from benchmarks.workloads.base.budget import allocate, note, release
from benchmarks.workloads.base.prng import Random
from kernel.engine.jit import jit

BUDGET = budget.BUDGET
UNIT = size(64, low=16, high=1 << 20, text="bytes of the smallest block, a multiple of 16")
_DOUBLINGS, _STEPS = 20, 16  # at most
DOUBLINGS = number(10, low=1, high=_DOUBLINGS, text="times that the block size doubles")
STEPS = number(4, low=1, high=_STEPS, text="rounds for each doubling")
OVERHEAD = size(8, low=0, high=4096, text="bytes of a block that are taken to be the allocator's")

#: Sizes are multiples of this, as most allocators' are.
_GRAIN = 16


def sizes(s: SimpleNamespace) -> list[int]:
    """Bytes of a block in each round: a geometric series, without those that do not grow."""
    found = [s.unit]
    for i in range(1, s.steps * s.doublings + 1):
        octave, step = divmod(i, s.steps)
        # The root as a whole number: the same on every machine.
        root = _root(1 << (step + s.steps * 16), s.steps)
        following = -(-(s.unit << octave) * root >> 16) & -_GRAIN
        if following > found[-1]:
            found.append(following)
    return found


def _root(n: int, degree: int) -> int:
    """The largest whole number whose power of ``degree`` is at most ``n``."""
    low, high = 1, 1 << (n.bit_length() // degree + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if middle**degree <= n:
            low = middle
        else:
            high = middle
    return low


def check_settings(s: SimpleNamespace) -> None:
    """Units are larger than the overhead, and the budget holds the last block."""
    if s.unit % _GRAIN:
        raise ValueError(f"unit={s.unit}: must be a multiple of {_GRAIN}")
    budget.check(s, s.doublings)


slots = budget.slots


def length(s: SimpleNamespace) -> int:
    """A round allocates no more than the budget holds, and each block is freed at most once."""
    return 2 * sum(s.budget // bytes_ for bytes_ in sizes(s))


def start(s: SimpleNamespace, random: Random) -> np.record:
    """The generator's record at the start; nothing is random."""
    series = sizes(s)
    g = budget.program(
        s,
        {
            "rounds": (),
            "barrier": (),  # freeing: where the last survivor ends
            "live": (),  # blocks in ``order``
            "order": (slots(s),),  # slots by address
            # Bytes of a block by round.  Room for the most, so that one loop serves all settings.
            "series": (_DOUBLINGS * _STEPS + 1,),
        },
    )
    g.rounds = len(series)
    g.series[: len(series)] = series
    return g


@jit
def sort_blocks(g):
    """Put the slots of live blocks in ``order`` of their addresses (Shell 1959)."""
    n = 0
    for slot in range(g.slots):
        if g.address[slot] != 0:
            g.order[n] = slot
            n += 1
    g.live = n
    gap = n // 2
    while gap > 0:
        for i in range(gap, n):
            slot = g.order[i]
            address = g.address[slot]
            j = i
            while j >= gap and g.address[g.order[j - gap]] > address:
                g.order[j] = g.order[j - gap]
                j -= gap
            g.order[j] = slot
        gap //= 2


@jit
def next_victim(g):
    """Slot of the next block that can go without making room, or -1."""
    wanted = g.series[g.level]
    while g.cursor < g.live - 1:  # the last one holds the heap's end
        slot = g.order[g.cursor]
        following = g.order[g.cursor + 1]
        g.cursor += 1
        if g.address[following] - g.barrier < wanted:
            return slot
        g.barrier = g.address[slot] + g.bytes[slot]
    return -1


@jit
def next_event(g, last):
    """Take note of the address, then free or allocate the next block; False at the end."""
    if not note(g, last):
        return False
    while True:
        if g.freeing:
            slot = next_victim(g)
            if slot >= 0:
                release(g, slot)
                return True
            g.freeing = 0
            g.cursor = 0
        if allocate(g, g.series[g.level]):
            return True
        if g.level == g.rounds - 1:
            return False
        g.level += 1
        sort_blocks(g)
        g.freeing = 1
        g.cursor = 0
        g.barrier = g.address[g.order[0]]
