"""DivPrune and CDPruner against loops over all distances and all determinants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occam.pruning.cdpruner import greedy_map, kernel, relevance
from occam.pruning.divprune import divprune_mask
from tests.unit.occam.pruning import references

AXES = torch.cat([torch.eye(4), -torch.eye(4)[:2], torch.zeros(1, 4)])


def kept(mask: Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("seed", range(6))
def test_divprune_is_greedy_max_min_on_random_features(seed: int) -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    for count in range(14):
        assert kept(divprune_mask(features, count)) == references.divprune(features.tolist(), count)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_divprune_is_greedy_max_min_on_duplicates_and_zeros(axes: list[int]) -> None:
    for count in range(len(axes) + 2):
        assert kept(divprune_mask(AXES[axes], count)) == references.divprune(AXES[axes].tolist(), count)


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.9])
def test_relevance_is_that_of_the_formula(theta: float) -> None:
    visual = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    text = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    visual[3] = 0
    expected = references.cdpruner_relevance(visual.tolist(), text.tolist(), theta)
    assert torch.allclose(relevance(visual, text, theta), torch.tensor(expected), atol=1e-4)


def test_relevance_prefers_what_the_text_says_and_is_level_without_text() -> None:
    scores = relevance(AXES[:3], AXES[[1]])
    assert scores.argmax() == 1
    assert relevance(AXES[:3], AXES[:0]).tolist() == [1, 1, 1]
    same = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)).expand(40, 33)
    assert len(set(relevance(same, torch.randn(5, 33)).tolist())) == 1


def test_kernel_is_that_of_the_formula() -> None:
    features, r = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)), torch.rand(7)
    features[2] = 0
    rows = features.tolist()
    expected = [[float(r[i]) * references.cosine(rows[i], rows[j]) * float(r[j]) for j in range(7)] for i in range(7)]
    assert torch.allclose(kernel(features, r), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_map_takes_the_largest_determinant(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = kernel(torch.randn(6, 8, generator=generator), 1 + torch.rand(6, generator=generator))
    for count in range(8):
        assert kept(greedy_map(matrix, count)) == references.greedy_determinants(matrix.tolist(), count)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_greedy_map_beyond_the_rank_goes_by_weight(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = kernel(torch.randn(6, rank, generator=generator), 1 + torch.rand(6, generator=generator))
    for count in range(7):
        expected = references.greedy_determinants(matrix.tolist(), count, zero=1e-4)
        assert kept(greedy_map(matrix, count)) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=6))
def test_greedy_map_on_duplicates_zeros_and_ties(tokens: list[tuple[int, float]]) -> None:
    matrix = kernel(AXES[[axis for axis, _ in tokens]], torch.tensor([weight for _, weight in tokens]))
    for count in range(len(tokens) + 2):
        assert kept(greedy_map(matrix, count)) == references.greedy_determinants(matrix.tolist(), count)


def test_equally_relevant_tokens_start_at_the_first() -> None:
    features = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    assert kept(greedy_map(kernel(features, torch.ones(64)), 1)) == {0}
