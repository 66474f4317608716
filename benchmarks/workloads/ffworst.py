"""Ffworst: the simplest program on which first fit wastes memory.

    round 1   ████████████████   ``space`` bytes in blocks of the smallest size
              █ █ █ █ █ █ █ █    every other survivor is freed
    round 2   █ █ █ █ █ █ █ █ ████████████████   ``space`` bytes in blocks twice as large:
              █   █   █   █   ██  ██  ██  ██     no hole fits one; every other survivor is freed
    round 3   …

After k rounds the peak of live bytes is space · (2 - 2**(1-k)), and an allocator that never reuses
memory across sizes has used k · space: a ratio of k / (2 - 2**(1-k)) if headers are negligible.
With an allocator that returns large blocks to the kernel, the heap stops growing above that
threshold.  The program is fixed, so an allocator can be designed to defeat it, unlike programs that
react to addresses (checkerboard, robson).

Source: Kuszmaul, malloc-benchmarks (ffworst, once "boom"); after Robson, "An estimate of the store
size necessary for dynamic storage allocation", JACM 18(3), 1971.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import number, size
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release
from benchmarks.workloads.base.prng import Random

SPACE = size(16 << 20, low=16, high=1 << 40, text="bytes allocated in each round")
SMALLEST = size(32, low=1, high=1 << 30, text="bytes of a block in the first round")
ROUNDS = number(20, low=1, high=40, text="rounds: each doubles the size of a block")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless every round allocates a block and slots fit into 32 bits."""
    largest = s.smallest << (s.rounds - 1)
    if largest > s.space:
        raise ValueError(f"rounds={s.rounds}: the last block takes {largest}, space={s.space}")
    if s.space // s.smallest > 1 << 28:
        raise ValueError(f"smallest={s.smallest}: more than 2**28 blocks in space={s.space}")


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Use one slot per block, and keep survivors in the order of birth.  Nothing is random."""
    pieces, survivors, born = [], np.empty(0, "i8"), 0
    for i in range(s.rounds):
        count = s.space // (s.smallest << i)
        blocks = np.arange(born, born + count)
        pieces.append(allocate(blocks, np.full(count, s.smallest << i)))
        survivors = np.concatenate([survivors, blocks])
        pieces.append(release(survivors[1::2]))
        survivors = survivors[::2]
        born += count
    return join(*pieces)
