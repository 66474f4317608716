"""How much a number varies, and over what.

Spread over seeds (other inputs) and spread over time (the same input again) are different things.
Where a cell, an allocator on a workload, has two seeds or more, its observations are one number per
seed and its interval tells what another seed would give; with one seed the timed values of that run
are all there is, and the interval tells only what another repetition would give.
"""

import numpy as np
import pandas as pd

#: Confidence level of every interval, in percent.
LEVEL = 95
#: Bootstrap resamples.
RESAMPLES = 4000


def interval(values: np.ndarray) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of ``values`` (n,), in their unit.

    The resampling is seeded: the same values give the same interval.  One value has none (NaN).
    With n = 2 it spans the two; with few seeds it is narrower than its level says.
    """
    values = np.asarray(values, dtype="float64")
    if len(values) < 2:
        return (np.nan, np.nan)
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values[chosen].mean(axis=1), (tail, 100 - tail))
    return (float(low), float(high))


def mark_end(values: np.ndarray) -> float:
    """Where the mark of the mean of ``values`` (n,) and of its interval ends, in their unit."""
    return float(np.nanmax([np.mean(values), interval(values)[1]]))


def time_observations(times: pd.DataFrame) -> pd.DataFrame:
    """What the interval of a cell's time is taken over.

    ``times``: label, workload, seed, ns_per_op (ns), a row per timed value.  Returns label,
    workload, ns_per_op and over: "seeds", a row per seed with the mean of its values, or "values",
    the timed values of the only seed.
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
    """The sentence of a caption that says what the intervals of ``observations`` are over."""
    counts = observations.groupby(["label", "workload", "over"]).size().reset_index(name="n")
    parts = []
    seeds = counts.loc[counts["over"] == "seeds", "n"]
    if len(seeds):
        parts.append(f"over {_span(seeds)} seeds (each by the mean of its timed values)")
    values = counts.loc[counts["over"] == "values", "n"]
    if len(values):
        where = " where there is one seed only" if len(seeds) else " of one seed"
        parts.append(f"over the {_span(values)} timed values{where}")
    return f"{LEVEL} % bootstrap confidence interval of the mean {'; '.join(parts)}."


def describe_counts(runs: pd.DataFrame) -> str:
    """The sentence of a caption that says what the mean of a deterministic metric is over."""
    seeds = runs.groupby(["label", "workload"])["seed"].nunique()
    if seeds.max() == 1:
        return "Counts of one seed; they are deterministic and have no interval."
    return (
        f"Mean over {_span(seeds)} seeds with its {LEVEL} % bootstrap confidence interval; "
        "for a given seed the counts are deterministic."
    )


def _span(counts: "pd.Series[int]") -> str:
    """``5``, or ``3–5`` where cells differ."""
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low}–{high}"
