"""IWP against its formulas in double precision, and PC-MMR against the loop as the paper states it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occam.pruning.iwp import duplication, magnitude, pc_mmr
from tests.unit.occam.pruning import references


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (2, 2)])
def test_scores_are_those_of_the_formulas(heads: int, groups: int) -> None:
    q, k, v = random(4, heads * groups, 6, seed=0), random(9, heads, 6, seed=1), random(9, heads, 6, seed=2)
    k[5], v[5] = k[2], v[2]
    v[7, 0] = 0
    expected = references.iwp_magnitude(q.tolist(), k.tolist(), v.tolist())
    assert torch.allclose(magnitude(q, k, v), torch.tensor(expected), atol=1e-5)
    alike = torch.tensor(references.iwp_duplication(k.tolist(), v.tolist()))
    assert torch.allclose(duplication(k, v), alike, atol=1e-5)


def test_duplication_sees_small_distances_between_keys_with_a_large_common_part() -> None:
    k, v = random(8, 1, 16, seed=0) + 3000, random(8, 1, 16, seed=1)
    alike = torch.tensor(references.iwp_duplication(k.tolist(), v.tolist()))
    assert torch.allclose(duplication(k, v), alike, atol=1e-4)


def test_magnitude_of_huge_logits_is_the_limit() -> None:
    q = torch.full((2, 2, 4), 1e4)
    k = torch.tensor([[[1e4] * 4, [0.0] * 4], [[0.0] * 4, [1e4] * 4], [[-1e4] * 4, [2.0] * 4]])
    v = torch.tensor([[[1.0, 0, 0, 0], [1.0, 0, 0, 0]], [[2.0, 0, 0, 0], [3.0, 0, 0, 0]], [[9.0, 0, 0, 0]] * 2])
    assert torch.allclose(magnitude(q, k, v), torch.tensor([1 / 3, 1.0, 0.0]))


def test_without_text_magnitude_goes_by_values_alone() -> None:
    v = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[2.0, 0.0]]])
    assert magnitude(torch.zeros(0, 1, 2), random(3, 1, 2, seed=0), v).tolist() == [0, 1, 0.5]


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    q, k, v = random(3, 2, 4, seed=0), random(tokens, 2, 4, seed=1), random(tokens, 2, 4, seed=2)
    assert magnitude(q, k, v).tolist() == [1] * tokens
    assert duplication(k, v).tolist() == [[1]] * tokens
    assert pc_mmr(magnitude(q, k, v), duplication(k, v), 3).tolist() == [True] * tokens


def test_equal_tokens_go_by_index_and_zero_values_are_duplicates_of_none() -> None:
    same = torch.ones(6, 2, 4)
    assert magnitude(same, same, same).tolist() == [1] * 6
    assert duplication(same, same).tolist() == [[1] * 6] * 6
    assert pc_mmr(torch.ones(6), torch.ones(6, 6), 3).tolist() == [True] * 3 + [False] * 3
    v = torch.eye(3)[:, None]
    v[2] = 0
    assert duplication(torch.zeros(3, 1, 3), v).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("first", "growth", "penalty"), [(2, 2, 5.0), (1, 1, 5.0), (3, 2, 0.5), (2, 3, 0.0)])
def test_pc_mmr_is_the_loop_on_random_scores(seed: int, first: int, growth: int, penalty: float) -> None:
    p = torch.rand(24, generator=torch.Generator().manual_seed(seed))
    s = torch.rand(24, 24, generator=torch.Generator().manual_seed(seed + 100)) ** 2
    s = torch.maximum(s, s.mT)
    for count in range(26):
        keep = pc_mmr(p, s, count, first=first, growth=growth, penalty=penalty)
        expected = references.pc_mmr(p.tolist(), s.tolist(), count, first, growth, penalty)
        assert set(keep.nonzero()[:, 0].tolist()) == expected


# Multiples of powers of two, few steps: both precisions hold them exactly, so ties are ties in both.
@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_pc_mmr_is_the_loop_on_ties(levels: list[int], data: st.DataObject) -> None:
    n = len(levels)
    half = data.draw(st.lists(st.lists(st.sampled_from([0, 0.5, 1]), min_size=n, max_size=n), min_size=n, max_size=n))
    s = [[max(half[i][j], half[j][i]) for j in range(n)] for i in range(n)]
    p = [float(level) for level in levels]
    for count in range(n + 1):
        keep = pc_mmr(torch.tensor(p), torch.tensor(s), count, penalty=2.0)
        assert set(keep.nonzero()[:, 0].tolist()) == references.pc_mmr(p, s, count, 2, 2, 2.0)


def test_pc_mmr_spreads_what_magnitude_alone_would_not() -> None:
    p = torch.tensor([1.0, 0.99, 0.98, 0.5, 0.4])
    s = torch.eye(5)
    s[:3, :3] = 1
    assert pc_mmr(p, s, 3, first=1).tolist() == [True, False, False, True, True]
