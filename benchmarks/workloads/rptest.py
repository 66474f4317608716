"""Rptest: threads free and allocate blocks scattered over their arrays, and hand batches over.

    a loop of a thread     free ``replaced`` % of its blocks ── in strides of one prime
                           free a batch from another thread
                           allocate as many blocks ──────────── in strides of another prime
                           every ``cross`` loops: allocate a batch for another thread

If the place of an allocation still holds a block, that block is freed first.  A batch is a record,
an array of pointers and the blocks; the receiving thread frees all of them.  The original varies
the number of operations in a loop between 30 and 100 % (frees: 80 % of that); here it is fixed.

Source: Jansson, rpmalloc-benchmark (main.c), with the parameters of rpmalloc's BENCHMARKS.md.
"""

from types import SimpleNamespace

import numpy as np

from allocators.base.settings import choice, number
from allocators.base.settings import size as size_setting
from benchmarks.events.events import Events
from benchmarks.workloads.base.pieces import NEVER, lives, moment, previous
from benchmarks.workloads.base.prng import Random

OPERATIONS = number(1_000_000, low=1, high=1 << 31, text="total malloc and free calls")
THREADS = number(4, low=1, high=1024, text="threads")
BLOCKS = number(50_000, low=1, high=1 << 24, text="blocks in a thread's array")
REPLACED = number(10, low=1, high=100, text="blocks freed and allocated per loop, % of the array")
CROSS = number(2, low=0, high=1 << 20, text="loops between batches for another thread; 0: none")
LOW = size_setting(16, low=1, high=1 << 28, text="bytes of the smallest block")
HIGH = size_setting(8_000, low=1, high=1 << 28, text="bytes of the largest block")
FALLOFF = choice(
    "even", "linear", "exponential", default="linear", text="decrease of frequency with size"
)
TURN = number(100, low=1, high=1 << 28, text="steps before the next thread runs")

EVEN, LINEAR = 0, 1
#: Candidate strides through an array; the first two that do not divide its length are used.
_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
#: Bytes of a batch's record, and of a pointer in its array.
_RECORD, _POINTER = 32, 8


def _lengths(s: SimpleNamespace) -> tuple[int, int]:
    """Return the blocks replaced per loop, and the objects per batch (0: no batches)."""
    batch = max(1, s.blocks * s.replaced // 100)
    return batch, batch + 2 if s.cross > 0 and s.threads > 1 else 0


def check_settings(s: SimpleNamespace) -> None:
    """Raise ValueError unless low <= high and no thread can free a batch before it is allocated."""
    if s.low > s.high:
        raise ValueError(f"low={s.low} is above high={s.high}")
    batch, handed = _lengths(s)
    if handed and s.turn > batch + handed:
        raise ValueError(f"turn={s.turn}: must be at most {batch + handed}, half of a loop")


def draw_sizes(s: SimpleNamespace, random: Random, n: int) -> np.ndarray:
    """Return ``n`` sizes, (n,) int64: uniform ones, reduced by two more random numbers.

    The reduction follows the original.
    """
    above = random.below(n, s.high - s.low + 1)
    if s.falloff != EVEN:
        a, b = (random.below(n, 1 << 16) for _ in range(2))
        if s.falloff == LINEAR:
            above = above * np.abs(a + b - (1 << 16)) >> 16
        else:
            above = (above * a >> 16) * b >> 16
    return s.low + above


def generate(s: SimpleNamespace, random: Random) -> Events:
    """Generate the steps of all loops, the same for every thread, then the objects' lives."""
    batch, handed = _lengths(s)
    strides = [p for p in _PRIMES if s.blocks % p][:2]
    # The steps of a loop: frees, frees of a received batch, allocations, allocation of a batch.
    begins = np.cumsum([0, batch, handed, batch, handed])
    loop_length = int(begins[-1])
    loops = s.operations // (s.threads * batch) + 2

    def steps(part: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        loop, step = np.divmod(np.arange(loops * length), length)
        return loop, loop * loop_length + begins[part] + step

    born, died, by = [], [], []
    order = np.arange(loops * batch)
    for thread in range(s.threads):
        # Visits of places: both a free and an allocation end the life of the block in the place.
        place = np.concatenate([order * strides[1] % s.blocks, order * strides[0] % s.blocks])
        when = np.concatenate([steps(0, batch)[1], steps(2, batch)[1]])
        allocates = np.arange(2 * len(order)) >= len(order)
        in_time = np.argsort(when, kind="stable")
        place, when, allocates = place[in_time], when[in_time], allocates[in_time]
        before = previous(place)
        ends = np.full(len(place), NEVER)
        found = before >= 0
        ends[before[found]] = 2 * moment(thread, when[found], s.threads, s.turn)
        # Allocations get odd times and frees even ones: the old block is freed first.
        born.append(2 * moment(thread, when[allocates], s.threads, s.turn) + 1)
        died.append(ends[allocates])
        by.append(np.full((2, len(order)), thread))
    sizes = [draw_sizes(s, random, s.threads * len(order))]
    if handed:
        loop, made = steps(3, handed)
        freed = steps(1, handed)[1] + loop_length
        chosen = np.flatnonzero(loop % s.cross == 0)
        loop, made, freed = loop[chosen], made[chosen], freed[chosen]
        content = np.arange(len(loop)) % handed
        for thread in range(s.threads):
            receiver = (thread + 1 + loop // s.cross % (s.threads - 1)) % s.threads
            born.append(2 * moment(thread, made, s.threads, s.turn) + 1)
            died.append(2 * moment(receiver, freed, s.threads, s.turn))
            by.append(np.stack([np.full(len(loop), thread), receiver]))
            drawn = draw_sizes(s, random, len(loop))
            # A batch starts with its record and its array.
            drawn[content == 0] = _RECORD
            drawn[content == 1] = batch * _POINTER
            sizes.append(drawn)
    owner, receiver = np.concatenate(by, axis=1)
    return lives(
        np.concatenate(born),
        np.concatenate(died),
        np.concatenate(sizes),
        threads=(owner, receiver),
        operations=s.operations,
    )
