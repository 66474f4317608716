"""Prices of steps in nanoseconds, fitted on programs, and predictions with these prices.

The prices are the least-squares solution over all pieces of the programs, weighted to minimise the
relative error of the times: Σ (predicted / measured − 1)².  Prices must not be negative: this is
non-negative least squares (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23), by
scipy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.twin.predict.steps import KINDS

#: Parts of the time other than events and accesses, with their kinds of steps.
KERNEL = "kernel"
PARTS = {
    "caches and TLB": ("l2", "l3", "memory", "tlb", "walk"),
    "branch mispredictions": ("mispredict",),
    "copying": ("line",),
    KERNEL: ("entry",),
}


@dataclass(frozen=True)
class Sample:
    """Pieces of a program: ``steps`` (n, len(KINDS)) int64, ``kernel`` and ``measured`` (n,) ns."""

    steps: np.ndarray
    kernel: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """Nanoseconds predicted for ``steps`` (len(KINDS),) and the ``kernel``, and ``measured``."""

    steps: np.ndarray
    kernel: float
    measured: float

    @property
    def total(self) -> float:
        """Return the predicted time, in ns."""
        return float(self.steps.sum() + self.kernel)

    @property
    def error(self) -> float:
        """Return the relative error: predicted ÷ measured − 1."""
        return self.total / self.measured - 1


def fit(samples: Sequence[Sample], without: Sequence[str] = ()) -> np.ndarray:
    """Fit prices (len(KINDS),) in nanoseconds, each at least 0; those of ``without`` are 0.

    Every program has the same weight, whatever its number of pieces.  Needs scipy (the extra
    predict).
    """
    # Imported here because numba's first call in a process takes twice as long if scipy is loaded.
    from scipy.optimize import nnls

    rows, values = [], []
    for sample in samples:
        weight = 1 / (sample.measured * np.sqrt(len(sample.measured)))
        rows.append(sample.steps * weight[:, None])
        values.append((sample.measured - sample.kernel) * weight)
    matrix, target = np.concatenate(rows), np.concatenate(values)
    used = np.array([name not in without for name in KINDS]) & matrix.any(axis=0)
    prices = np.zeros(len(KINDS))
    if used.any():  # nnls corrupts memory if there is nothing to fit (scipy 1.17)
        # Scale the columns, so that rare, expensive steps are solved as accurately as common ones.
        scale = np.linalg.norm(matrix[:, used], axis=0)
        prices[used] = nnls(matrix[:, used] / scale, target)[0] / scale
    return prices


def predict(sample: Sample, prices: np.ndarray) -> Prediction:
    """Predict the time of a program by ``prices``."""
    steps = sample.steps.sum(axis=0) * prices
    return Prediction(steps, float(sample.kernel.sum()), float(sample.measured.sum()))


def median_error(predictions: Sequence[Prediction]) -> float:
    """Return the median of the absolute errors."""
    return float(np.median([abs(prediction.error) for prediction in predictions]))


def ablate(fitted: Sequence[Sample], predicted: Sequence[Sample]) -> dict[str, float]:
    """Return the median error of the prediction without each part of PARTS, by the part's name.

    The prices of a removed part are 0, and the other prices are fitted again.  Without KERNEL, the
    kernel's work is left out too.  The last entry removes all parts: events and accesses remain.
    """

    def error(kinds: Sequence[str], *, kernel: bool) -> float:
        groups = [fitted, predicted]
        if not kernel:
            groups = [[replace(s, kernel=0 * s.kernel) for s in group] for group in groups]
        prices = fit(groups[0], kinds)
        return median_error([predict(sample, prices) for sample in groups[1]])

    found = {part: error(kinds, kernel=part != KERNEL) for part, kinds in PARTS.items()}
    every = [kind for kinds in PARTS.values() for kind in kinds]
    return found | {"all these parts": error(every, kernel=False)}
