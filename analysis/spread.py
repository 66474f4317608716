"""Confidence intervals, and captions that state what they are taken over.

Variation between seeds (different inputs) and between repetitions (the same input) must not be
mixed.  If a cell (an allocator on a workload) has two seeds or more, its observations are one
number per seed, and its interval covers variation between inputs.  With one seed, its observations
are the timed values of that run, and its interval covers variation between repetitions only.
"""

import numpy as np
import pandas as pd

#: Confidence level of every interval, in percent.
LEVEL = 95
#: Bootstrap resamples.
RESAMPLES = 4000


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the mean of ``values`` (n,), in their unit.

    Resampling is seeded: the same values yield the same interval.  NaN for fewer than two values.
    For n = 2 the interval spans both values; for small n it covers less than its nominal level.
    """
    values = np.asarray(values, dtype="float64")
    if len(values) < 2:
        return (np.nan, np.nan)
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values[chosen].mean(axis=1), (tail, 100 - tail))
    return (float(low), float(high))


def mark_end(values: np.ndarray) -> float:
    """Return the larger of the mean of ``values`` (n,) and its upper limit, in their unit."""
    return float(np.nanmax([np.mean(values), interval(values)[1]]))


def time_observations(times: pd.DataFrame) -> pd.DataFrame:
    """Return the observations over which the interval of each cell's time is taken.

    ``times``: label, workload, seed, ns_per_op (ns), a row per timed value.  The result has the
    columns label, workload, ns_per_op and over: "seeds" for one row per seed with the mean of its
    values, "values" for the timed values of the only seed.
    """
    cells = []
    for (label, workload), cell in times.groupby(["label", "workload"]):
        by_seed = cell.groupby("seed")["ns_per_op"].mean()
        over = "seeds" if len(by_seed) > 1 else "values"
        observed = by_seed if over == "seeds" else cell["ns_per_op"]
        cells.append(
            pd.DataFrame(
                {"label": label, "workload": workload, "ns_per_op": observed.values, "over": over}
            )
        )
    return pd.concat(cells, ignore_index=True)


def describe_time(observations: pd.DataFrame) -> str:
    """Return the caption sentence that states what the intervals of ``observations`` are over."""
    counts = observations.groupby(["label", "workload", "over"]).size().reset_index(name="n")
    parts = []
    seeds = counts.loc[counts["over"] == "seeds", "n"]
    if len(seeds):
        parts.append(f"over {_span(seeds)} seeds (per seed, the mean of its timed values)")
    values = counts.loc[counts["over"] == "values", "n"]
    if len(values):
        where = " where there is only one seed" if len(seeds) else " of one seed"
        parts.append(f"over the {_span(values)} timed values{where}")
    return f"{LEVEL} % bootstrap confidence interval of the mean {'; '.join(parts)}."


def describe_counts(runs: pd.DataFrame) -> str:
    """Return the caption sentence that states what a deterministic metric is averaged over."""
    seeds = runs.groupby(["label", "workload"])["seed"].nunique()
    if seeds.max() == 1:
        return "Counts for one seed; they are deterministic and have no interval."
    return (
        f"Mean over {_span(seeds)} seeds with its {LEVEL} % bootstrap confidence interval; counts "
        "are deterministic for a given seed."
    )


def _span(counts: "pd.Series[int]") -> str:
    """Return the range of ``counts`` as text: ``5``, or ``3–5`` if cells differ."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"
