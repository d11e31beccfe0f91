"""SparseVLM's raters and scores against their formulas, its schedule against the published one."""

import pytest
import torch

from occam.pruning.sparsevlm import attention_rank, cut_counts, cuts_of, raters, sparsevlm_scores
from tests.unit.occam.pruning import references


@pytest.mark.parametrize("seed", range(10))
def test_raters_are_those_of_the_formula(seed: int) -> None:
    visual = torch.randn(11, 5, generator=torch.Generator().manual_seed(seed))
    text = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed + 100))
    expected = references.sparsevlm_raters(visual.tolist(), text.tolist())
    assert 0 < sum(expected) < 7
    assert raters(visual, text).tolist() == expected


def test_equal_text_tokens_all_rate() -> None:
    visual = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    assert raters(visual, torch.randn(1, 33).expand(7, 33)).tolist() == [True] * 7
    assert raters(visual, visual[:1]).tolist() == [True]
    assert raters(visual[:0], visual[:3]).tolist() == [True] * 3
    assert raters(visual, visual[:0]).tolist() == []
    assert raters(torch.zeros(4, 3), torch.zeros(2, 3)).tolist() == [True, True]


def test_rounding_parts_no_equal_text_tokens() -> None:
    row = torch.randn(33, generator=torch.Generator().manual_seed(0))
    permuted = torch.stack([row.roll(shift) for shift in range(33)])
    assert bool(raters(torch.full((50, 33), 0.37), permuted).all())


def test_huge_products_leave_the_winner() -> None:
    assert raters(torch.tensor([[1e6, 0.0]]), torch.tensor([[1e6, 0], [2e6, 0], [-1e6, 0]])).tolist() == [0, 1, 0]


def test_scores_are_the_mean_over_raters() -> None:
    rows = torch.tensor([[0.5, 0.25, 0.0], [0.125, 0.5, 0.25], [0.25, 0.0, 0.5]])
    assert sparsevlm_scores(rows, torch.tensor([True, False, True])).tolist() == [0.375, 0.125, 0.25]
    assert sparsevlm_scores(rows, torch.tensor([False] * 3)).tolist() == [0, 0, 0]
    assert sparsevlm_scores(rows[:0], torch.zeros(0, dtype=torch.bool)).tolist() == [0, 0, 0]
    assert sparsevlm_scores(rows.bfloat16(), torch.tensor([True, False, True])).dtype == torch.float32


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("text", "visual", "rank"), [(9, 40, 9), (9, 40, 4), (12, 5, 5), (12, 5, 2), (3, 500, 1)])
def test_the_rank_is_that_of_the_raters_rows(text: int, visual: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Products of so many independent factors, positive as attention is, rounded to float32 as the model's rows are.
    factors = torch.rand(text, rank, generator=generator), torch.rand(rank, visual, generator=generator)
    rows = (
        torch.softmax(torch.randn(text, visual, generator=generator), dim=1)
        if rank == text
        else (factors[0].double() @ factors[1].double()).float()
    )
    assert attention_rank(rows, torch.ones(text, dtype=torch.bool)) == rank
    some = torch.rand(text, generator=generator) < 0.5
    assert attention_rank(rows, some) == references.attention_rank(rows.tolist(), some.tolist())


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e30])
def test_the_rank_depends_on_no_scale(scale: float) -> None:
    rows = torch.tensor([[1.0, 2, 3], [2, 4, 6], [0, 1, 0], [1, 3, 3]]) * scale
    every = torch.ones(4, dtype=torch.bool)
    assert attention_rank(rows, every) == references.attention_rank(rows.tolist(), every.tolist()) == 2


def test_ranks_at_the_ends() -> None:
    rows = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    every = torch.ones(5, dtype=torch.bool)
    assert attention_rank(rows[:1].expand(5, 8), every) == 1
    assert attention_rank(rows * 0, every) == 0
    assert attention_rank(rows, ~every) == 0
    assert attention_rank(rows[:, :0], every) == 0
    assert attention_rank(rows[:0], every[:0]) == 0
    assert attention_rank(torch.eye(5), every) == 5


def test_cuts_scale_with_depth() -> None:
    assert cuts_of(32) == (2, 6, 15)
    assert cuts_of(28) == (2, 5, 13)
    assert cuts_of(8) == (1, 2, 4)
    assert cuts_of(2) == (1,)
    assert cuts_of(1) == ()


@pytest.mark.parametrize(("average", "published"), [(192, (300, 200, 118)), (64, (66, 34, 20))])
def test_counts_are_near_the_published_ones(average: int, published: tuple[int, ...]) -> None:
    for count, paper in zip(cut_counts(576, average, (2, 6, 15), 32), published, strict=True):
        assert abs(count - paper) <= max(13, 0.05 * paper)


@pytest.mark.parametrize("cuts", [(2, 6, 15), (1,), (3, 9), (0, 4, 8, 12, 31)])
@pytest.mark.parametrize("average", [40, 64.5, 128, 300, 575.5])
def test_counts_give_the_average_over_all_layers(cuts: tuple[int, ...], average: float) -> None:
    counts = cut_counts(576, average, cuts, 32)
    seen = [[576, *counts][sum(layer >= cut for cut in cuts)] for layer in range(32)]
    if average * 32 > 576 * cuts[0]:
        assert references.mean(seen) == pytest.approx(average, abs=0.5)
    assert sorted(counts, reverse=True) == list(counts)


def test_counts_at_the_ends() -> None:
    assert cut_counts(576, 576, (2, 6, 15), 32) == (576, 576, 576)
    assert cut_counts(576, 36, (2, 6, 15), 32) == (0, 0, 0)
    assert cut_counts(576, 0, (2, 6, 15), 32) == (0, 0, 0)
    assert cut_counts(0, 0, (2, 6, 15), 32) == (0, 0, 0)
    assert cut_counts(100, 50, (), 1) == ()
