"""Hoardworst: one block is kept in every superblock, then the next size class has its turn.

    class 16     ████████ ████████ ████████     ``space`` bytes fill superblocks of the class
                 █        █        █            all but one block of each are freed
    class 32     █        █        █        ████████ ████████ …
    class 48     …

An allocator that gives a run of memory to one size class keeps every superblock for its one live
block; heap over live grows with the number of classes.  The program takes blocks to lie in the
order of allocation; for other superblocks than Hoard's (256 KiB) set ``superblock``.

Source: Kuszmaul, malloc-benchmarks (hoardworst); the classes, 1.2 times the last in multiples of
16: Berger et al., "Hoard: a scalable memory allocator for multithreaded applications", ASPLOS 2000.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import size
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import allocate, join, release
from benchmarks.workloads.base.prng import Random

SPACE = size(4 << 20, low=4096, high=1 << 40, text="bytes allocated of each class")
SUPERBLOCK = size(256 << 10, low=4096, high=1 << 30, text="bytes of a superblock")
SMALLEST = size(16, low=16, high=1 << 20, text="bytes of the first class, a multiple of 16")


def check_settings(s: SimpleNamespace) -> None:
    """A class has several blocks in a superblock, and several superblocks."""
    if s.smallest % 16:
        raise ValueError(f"smallest={s.smallest}: must be a multiple of 16")
    if s.smallest > s.superblock // 2:
        raise ValueError(f"smallest={s.smallest}: two must fit into superblock={s.superblock}")
    if s.superblock > s.space:
        raise ValueError(f"superblock={s.superblock} is above space={s.space}")


def classes(s: SimpleNamespace) -> list[int]:
    """Bytes of each class of which a superblock holds two or more."""
    sizes = [s.smallest]
    while (following := -(-sizes[-1] * 6 // 5) + 15 & -16) <= s.superblock // 2:
        sizes.append(following)
    return sizes


def generate(s: SimpleNamespace, random: Random) -> Events:
    """The first block of each superblock stays.  Nothing is random."""
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
