"""Estimates of cells with what they vary over, and captions that say so.

A cell is an allocator on a workload.  Its time varies from round to round; its deterministic
metrics vary from seed to seed only.
"""

import numpy as np
import pandas as pd

from benchmarks.timing import statistics

#: Confidence level of every interval, in percent.
LEVEL = round(100 * statistics.LEVEL)
#: Columns of an estimate: its value, and the ends of its whisker.
ESTIMATE = ["value", "low", "high"]


def over_rounds(times: pd.DataFrame) -> pd.DataFrame:
    """Return the time of each cell with its interval over rounds.

    ``times``: label, workload, quantity, seed, round and ns_per_op, a row per measurement.  The
    result has the columns label, workload, quantity, value, low, high (ns; the ends are NaN below
    statistics.LEAST_ROUNDS rounds), rounds and seeds.  A round's value is the geometric mean over
    the seeds; a round that a seed lacks does not count.
    """
    rows = []
    for (label, workload, quantity), cell in times.groupby(["label", "workload", "quantity"]):
        logarithms = np.log(cell.pivot(index="round", columns="seed", values="ns_per_op").dropna())
        value, low, high = np.exp(statistics.centre(logarithms.mean(axis=1).to_numpy()))
        rounds, seeds = logarithms.shape
        rows.append((label, workload, quantity, value, low, high, rounds, seeds))
    columns = ["label", "workload", "quantity", *ESTIMATE, "rounds", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def over_seeds(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the mean of a deterministic metric in each cell, and its lowest and highest seed.

    ``runs``: label, workload and ``column``, a row per seed.  The result has the columns label,
    workload, value, low and high; the ends are NaN for one seed.
    """
    cells = runs.groupby(["label", "workload"])[column].agg(["mean", "min", "max", "count"])
    cells.columns = [*ESTIMATE, "seeds"]
    cells.loc[cells["seeds"] < 2, ["low", "high"]] = np.nan
    return cells.reset_index()


def ends(cells: pd.DataFrame) -> "pd.Series[float]":
    """Return by label the larger of value and upper end; ``cells``: label, value and high."""
    return cells.set_index("label")[["value", "high"]].max(axis=1)


def describe_times(cells: pd.DataFrame) -> str:
    """Return the caption sentence that states what the intervals of :func:`over_rounds` cover."""
    whose = "one seed" if cells["seeds"].max() == 1 else f"{_span(cells['seeds'])} seeds"
    if cells["rounds"].max() < statistics.LEAST_ROUNDS:
        few = f"Time: median of {_span(cells['rounds'])} rounds on {whose};"
        return f"{few} below {statistics.LEAST_ROUNDS} rounds there is no interval."
    mean = "" if cells["seeds"].max() == 1 else " (of each round, the geometric mean)"
    return (
        f"Time: Hodges–Lehmann estimate and {LEVEL} % signed-rank interval over "
        f"{_span(cells['rounds'])} rounds on {whose}{mean}."
    )


def describe_counts(runs: pd.DataFrame) -> str:
    """Return the caption sentence that states what a deterministic metric is averaged over."""
    seeds = runs.groupby(["label", "workload"])["seed"].nunique()
    if seeds.max() == 1:
        return "Counts for one seed; they are deterministic and have no interval."
    return (
        f"Counts: mean over {_span(seeds)} seeds, whiskers from the lowest to the highest seed; "
        "they are deterministic for a given seed."
    )


def _span(counts: "pd.Series[int]") -> str:
    """Return the range of ``counts`` as text: ``5``, or ``3–5`` if cells differ."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"
