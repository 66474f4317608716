"""Tests of benchmarks.twin.predict.prices: known prices are recovered from synthetic samples."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.twin.predict.prices import PARTS, Sample, ablate, fit, median_error, predict
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


def test_known_prices_are_recovered():
    assert fit(samples(6, 1)) == pytest.approx(PLANTED)


def test_fitted_prices_predict_other_samples():
    prices = fit(samples(12, 1, noise=0.02))
    assert median_error([predict(sample, prices) for sample in samples(5, 2)]) < 0.02


def test_wrong_prices_give_large_errors():
    prices = fit(samples(6, 1, PLANTED * 2))
    assert median_error([predict(sample, prices) for sample in samples(5, 2)]) > 0.5


def test_no_price_is_negative():
    planted = PLANTED.copy()
    planted[KINDS.index("mispredict")] = -3
    prices = fit(samples(6, 1, planted))
    assert prices.min() == 0
    assert prices[KINDS.index("mispredict")] == 0


def test_a_dropped_kind_can_be_added_again():
    # Dropping the most negative price and fitting again ends with kind 2 alone, at 0.333.
    rows = np.array([[0, 4, 4], [2, 2, 4], [5, 0, 4]])
    steps = np.zeros((3, len(KINDS)), int)
    steps[:, :3] = rows
    measured = np.array([3.0, 5.0, 1.0])
    prices = fit([Sample(steps, np.zeros(3), measured)])
    assert prices[:3] == pytest.approx([0, 0.60909, 0.26364], abs=1e-4)
    misfit = np.linalg.norm(steps @ prices / measured - 1)
    assert misfit < np.linalg.norm(rows[:, 2] * 0.33301 / measured - 1) - 0.1


def test_the_fit_is_a_minimum():
    planted = PLANTED * np.random.default_rng(3).choice([-1, 1], len(KINDS))
    some = samples(6, 4, planted)
    some = [replace(s, measured=np.abs(s.measured) + 1) for s in some]
    prices = fit(some)

    def misfit(prices):
        relative = [((s.steps @ prices + s.kernel) / s.measured - 1) for s in some]
        return sum(np.square(r).mean() for r in relative)

    assert (prices == 0).any()
    assert (prices > 0).any()
    for kind in range(len(KINDS)):
        for factor, more in ((1.01, 0), (0.99, 0), (1, 0.001)):
            moved = prices.copy()
            moved[kind] = moved[kind] * factor + more
            assert misfit(moved) >= misfit(prices) * (1 - 1e-9)


def test_a_kind_that_never_occurs_has_price_zero():
    fitted = [
        Sample(s.steps * (np.arange(len(KINDS)) != 4), s.kernel, s.measured) for s in samples(6, 1)
    ]
    assert fit(fitted)[4] == 0
    assert not fit(fitted, KINDS).any()


def test_leaving_out_a_part_increases_the_error():
    errors = ablate(samples(6, 1), samples(5, 2))
    assert list(errors) == [*PARTS, "all these parts"]
    assert errors["kernel"] > errors["copying"] > 1e-6
    assert errors["all these parts"] == max(errors.values())
