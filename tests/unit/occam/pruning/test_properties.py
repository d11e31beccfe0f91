"""What holds for every strategy of a fixed count: exact counts, nested sets, ties, extremes, dtype and device."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from occam.pruning.cdpruner import greedy_map, kernel, relevance
from occam.pruning.controls import random_mask, uniform_mask
from occam.pruning.divprune import divprune_mask
from occam.pruning.evs import evs_mask
from occam.pruning.fastv import fastv_scores
from occam.pruning.iwp import duplication, magnitude, pc_mmr
from occam.pruning.selection import top_k
from occam.pruning.sparsevlm import raters, sparsevlm_scores
from occam.pruning.vidcom2 import vidcom2_mask
from occam.pruning.visionzip import split, visionzip_masks

Select = Callable[[Tensor, int], Tensor]


def iwp(x_VPC: Tensor, count: int) -> Tensor:
    k_NKD = x_VPC.flatten(0, 1).unflatten(1, (2, -1))
    return pc_mmr(magnitude(k_NKD[:3].repeat(1, 2, 1), k_NKD, k_NKD), duplication(k_NKD, k_NKD), count)


def cdpruner(x_VPC: Tensor, count: int) -> Tensor:
    x_NC = x_VPC.flatten(0, 1)
    return greedy_map(kernel(x_NC, relevance(x_NC, x_NC[:2])), count)


def sparsevlm(x_VPC: Tensor, count: int) -> Tensor:
    x_NC = x_VPC.flatten(0, 1)
    raters_T = raters(x_NC, x_NC[:4])
    return top_k(sparsevlm_scores(x_NC.mT[: len(raters_T)], raters_T), count)


def visionzip(x_VPC: Tensor, count: int) -> Tensor:
    dominant_VP, contextual_VP = visionzip_masks(x_VPC[..., 0], *split(count, x_VPC.shape[0]))
    return dominant_VP | contextual_VP


SELECT: dict[str, Select] = {
    "random": lambda x, count: random_mask(x[..., 0].numel(), count, seed=0),
    "uniform": lambda x, count: uniform_mask(x[..., 0].numel(), count),
    "fastv": lambda x, count: top_k(fastv_scores(x.flatten(0, 1).mT), count),
    "sparsevlm": sparsevlm,
    "iwp": iwp,
    "visionzip": visionzip,
    "divprune": lambda x, count: divprune_mask(x.flatten(0, 1), count),
    "cdpruner": cdpruner,
    "evs": evs_mask,
    "vidcom2": vidcom2_mask,
}
NESTED = [name for name in SELECT if name not in ("uniform", "visionzip", "vidcom2")]
GIVE_TIES_BY_INDEX = [name for name in SELECT if name not in ("random", "uniform", "visionzip", "vidcom2")]


def video(views: int = 4, patches: int = 5, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(views, patches, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SELECT)
@pytest.mark.parametrize("x", [video(), video(scale=0.0), video().abs() * 0 + 1, video(scale=1e4), video(3, 1)])
def test_counts_are_exact(name: str, x: Tensor) -> None:
    views, patches = x.shape[:2]
    for count in range(views * patches + 1):
        keep = SELECT[name](x, count)
        assert keep.dtype == torch.bool
        assert int(keep.sum()) == (max(count, patches) if name == "evs" else count)


@pytest.mark.parametrize("name", [name for name in SELECT if name != "visionzip"])
def test_counts_beyond_the_tokens_keep_all(name: str) -> None:
    assert bool(SELECT[name](video(), 99).all())
    assert bool(SELECT[name](video(1, 1), 99).all())


@pytest.mark.parametrize("name", SELECT)
@pytest.mark.parametrize("shape", [(0, 5, 8), (0, 0, 8)])
def test_no_tokens(name: str, shape: tuple[int, int, int]) -> None:
    assert SELECT[name](torch.zeros(shape), 3 if name != "visionzip" else 0).numel() == 0


@pytest.mark.parametrize("name", NESTED)
def test_more_tokens_hold_the_fewer(name: str) -> None:
    masks = [SELECT[name](video(), count).flatten() for count in range(21)]
    for fewer, more in pairwise(masks):
        assert bool((fewer <= more).all())


@pytest.mark.parametrize("name", GIVE_TIES_BY_INDEX)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_tokens_go_by_index(name: str, value: float) -> None:
    keep = SELECT[name](torch.full((4, 5, 8), value), 7).flatten()
    assert keep.nonzero()[:, 0].tolist() == list(range(7))


@pytest.mark.parametrize("name", SELECT)
def test_bfloat16_is_widened_before_anything_else(name: str) -> None:
    x = video().bfloat16()
    assert torch.equal(SELECT[name](x, 7), SELECT[name](x.float(), 7))


@pytest.mark.parametrize("name", SELECT)
def test_nothing_is_made_on_the_default_device(name: str) -> None:
    x = video()
    expected = SELECT[name](x, 7)
    with torch.device("meta"):
        assert torch.equal(SELECT[name](x, 7), expected)
