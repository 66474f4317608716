"""Hoardworst: for each size class in turn, fill superblocks and keep one block in each.

    class 16     ████████ ████████ ████████     ``space`` bytes fill superblocks of the class
                 █        █        █            all blocks except one of each are freed
    class 32     █        █        █        ████████ ████████ …
    class 48     …

An allocator that assigns a superblock to one size class keeps each superblock for its one live
block, so heap ÷ live grows with the number of classes.  The program assumes that blocks are placed
in the order of allocation.  The default superblock is Hoard's (256 KiB); for others set
``superblock``.

Source: Kuszmaul, malloc-benchmarks (hoardworst); the classes, 1.2 times the last in multiples of
16: Berger et al., "Hoard: a scalable memory allocator for multithreaded applications", ASPLOS 2000.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import size
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release
from benchmarks.workloads.base.prng import Random

SPACE = size(4 << 20, low=4096, high=1 << 40, text="bytes allocated in each class")
SUPERBLOCK = size(256 << 10, low=4096, high=1 << 30, text="bytes of a superblock")
SMALLEST = size(16, low=16, high=1 << 20, text="bytes of the first class, a multiple of 16")


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless a superblock fits two blocks, and ``space`` a superblock."""
    if s.smallest % 16:
        raise ValueError(f"smallest={s.smallest}: must be a multiple of 16")
    if s.smallest > s.superblock // 2:
        raise ValueError(f"smallest={s.smallest}: two must fit into superblock={s.superblock}")
    if s.superblock > s.space:
        raise ValueError(f"superblock={s.superblock} is above space={s.space}")


def classes(s: SimpleNamespace) -> list[int]:
    """Return the bytes of each class that fits at least twice into a superblock."""
    sizes = [s.smallest]
    while (following := -(-sizes[-1] * 6 // 5) + 15 & -16) <= s.superblock // 2:
        sizes.append(following)
    return sizes


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Keep the first block of each superblock.  Nothing is random."""
    pieces, kept = [], 0
    for bytes_ in classes(s):
        count = s.space // bytes_
        stays = np.arange(count) % (s.superblock // bytes_) == 0
        slots = np.empty(count, "i8")
        survivors = int(np.count_nonzero(stays))
        slots[stays] = kept + np.arange(survivors)
        slots[~stays] = kept + survivors + np.arange(count - survivors)
        pieces.append(allocate(slots, np.full(count, bytes_)))
        pieces.append(release(slots[~stays]))
        kept += survivors
    return join(*pieces)
