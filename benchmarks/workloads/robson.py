"""Robson: an adversary of first fit that frees as much as it can without creating a usable hole.

    live   ██ █ ████ █ ██    it scans its blocks in address order and frees each one whose hole,
           ██   ████   ██    joined with adjacent holes, stays smaller than the next size; then it
                             allocates blocks of the next size up to its budget

No hole fits a block of the next size, so all new blocks go to fresh memory, and the few survivors
pin everything below.  With ``steps=1`` sizes double: the heap grows by about half the budget in
each round, to a total of ½ · M · log2 n, which some program forces on any policy (checkerboard is
that program).  With sizes closer together, fewer survivors per round are needed: against
address-ordered first fit the heap approaches 3/4 · M · log2 n.  That is above this lower bound and
below the worst case of first fit, M · H(n) / ln 2 or about M · log2 n.  M is the budget, n the
largest size in units, H(n) the sum of 1/1 … 1/n.

The request for a block is ``overhead`` bytes smaller than its size, so that an allocator with
boundary tags of that size places blocks without gaps.  Sizes are multiples of 16.

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
_DOUBLINGS, _STEPS = 20, 16  # upper bounds
DOUBLINGS = number(10, low=1, high=_DOUBLINGS, text="times that the block size doubles")
STEPS = number(4, low=1, high=_STEPS, text="rounds for each doubling")
OVERHEAD = size(8, low=0, high=4096, text="assumed bytes of allocator metadata per block")

#: Sizes are multiples of this, like the block sizes of most allocators.
_GRAIN = 16


def sizes(s: SimpleNamespace) -> list[int]:
    """Return the bytes of a block in each round: a geometric series without repeated values."""
    found = [s.unit]
    for i in range(1, s.steps * s.doublings + 1):
        octave, step = divmod(i, s.steps)
        # An integer root gives the same sizes on every machine.
        root = _root(1 << (step + s.steps * 16), s.steps)
        following = -(-(s.unit << octave) * root >> 16) & -_GRAIN
        if following > found[-1]:
            found.append(following)
    return found


def _root(n: int, degree: int) -> int:
    """Return the integer ``degree``-th root of ``n``, rounded down."""
    low, high = 1, 1 << (n.bit_length() // degree + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if middle**degree <= n:
            low = middle
        else:
            high = middle
    return low


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless the unit is a multiple of 16 and passes :func:`budget.check`."""
    if s.unit % _GRAIN:
        raise ValueError(f"unit={s.unit}: must be a multiple of {_GRAIN}")
    budget.check(s, s.doublings)


slots = budget.slots


def length(s: SimpleNamespace) -> int:
    """Return an upper bound on events: a round allocates at most the budget; frees are no more."""
    return 2 * sum(s.budget // bytes_ for bytes_ in sizes(s))


def start(s: SimpleNamespace, random: Random) -> np.record:
    """Return the generator's initial record; nothing is random."""
    series = sizes(s)
    g = budget.program(
        s,
        {
            "rounds": (),
            "barrier": (),  # while freeing: end address of the last survivor
            "live": (),  # number of blocks in ``order``
            "order": (slots(s),),  # slots by address
            # Bytes of a block by round.  Fixed length: compiled code is the same for all settings.
            "series": (_DOUBLINGS * _STEPS + 1,),
        },
    )
    g.rounds = len(series)
    g.series[: len(series)] = series
    return g


@jit
def sort_blocks(g):
    """Store the slots of live blocks in ``order``, sorted by address (Shell sort, 1959)."""
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
    """Return the slot of the next block to free without creating a usable hole, or -1."""
    wanted = g.series[g.level]
    while g.cursor < g.live - 1:  # the last block pins the end of the heap
        slot = g.order[g.cursor]
        following = g.order[g.cursor + 1]
        g.cursor += 1
        if g.address[following] - g.barrier < wanted:
            return slot
        g.barrier = g.address[slot] + g.bytes[slot]
    return -1


@jit
def next_event(g, last):
    """Store the last address, then free or allocate the next block; return False at the end."""
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
