"""The intervals cover what they claim, on noise of many shapes; the floor and verdicts."""

import math

import numpy as np
import pytest

from benchmarks.timing import statistics
from benchmarks.timing.statistics import (
    FASTER,
    LEAST_ROUNDS,
    SAME,
    SLOWER,
    UNCLEAR,
    Effect,
    effect,
    floor,
    geometric_mean,
    log_ratios,
)

ROUNDS = 10
COMPARISONS = 4000
RATIO = 1.02


def normal(rng, shape):
    return rng.normal(0, 0.02, shape)


def skewed(rng, shape):
    return rng.lognormal(-4, 0.8, shape)


def outliers(rng, shape):
    return rng.normal(0, 0.01, shape) + (rng.random(shape) < 0.15) * rng.exponential(0.5, shape)


def slow_rounds(rng, shape):
    """A machine that is half as fast for three rounds, in which pairs are 25 % apart."""
    spread = np.full(shape, 0.01)
    level = np.zeros(shape)
    for comparison, begin in enumerate(rng.integers(shape[2] - 2, size=shape[0])):
        spread[comparison, :, begin : begin + 3] = 0.25
        level[comparison, :, begin : begin + 3] = 0.7
    return level + rng.normal(size=shape) * spread


@pytest.mark.parametrize("noise", [normal, skewed, outliers, slow_rounds])
def test_intervals_cover_the_true_ratio_at_the_nominal_level(noise):
    times = np.exp(noise(np.random.default_rng(7), (COMPARISONS, 2, ROUNDS)))
    found = [effect(base, RATIO * new) for base, new in times]
    assert 0.93 <= np.mean([e.low <= RATIO <= e.high for e in found]) <= 0.97


def test_the_check_of_coverage_notices_a_wrong_interval():
    """The interval of pooled samples, as if all samples of a process were independent."""
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(500):
        process = rng.normal(0, 0.02, (ROUNDS, 1)) + rng.normal(0, 0.004, (ROUNDS, 5))
        _, low, high = statistics.centre(process.ravel())
        covered.append(low <= 0 <= high)
    assert np.mean(covered) < 0.9


@pytest.mark.parametrize(
    ("n", "rejected"), [(6, 1), (7, 3), (8, 4), (9, 6), (10, 9), (12, 14), (20, 53), (25, 90)]
)
def test_critical_values_equal_the_published_table(n, rejected):
    """Two-sided 0.05 critical values of Wilcoxon's signed-rank statistic, plus one."""
    assert statistics._signed_rank_quantile(n) == rejected


def test_no_interval_below_six_rounds():
    few = effect([10.0] * (LEAST_ROUNDS - 1), [11.0] * (LEAST_ROUNDS - 1))
    assert math.isclose(few.ratio, 1.1)
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    assert few.verdict(0.0) == UNCLEAR


def test_one_disturbed_round_does_not_move_the_estimate():
    base = [10.0, 10.1, 9.9, 10.0, 10.2, 9.8, 10.0, 10.1, 9.9, 10.0]
    new = [*base[:-1], 40.0]
    assert abs(effect(base, new).ratio - 1) < 0.02


@pytest.mark.parametrize(
    ("interval", "floor", "verdict"),
    [
        ((1.05, 1.03, 1.07), 0.01, SLOWER),
        ((0.95, 0.93, 0.97), 0.01, FASTER),
        ((1.008, 1.004, 1.012), 0.01, SAME),
        ((1.008, 1.004, 1.012), 0.005, SLOWER),
        ((1.01, 0.99, 1.02), 0.005, SAME),
        ((1.01, 0.90, 1.20), 0.01, UNCLEAR),
        ((1.10, 1.05, 1.20), 0.15, UNCLEAR),
    ],
)
def test_verdicts(interval, floor, verdict):
    assert Effect(*interval, rounds=10).verdict(floor) == verdict


def test_the_floor_is_the_largest_effect_that_the_interval_contains():
    assert math.isclose(floor(Effect(1.0, 0.98, 1.01, 10)), 1 / 0.98 - 1)
    assert math.isclose(floor(Effect(1.0, 0.99, 1.03, 10)), 0.03)


def test_geometric_mean_over_workloads_keeps_what_rounds_share():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 0.05, 12)
    found = geometric_mean({"a": shared + math.log(2), "b": shared - math.log(2)})
    alone = geometric_mean({"a": shared})
    assert math.isclose(found.ratio, alone.ratio)
    assert math.isclose(found.high, alone.high)


@pytest.mark.parametrize(
    ("base", "new"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0], [math.nan])]
)
def test_times_that_cannot_be_compared(base, new):
    with pytest.raises(ValueError, match=r"no pairs|positive"):
        log_ratios(base, new)
