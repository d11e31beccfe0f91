"""Inclusion probabilities against a bisection, the sample against a walk along it; ties, zeros and extremes."""

import math

import pytest
import torch

from occam.pruning.systematic import inclusion, systematic_mask

CASES = {
    "random": torch.rand(40, generator=torch.Generator().manual_seed(0)),
    "peaked": torch.rand(40, generator=torch.Generator().manual_seed(1)) ** 12,
    "even": torch.full((17,), 0.25),
    "ties": torch.tensor([0.5, 0.1, 0.5, 0.1, 0.5, 0.1, 0.1]),
    "tiny": torch.rand(20, generator=torch.Generator().manual_seed(2)) * 1e-30,
    "one": torch.tensor([0.3]),
}


def bisected(scores: list[float], count: int) -> list[float]:
    """min(1, c s) by halving the range of c."""
    low, high = 0.0, count / min(scores)
    for _ in range(2000):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(min(1.0, middle * s) for s in scores) < count else (low, middle)
    return [min(1.0, high * s) for s in scores]


def walked(probabilities: list[float]) -> list[bool]:
    """A token is kept iff one of 1/2, 3/2, ... lies in its stretch of the running sum."""
    kept, end = [], 0.0
    for probability in probabilities:
        start, end = end, end + probability
        kept.append(any(start < k + 0.5 <= end + 1e-9 for k in range(len(probabilities))))
    return kept


@pytest.mark.parametrize("name", CASES)
def test_probabilities_are_proportional_and_sum_to_the_count(name: str) -> None:
    scores = CASES[name]
    for count in range(1, len(scores) + 1):
        ours = inclusion(scores, count)
        assert ours.tolist() == pytest.approx(bisected(scores.double().tolist(), count), rel=1e-9)
        assert float(ours.sum()) == pytest.approx(count)


@pytest.mark.parametrize("name", CASES)
def test_the_sample_is_that_of_a_walk(name: str) -> None:
    scores = CASES[name]
    for count in range(1, len(scores) + 1):
        probabilities = inclusion(scores, count)
        mask = systematic_mask(probabilities)
        assert mask.tolist() == walked(probabilities.tolist())
        assert int(mask.sum()) == count
        assert bool(mask[probabilities == 1].all())


def test_even_scores_are_taken_at_a_stride() -> None:
    mask = systematic_mask(inclusion(torch.ones(12), 4))
    assert mask.nonzero()[:, 0].tolist() == [1, 4, 7, 10]


def test_zeros_come_last() -> None:
    scores = torch.tensor([0.0, 0.9, 0.0, 0.1, 0.0, 0.0])
    assert inclusion(scores, 2).tolist() == [0, 1, 0, 1, 0, 0]
    assert inclusion(scores, 4).tolist() == [0.5, 1, 0.5, 1, 0.5, 0.5]
    assert inclusion(torch.zeros(4), 2).tolist() == [0.5] * 4
    assert inclusion(scores, 9).tolist() == [1] * 6
    assert inclusion(scores[:0], 3).tolist() == []
