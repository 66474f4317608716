"""Log-linear buckets: each number's bucket has a floor close to it, and in the same bucket."""

import numpy as np
import pytest

from benchmarks.events.histogram import bucket, bucket_count, floor, put_buckets, quantile
from kernel.engine.jit import build

VALUES = sorted({0, *(max((1 << e) + d, 0) for e in range(63) for d in (-1, 0, 1)), (1 << 63) - 1})


@pytest.fixture(params=[(4, 4), (10, 6), (3, 0)], ids=str)
def bits(request):
    return request.param


@pytest.mark.parametrize("value", VALUES)
def test_a_floor_is_near_and_in_the_same_bucket(value, bits):
    exact, parts = bits
    least = int(floor(bucket(value, *bits), *bits))
    assert 0 <= value - least <= (value >> parts if value >= 1 << exact else 0)
    assert bucket(least, *bits) == bucket(value, *bits) < bucket_count(*bits)


def test_buckets_follow_one_another(bits):
    every = np.arange(bucket_count(*bits))
    floors = floor(every, *bits)
    assert (np.diff(floors) > 0).all()
    out = np.empty(len(every), "i8")
    build(put_buckets)(floors, *bits, out)
    assert (out == every).all()


def test_quantiles_are_those_of_the_sorted_numbers():
    numbers = np.random.default_rng(1).integers(0, 1 << 20, 10_000)
    counts = np.bincount([bucket(int(n), 10, 6) for n in numbers], minlength=bucket_count(10, 6))
    for share in (0.1, 0.5, 0.9, 0.99, 1.0):
        exactly = int(np.sort(numbers)[int(np.ceil(share * len(numbers))) - 1])
        assert 0 <= exactly - quantile(counts, share, 10, 6) <= exactly >> 6
    assert quantile(np.zeros(bucket_count(4, 4), "i8"), 0.5, 4, 4) == 0
