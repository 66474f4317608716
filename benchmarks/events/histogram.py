"""Log-linear histograms: small numbers have exact buckets, larger ones a bounded relative error.

Each number below ``1 << exact`` has its own bucket; every octave above is divided into
``1 << parts`` buckets of equal width, so that the floor of a bucket is less than a number in it by
at most a fraction ``1 / (1 << parts)`` of that number (as in HdrHistogram, and as TLSF's size
classes).  ``parts <= exact``.
"""

import numpy as np

from kernel.engine.bits import bit_length
from kernel.engine.jit import jit


def bucket_count(exact: int, parts: int) -> int:
    """Return the number of buckets needed for all numbers below ``1 << 63``."""
    return (1 << exact) + ((63 - exact) << parts)


@jit
def bucket(number, exact, parts):
    """Return the bucket of ``number`` >= 0."""
    octave = bit_length(number) - exact - 1
    if octave < 0:
        return number
    part = (number >> (octave + exact - parts)) & ((1 << parts) - 1)
    return (1 << exact) + (octave << parts) + part


@jit
def put_buckets(numbers, exact, parts, out):
    """Write the bucket of each of (n,) int64 numbers into ``out``, (n,)."""
    for i in range(numbers.shape[0]):
        out[i] = bucket(numbers[i], exact, parts)


def floor(buckets: np.ndarray | int, exact: int, parts: int) -> np.ndarray:
    """Return the smallest number of each bucket."""
    beyond = np.maximum(np.asarray(buckets) - (1 << exact), 0)
    octave, part = beyond >> parts, beyond & ((1 << parts) - 1)
    above = ((1 << parts) + part) << (octave + exact - parts)
    return np.where(np.asarray(buckets) < 1 << exact, buckets, above)


def quantile(counts: np.ndarray, share: float, exact: int, parts: int) -> int:
    """Return the quantile ``share`` (0 to 1) as the floor of its bucket; 0 if nothing was counted.

    ``counts``: (bucket_count(exact, parts),).
    """
    so_far = np.cumsum(counts)
    if not so_far[-1]:
        return 0
    return int(floor(np.searchsorted(so_far, share * so_far[-1]), exact, parts))
