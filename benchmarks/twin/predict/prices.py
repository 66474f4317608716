"""Nanoseconds a step, fitted on programs; what others will take by these prices.

The prices are the least-squares solution over all pieces of the programs, each weighted so that
what is minimised is the relative error of its time: Σ (predicted / measured − 1)².  No step can
cost less than nothing: this is non-negative least squares (Lawson and Hanson, Solving Least Squares
Problems, 1974, chapter 23), by scipy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.twin.predict.steps import KINDS

#: Parts of a time beside events and accesses, with their kinds of steps.
KERNEL = "kernel"
PARTS = {
    "caches and TLB": ("l2", "l3", "memory", "tlb", "walk"),
    "wrong guesses": ("wrong",),
    "copying": ("line",),
    KERNEL: ("entry",),
}


@dataclass(frozen=True)
class Sample:
    """A program's pieces: ``steps`` (n, len(KINDS)) int64, ``kernel`` and ``measured`` (n,) ns."""

    steps: np.ndarray
    kernel: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """Nanoseconds: ``steps`` by kind, (len(KINDS),), the ``kernel``'s, and the ``measured``."""

    steps: np.ndarray
    kernel: float
    measured: float

    @property
    def total(self) -> float:
        """What is predicted."""
        return float(self.steps.sum() + self.kernel)

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.total / self.measured - 1


def fit(samples: Sequence[Sample], without: Sequence[str] = ()) -> np.ndarray:
    """Prices (len(KINDS),) in nanoseconds, each at least 0; those of ``without`` are 0.

    Every program weighs the same, however many pieces it has.  Needs scipy (the extra predict).
    """
    # Late: numba's first call in a process takes twice as long where scipy is loaded.
    from scipy.optimize import nnls

    rows, values = [], []
    for sample in samples:
        weight = 1 / (sample.measured * np.sqrt(len(sample.measured)))
        rows.append(sample.steps * weight[:, None])
        values.append((sample.measured - sample.kernel) * weight)
    matrix, target = np.concatenate(rows), np.concatenate(values)
    used = np.array([name not in without for name in KINDS]) & matrix.any(axis=0)
    prices = np.zeros(len(KINDS))
    if used.any():  # nnls corrupts memory when there is nothing to fit (scipy 1.17)
        # Of one scale, so that rare and dear steps are solved for as well as common ones.
        scale = np.linalg.norm(matrix[:, used], axis=0)
        prices[used] = nnls(matrix[:, used] / scale, target)[0] / scale
    return prices


def predict(sample: Sample, prices: np.ndarray) -> Prediction:
    """What a program takes by ``prices``."""
    steps = sample.steps.sum(axis=0) * prices
    return Prediction(steps, float(sample.kernel.sum()), float(sample.measured.sum()))


def median_error(predictions: Sequence[Prediction]) -> float:
    """The median of the errors' sizes."""
    return float(np.median([abs(prediction.error) for prediction in predictions]))


def without_each(fitted: Sequence[Sample], predicted: Sequence[Sample]) -> dict[str, float]:
    """The median error of the prediction where a part of PARTS costs nothing, by the part's name.

    The other prices are fitted anew each time.  The part KERNEL is without the kernel's work too,
    and so is the last, all of them: events and accesses are all that is left.
    """

    def error(kinds: Sequence[str], *, kernel: bool) -> float:
        groups = [fitted, predicted]
        if not kernel:
            groups = [[replace(s, kernel=0 * s.kernel) for s in group] for group in groups]
        prices = fit(groups[0], kinds)
        return median_error([predict(sample, prices) for sample in groups[1]])

    found = {part: error(kinds, kernel=part != KERNEL) for part, kinds in PARTS.items()}
    every = [kind for kinds in PARTS.values() for kind in kinds]
    return found | {"all of these": error(every, kernel=False)}
