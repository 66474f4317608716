"""Paired comparisons: one log ratio per round, its Hodges-Lehmann estimate and interval.

In a round, both sides of a comparison are measured once, close together in time, each in a fresh
process.  The logarithm of their ratio is therefore free of the machine's speed at that moment.  The
values of one process are not independent and count as one (their median).

The estimate is the median of the Walsh averages, and its interval consists of the Walsh averages
that Wilcoxon's signed-rank test does not reject (Hodges & Lehmann, Annals of Mathematical
Statistics 34, 1963; Hollander, Wolfe & Chicken, Nonparametric Statistical Methods, 3rd ed., section
3.3).  It assumes that rounds are independent and each ratio is symmetric about the same centre; it
does not assume that all have the same spread.  Both hold when the noise of a round hits either side
with the same probability, hence the random order of sides.  tests/benchmarks/timing/
test_statistics.py simulates its coverage on normal, skewed and outlier-ridden noise and on a
machine that changes its speed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Nominal coverage of every interval.
LEVEL = 0.95
#: Rounds from which an interval exists.  Five rounds can reject no ratio at this level: the
#: probability that all five lie on one side is 2/32.
LEAST_ROUNDS = 6
#: Largest difference between two sides that are called the same.
MARGIN = 0.03

#: Verdicts of a comparison.
FASTER, SLOWER, SAME, UNCLEAR = "faster", "slower", "same", "unclear"


@dataclass(frozen=True)
class Effect:
    """Ratio of two times (new / base) with its interval, and the rounds that it is made of.

    ``low`` and ``high`` are NaN below LEAST_ROUNDS rounds.
    """

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def size(self) -> float:
        """Distance of the ratio from 1 in either direction: 0.03 for 1.03 and for 1 / 1.03."""
        return math.exp(abs(math.log(self.ratio))) - 1

    def verdict(self, floor: float) -> str:
        """Return FASTER, SLOWER, SAME or UNCLEAR; ``floor`` is that of :func:`floor`.

        An effect below the floor is no difference.  SAME is claimed only if the interval excludes
        a difference larger than MARGIN; otherwise the times cannot tell: UNCLEAR.
        """
        if not math.isfinite(self.low):
            return UNCLEAR
        if self.size > floor and not self.low <= 1 <= self.high:
            return SLOWER if self.ratio > 1 else FASTER
        limit = 1 + MARGIN
        return SAME if 1 / limit <= self.low and self.high <= limit else UNCLEAR


def _signed_rank_quantile(n: int) -> int:
    """Return the number of rejected Walsh averages at either end, for ``n`` values.

    It is the largest k with P(W < k) <= (1 - LEVEL) / 2 for the signed-rank statistic W, whose
    exact distribution counts the subsets of 1..n by their sum.
    """
    subsets = np.array([1.0])
    for rank in range(1, n + 1):
        larger = np.zeros(len(subsets) + rank)
        larger[: len(subsets)] = subsets
        larger[rank:] += subsets
        subsets = larger
    below = np.concatenate(([0.0], np.cumsum(subsets) / 2.0**n))
    return int(np.searchsorted(below, (1 - LEVEL) / 2, side="right")) - 1


def centre(values: np.ndarray) -> tuple[float, float, float]:
    """Return the Hodges-Lehmann estimate of the centre of ``values`` (n,) and its interval.

    The interval is NaN below LEAST_ROUNDS values.
    """
    values = np.asarray(values, dtype="float64")
    first, second = np.triu_indices(len(values))
    walsh = np.sort((values[first] + values[second]) / 2)
    if len(values) < LEAST_ROUNDS:
        return float(np.median(walsh)), math.nan, math.nan
    rejected = _signed_rank_quantile(len(values))
    return float(np.median(walsh)), float(walsh[rejected - 1]), float(walsh[-rejected])


def effect(base: Sequence[float], new: Sequence[float]) -> Effect:
    """Compare the times (rounds,) of two sides, in any unit; position i of both is round i.

    Raises ValueError if there is no round, or a time is not positive.
    """
    return _effect(log_ratios(base, new))


def log_ratios(base: Sequence[float], new: Sequence[float]) -> np.ndarray:
    """Return log(new / base) of each round.  Raises ValueError as :func:`effect`."""
    before, after = np.asarray(base, "float64"), np.asarray(new, "float64")
    if before.shape != after.shape or not before.size:
        raise ValueError(f"no pairs: {before.size} and {after.size} rounds")
    if not (np.isfinite(before) & np.isfinite(after) & (before > 0) & (after > 0)).all():
        raise ValueError("a time is not a positive number")
    return np.log(after / before)


def _effect(logarithms: np.ndarray) -> Effect:
    middle, low, high = (math.exp(x) for x in centre(logarithms))
    return Effect(middle, low, high, len(logarithms))


def geometric_mean(logarithms: Mapping[str, np.ndarray]) -> Effect:
    """Return the geometric mean of effects on several workloads, compared over the same rounds.

    ``logarithms``: for each workload its :func:`log_ratios` (rounds,).  A round's value is the mean
    over the workloads, so that the interval covers what the rounds of one sweep share.  Raises
    ValueError if the workloads have different numbers of rounds.
    """
    return _effect(np.mean(np.stack(list(logarithms.values())), axis=0))


def floors(twins: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    """Return the A/A floor of each quantity that has one.

    ``twins``: for each round, both measurements of one cell, by quantity
    (benchmarks.timing.rounds.twins).
    """
    found = {}
    for quantity in {name: None for first, _ in twins for name in first}:
        pairs = [(a[quantity], b[quantity]) for a, b in twins if quantity in a and quantity in b]
        if len(pairs) >= LEAST_ROUNDS:
            found[quantity] = floor(effect(*zip(*pairs, strict=True)))
    return found


def floor(same: Effect) -> float:
    """Return the A/A floor: the largest effect that the interval of ``same`` contains.

    ``same`` compares a cell with itself, measured twice in every round as if it were two.  NaN if
    it has no interval.
    """
    return max(same.high, 1 / same.low) - 1
