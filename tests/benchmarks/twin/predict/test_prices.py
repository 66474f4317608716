"""benchmarks.twin.predict.prices: planted prices are found, and errors are those of the time."""

import numpy as np
import pytest

from benchmarks.twin.predict.prices import PARTS, Sample, fit, median_error, predict, without_each
from benchmarks.twin.predict.steps import KINDS

PLANTED = np.array([4.0, 0.5, 2.0, 10.0, 60.0, 3.0, 30.0, 1.0, 6.0, 300.0])


def samples(count, seed, prices=PLANTED, noise=0.0):
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        steps = random.integers(0, 10_000, (8, len(KINDS))) // random.integers(1, 50, len(KINDS))
        kernel = random.uniform(0, 20_000, 8)
        time = (steps @ prices + kernel) * random.normal(1, noise, 8)
        found.append(Sample(steps, kernel, time))
    return found


def test_planted_prices_are_found():
    assert fit(samples(6, 1)) == pytest.approx(PLANTED)


def test_others_are_predicted_from_them():
    prices = fit(samples(12, 1, noise=0.02))
    assert median_error([predict(sample, prices) for sample in samples(5, 2)]) < 0.02


def test_other_prices_are_noticed():
    prices = fit(samples(6, 1, PLANTED * 2))
    assert median_error([predict(sample, prices) for sample in samples(5, 2)]) > 0.5


def test_no_step_costs_less_than_nothing():
    planted = PLANTED.copy()
    planted[KINDS.index("wrong")] = -3
    prices = fit(samples(6, 1, planted))
    assert prices.min() == 0
    assert prices[KINDS.index("wrong")] == 0


def test_what_never_happens_has_no_price():
    fitted = [
        Sample(s.steps * (np.arange(len(KINDS)) != 4), s.kernel, s.measured) for s in samples(6, 1)
    ]
    assert fit(fitted)[4] == 0


def test_a_part_that_matters_is_missed():
    errors = without_each(samples(6, 1), samples(5, 2))
    assert list(errors) == [*PARTS, "all of these"]
    assert errors["kernel"] > errors["copying"] > 1e-6
    assert errors["all of these"] == max(errors.values())
