"""Confidence intervals have their nominal coverage, and numbers their short form."""

import numpy as np
import pandas as pd
import pytest

from analysis import spread, style


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        low, high = spread.interval(rng.normal(10, 2, 40))
        hits += low <= 10 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_an_interval_is_reproducible_and_needs_two_values() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert spread.interval(values) == spread.interval(values)
    assert spread.interval(np.array([3.0, 3.0])) == (3.0, 3.0)
    assert np.isnan(spread.interval(np.array([3.0]))).all()
    assert spread.mark_end(np.array([3.0])) == 3.0


def test_seeds_and_repetitions_are_kept_apart() -> None:
    times = pd.DataFrame(
        [("a", 1, 10.0), ("a", 1, 20.0), ("a", 2, 30.0), ("b", 1, 1.0), ("b", 1, 2.0)],
        columns=["label", "seed", "ns_per_op"],
    ).assign(workload="w")
    observed = spread.time_observations(times).groupby("label")
    assert list(observed.get_group("a")["ns_per_op"]) == [15.0, 30.0]
    assert set(observed.get_group("a")["over"]) == {"seeds"}
    assert list(observed.get_group("b")["ns_per_op"]) == [1.0, 2.0]
    assert set(observed.get_group("b")["over"]) == {"values"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12, "12"), (999.9, "1k"), (3_400, "3.4k"), (999_999, "1M")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert style.short(value) == text


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(0, "bytes"), (1023, "bytes"), (1024, "KiB"), (2**20, "MiB"), (2**31, "GiB")],
)
def test_byte_units(largest: int, unit: str) -> None:
    divisor, name = style.byte_unit(largest)
    assert name == unit
    assert largest / divisor < 1024
