"""Compare integer tables with the true distributions, and random numbers with their source."""

import math

import numpy as np
import pytest

from benchmarks.workloads.base.prng import Random
from benchmarks.workloads.base.sizes import _normal_grid, _tables, sizes


def test_splitmix64_reference():
    # The published test vector for seed 1234567.
    assert Random(1234567).bits(5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_random_numbers_continue_and_depend_on_the_seed():
    whole = Random(5).bits(10)
    random = Random(5)
    assert np.concatenate([random.bits(3), random.bits(7)]).tolist() == whole.tolist()
    assert not np.array_equal(Random(6).bits(10), whole)


def test_below_and_permutation():
    drawn = Random(1).below(60_000, 6)
    counts = np.bincount(drawn, minlength=6)
    assert counts.sum() == 60_000
    assert len(counts) == 6
    assert abs(counts - 10_000).max() < 400
    assert Random(1).below(1000, 1 << 32).max() < 1 << 32
    assert sorted(Random(1).permutation(1000).tolist()) == list(range(1000))


def table_mean(distribution):
    """Return the exact mean of the distribution in the tables, bytes."""
    mean = 0
    for table in reversed(_tables(distribution)):
        cells = (table[:-1] + table[1:]) / 512
        mean = (cells[: 4096 - 64].sum() + 64 * mean) / 4096 if mean else cells.mean()
    return mean


def power_mean(a, low, high):
    def moment(k):
        return (
            math.log(high / low)
            if k == a - 1
            else (high ** (k - a + 1) - low ** (k - a + 1)) / (k - a + 1)
        )

    return moment(1) / moment(0)


MEANS = [
    ({}, 64 * math.exp(1.25**2 / 2)),
    ({"median": 4096, "sigma": 0.5}, 4096 * math.exp(0.125)),
    ({"median": 100, "sigma": 0}, 100),
    ({"kind": "exponential"}, 140),
    ({"kind": "exponential", "mean": 100_000}, 100_000),
    *(
        ({"kind": "power", "exponent": a, "low": low, "high": high}, power_mean(a, low, high))
        for a in (0, 0.5, 1, 1.5, 2, 3)
        for low, high in ((4, 32_768), (16, 1024))
    ),
    ({"kind": "power", "low": 16, "high": 16}, 16),
]


@pytest.mark.parametrize(("settings", "mean"), MEANS, ids=[str(s) for s, _ in MEANS])
def test_means(settings, mean):
    assert table_mean(sizes(**settings).default) == pytest.approx(mean, rel=1e-3)


def test_default_mean_is_about_140_bytes():
    drawn = sizes().default.draw(Random(1), 2_000_000)
    assert drawn.mean() == pytest.approx(140, rel=0.01)
    assert drawn.min() >= 1


def normal_cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


@pytest.mark.parametrize(
    ("settings", "cdf"),
    [
        ({"median": 4096}, lambda x: normal_cdf(math.log(x / 4096) / 1.25)),
        ({"kind": "exponential", "mean": 5000}, lambda x: 1 - math.exp(-x / 5000)),
        (
            {"kind": "power", "low": 64, "high": 65536},
            lambda x: (1 / 64 - 1 / x) / (1 / 64 - 1 / 65536),
        ),
        ({"kind": "uniform", "low": 1, "high": 10_000}, lambda x: x / 10_000),
    ],
)
def test_shape(settings, cdf):
    n = 400_000
    drawn = np.sort(sizes(**settings).default.draw(Random(3), n))
    for share in (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999):
        x = drawn[int(share * n)]
        # Tolerance: half a byte of rounding, plus the sampling error of n draws.
        noise = 4 * math.sqrt(share * (1 - share) / n)
        assert cdf(x - 1) - noise <= share <= cdf(x + 1) + noise, share


def test_normal_quantiles():
    grid = _normal_grid() / 2.0**52
    true = np.array(
        [
            1 - normal_cdf(i / 256) if i < 512 else 0.5 * math.erfc(i / 256 / math.sqrt(2))
            for i in range(len(grid))
        ]
    )
    assert np.max(np.abs(grid - true)) < 1e-6
    assert np.max(np.abs(grid / true - 1)[: int(5.4 * 256)]) < 5e-5


def test_uniform_and_list_are_exact():
    drawn = sizes(kind="uniform", low=8, high=11).default.draw(Random(1), 40_000)
    assert np.unique(drawn).tolist() == [8, 9, 10, 11]
    assert abs(np.bincount(drawn)[8:] - 10_000).max() < 400
    pick = sizes(kind="list", choices=(0, 16, 48), weights=(1, 0, 3)).default
    drawn = pick.draw(Random(1), 40_000)
    assert np.unique(drawn).tolist() == [0, 48]
    assert np.count_nonzero(drawn == 48) == pytest.approx(30_000, rel=0.02)


def test_huge_spread_stays_in_bounds():
    drawn = sizes(median=1 << 28, sigma=4).default.draw(Random(1), 100_000)
    assert drawn.min() >= 1
    assert drawn.max() == 1 << 30
