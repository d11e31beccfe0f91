"""Intervals and paired tests for small experiments, seeded."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean of `n` values with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def estimate(values: npt.ArrayLike, resamples: int = 2000) -> Estimate:
    """Mean and percentile bootstrap interval of samples [N], or [N, K] of which each has K values that hang together.

    Whole samples are drawn again, since the values of one are not independent; ValueError on no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("there is nothing to estimate from")
    drawn = sample.reshape(len(sample), -1).mean(axis=1)
    rng = np.random.default_rng(0)
    means = rng.choice(drawn, size=(resamples, len(drawn))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean=float(sample.mean()), low=float(low), high=float(high), n=sample.size)


def paired_p(differences: npt.ArrayLike, flips: int = 10_000) -> float:
    """One-sided p of `mean difference > 0` under random signs (sign-flip permutation test)."""
    sample = np.asarray(differences, dtype=np.float64)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(flips, sample.size))
    return float((1 + np.sum((signs * sample).mean(axis=1) >= sample.mean())) / (1 + flips))
