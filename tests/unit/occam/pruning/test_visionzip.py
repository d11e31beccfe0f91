"""VisionZip's patches and its merge against loops over patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occam.pruning.visionzip import merge_weights, split, visionzip_masks
from tests.unit.occam.pruning import references


def check(received: Tensor, keys: Tensor, dominant: list[int], contextual: list[int]) -> None:
    masks = visionzip_masks(received, torch.tensor(dominant), torch.tensor(contextual))
    kinds, sums = references.visionzip(received.tolist(), keys.tolist(), dominant, contextual)
    assert masks[0].tolist() == [[kind == "dominant" for kind in view] for view in kinds]
    assert masks[1].tolist() == [[kind == "contextual" for kind in view] for view in kinds]
    weights, patches = merge_weights(keys, *masks), received.shape[1]
    expected = torch.zeros(weights.shape, dtype=torch.float64)
    for target, sources in sums.items():
        for source, weight in sources.items():
            assert source // patches == target // patches
            if source != target:
                expected[target // patches, target % patches, source % patches] = weight
    torch.testing.assert_close(weights.double(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("contextual", [[1, 1, 1], [3, 0, 2], [5, 4, 30], [0, 0, 0]])
def test_random_views_of_unequal_budgets(seed: int, contextual: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    received, keys = torch.rand(3, 17, generator=generator), torch.randn(3, 17, 2, 4, generator=generator)
    check(received, keys, [4, 2, 0], contextual)
    check(received, keys, [17, 20, 16], contextual)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 4), st.integers(0, 4), st.data())
def test_ties_go_to_the_lower_index(levels: list[int], dominant: int, contextual: int, data: st.DataObject) -> None:
    axis = data.draw(st.lists(st.integers(0, 3), min_size=len(levels), max_size=len(levels)))
    keys = torch.cat([torch.eye(3), torch.zeros(1, 3)])[axis][None, :, None]
    check(torch.tensor([levels], dtype=torch.float32), keys, [dominant], [contextual])


def test_output_is_target_plus_mean_of_assigned() -> None:
    received = torch.tensor([[0.0, 9, 0, 0, 0, 0]])
    keys = torch.tensor([[1.0, 0], [0, 0], [0, 1], [0, 1], [3, 1], [0, 0.5]])[None, :, None]
    features = torch.tensor([[1.0], [10], [100], [1000], [10000], [100000]])
    masks = visionzip_masks(received, torch.tensor([1]), torch.tensor([2]))
    out = features + merge_weights(keys, *masks)[0] @ features
    assert masks[1].nonzero()[:, 1].tolist() == [0, 3]
    assert out[[0, 1, 3], 0].tolist() == [1 + 10000, 10, 1000 + (100 + 100000) / 2]


def test_a_budget_is_spread_over_views_and_split_in_each() -> None:
    dominant, contextual = split(13, 4)
    assert (dominant + contextual).tolist() == [3, 3, 3, 4]
    assert dominant.tolist() == [3, 3, 3, 3]
    assert [n.tolist() for n in split(128, 2)] == [[54, 54], [10, 10]]
    assert [n.tolist() for n in split(128, 2, share=1.0)] == [[64, 64], [0, 0]]
    assert [n.tolist() for n in split(0, 2)] == [[0, 0], [0, 0]]
    assert [n.tolist() for n in split(0, 0)] == [[], []]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 300), st.integers(1, 12))
def test_no_view_gets_two_more_than_another(count: int, views: int) -> None:
    kept = sum(split(count, views)).tolist()  # type: ignore[arg-type]
    assert sum(kept) == count
    assert max(kept) - min(kept) <= 1
