"""What estimates are taken over, and the short form of numbers."""

from collections.abc import Sequence

import pandas as pd
import pytest

from analysis import spread, style
from benchmarks.replay.metrics import WARM


def rows(seed: int, times: Sequence[float]) -> pd.DataFrame:
    """Return the rows of Results.times for one cell and quantity."""
    frame = pd.DataFrame({"ns_per_op": times, "round": range(len(times)), "seed": seed})
    return frame.assign(label="a", workload="w", quantity=WARM)


def test_the_time_of_a_round_is_the_geometric_mean_over_seeds() -> None:
    times = pd.concat([rows(1, [10.0] * 8), rows(2, [40.0] * 8), rows(3, [20.0] * 8)])
    (cell,) = spread.over_rounds(times).itertuples()
    assert cell.value == pytest.approx(20.0)
    assert (cell.low, cell.high) == (pytest.approx(20.0), pytest.approx(20.0))
    assert (cell.rounds, cell.seeds) == (8, 3)


def test_a_round_that_a_seed_lacks_does_not_count() -> None:
    (cell,) = spread.over_rounds(pd.concat([rows(1, [10.0] * 8), rows(2, [10.0] * 7)])).itertuples()
    assert cell.rounds == 7


def test_counts_span_their_seeds() -> None:
    runs = pd.DataFrame({"label": ["a", "a", "b"], "workload": "w", "faults": [1, 3, 7]})
    cells = spread.over_seeds(runs, "faults").set_index("label")
    assert tuple(cells.loc["a", spread.ESTIMATE]) == (2, 1, 3)
    assert cells.loc["b", "value"] == 7
    assert cells.loc["b", ["low", "high"]].isna().all()


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
