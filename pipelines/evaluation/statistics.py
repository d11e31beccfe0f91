"""Intervals and paired tests for small experiments, seeded."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_FLIPS_AT_ONCE = 1000  # memory: thousands of samples, ten thousand flips


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


def estimate_columns(values: npt.ArrayLike, resamples: int = 2000) -> Estimate:
    """Mean of the columns' means of samples [N, K], NaN where a sample has no value, with its interval.

    Whole samples (rows) are drawn again, of those that have a value; a column that a draw leaves empty does not count
    in it. ValueError where a column has no value at all.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[~np.isnan(table).all(axis=1)]
    present = ~np.isnan(table)
    if not present.any(axis=0).all() or not table.size:
        raise ValueError("there is a column with nothing to estimate from")
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=resamples)
    sums, counts = weights @ np.where(present, table, 0.0), weights @ present
    drawn = (sums / np.maximum(counts, 1)).sum(axis=1) / (counts > 0).sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    mean = float(np.nanmean(table, axis=0).mean())
    return Estimate(mean=mean, low=float(low), high=float(high), n=int(present.sum()))


def auc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Chance that a positive sample scores above another, ties half (Mann-Whitney); ValueError without both."""
    values, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    positives, others = int(is_positive.sum()), int((~is_positive).sum())
    if not (positives and others):
        raise ValueError(f"there must be samples of both kinds, got {positives} positive and {others} other")
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[is_positive].sum() - positives * (positives + 1) / 2) / (positives * others))


def paired_p(differences: npt.ArrayLike, flips: int = 10_000) -> float:
    """One-sided p of `mean difference > 0` under random signs (sign-flip permutation test)."""
    sample = np.asarray(differences, dtype=np.float64)
    signs = _signs(flips, sample.size)
    parts = (signs[start : start + _FLIPS_AT_ONCE] for start in range(0, flips, _FLIPS_AT_ONCE))
    at_least = sum(int(np.sum((part * sample).mean(axis=1) >= sample.mean())) for part in parts)
    return (1 + at_least) / (1 + flips)


@lru_cache(maxsize=4)
def _signs(flips: int, size: int) -> npt.NDArray[np.int8]:
    """The same for all differences of a table, which are many."""
    return np.random.default_rng(0).choice(np.array((-1, 1), dtype=np.int8), size=(flips, size))


def estimate_groups(values: npt.ArrayLike, groups: npt.ArrayLike, resamples: int = 2000) -> Estimate:
    """Mean of samples [N] with its interval, samples of one group [N] hanging together: whole groups are drawn again.

    ValueError on no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    sums, counts = _by_group(sample, groups)
    drawn = _drawn(resamples, len(sums))
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [0.025, 0.975])
    return Estimate(mean=float(sample.mean()), low=float(low), high=float(high), n=sample.size)


@lru_cache(maxsize=4)
def _drawn(resamples: int, size: int) -> npt.NDArray[np.float64]:
    """How often each group is drawn in each resample; the same for all figures of a table."""
    return np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def paired_p_groups(differences: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Two-sided p of `mean difference = 0` over samples [N], the signs of a group's [N] samples flipped together."""
    sums, _ = _by_group(np.asarray(differences, dtype=np.float64), groups)
    return min(1.0, 2 * min(paired_p(sums), paired_p(-sums)))


def _by_group(
    sample: npt.NDArray[np.float64], groups: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum and number of each group's samples."""
    if sample.size == 0:
        raise ValueError("there is nothing to estimate from")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = (np.bincount(place, weights=weights) for weights in (sample, np.ones_like(sample)))
    return sums.astype(np.float64), counts.astype(np.float64)
