"""Budgets, top-k, scalings and the controls, against sentences written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from occam.pruning.controls import random_mask, uniform_mask
from occam.pruning.fastv import fastv_scores
from occam.pruning.selection import count_of, top_k
from occam.pruning.similarity import change, cosines, min_max, unit
from tests.unit.occam.pruning import references


@pytest.mark.parametrize(
    ("budget", "total", "count"),
    [
        (1, 144, 144), (0.5, 144, 72), (0.05, 144, 7), (0.02, 144, 3), (0.29, 100, 29), (0.125, 20, 3), (0.01, 20, 0),
        (2, 144, 2), (17.5, 144, 18), (500, 144, 144), (math.inf, 144, 144), (0, 144, 0), (-3, 144, 0), (0.5, 0, 0),
    ],
)  # fmt: skip
def test_a_budget_is_a_share_up_to_one_and_a_number_above(budget: float, total: int, count: int) -> None:
    assert count_of(budget, total) == count


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), max_size=20), st.integers(-1, 22))
def test_top_k_takes_the_highest_and_the_first_of_equals(scores: list[int], count: int) -> None:
    keep = top_k(torch.tensor(scores, dtype=torch.float32), count)
    assert set(keep.nonzero()[:, 0].tolist()) == references.best(scores, count)


def test_top_k_holds_the_first_of_equals_where_sorts_are_no_longer_stable_by_luck() -> None:
    assert top_k(torch.zeros(5000), 1200).nonzero()[:, 0].tolist() == list(range(1200))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200), st.integers(0, 220))
def test_uniform_stands_in_the_middle_of_equal_stretches(total: int, count: int) -> None:
    keep = uniform_mask(total, count)
    count = min(count, total)
    assert keep.nonzero()[:, 0].tolist() == [math.floor((i + 0.5) * total / count) for i in range(count)]


def test_random_is_a_fair_draw_of_its_seed_alone() -> None:
    before = torch.get_rng_state()
    mask = random_mask(400, 100, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(random_mask(400, 100, seed=7), mask)
    assert not torch.equal(random_mask(400, 100, seed=8), mask)
    often = torch.stack([random_mask(20, 5, seed=seed) for seed in range(2000)]).sum(dim=0)
    assert (often - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_fastv_scores_are_the_last_tokens() -> None:
    rows = torch.tensor([[0.5, 0.1, 0.2], [0.1, 0.3, 0.4]])
    assert torch.equal(fastv_scores(rows), rows[1])
    assert fastv_scores(rows[:0]).tolist() == [0, 0, 0]
    assert fastv_scores(rows.bfloat16()).dtype == torch.float32


def test_cosines_are_those_of_the_formula_at_every_magnitude() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    y = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    expected = [[references.cosine(a, b) for b in y.tolist()] for a in x.tolist()]
    for factor in (1.0, 1e30, 1e-30):
        assert torch.allclose(cosines(x * factor, y), torch.tensor(expected), atol=1e-6)
    assert cosines(torch.zeros(1, 7), y).tolist() == [[0, 0, 0, 0]]
    assert unit(x.bfloat16()).dtype == torch.float32


def test_change_is_one_less_cosine_with_the_view_before() -> None:
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(2))
    x[1, 0] = 0
    x[3, 1] = x[2, 1]
    x[3, 2] = -x[2, 2]
    moved = change(x)
    assert moved[3, 1] == 0
    assert torch.allclose(moved, torch.tensor(references.changes(x.tolist())), atol=1e-6)


def test_scaling_spans_zero_to_one_and_rounding_makes_no_range() -> None:
    assert min_max(torch.tensor([3.0, -1.0, 1.0])).tolist() == [1, 0, 0.5]
    assert min_max(torch.tensor([-3.0, -1.0, -2.0])).tolist() == [0, 1, 0.5]
    assert min_max(torch.tensor([0.1, 0.1 + 1e-8, 0.1])).tolist() == [1, 1, 1]
    assert min_max(torch.tensor([-0.1, -0.1 + 1e-8, -0.1])).tolist() == [1, 1, 1]
    assert min_max(torch.zeros(3)).tolist() == [1, 1, 1]
    assert min_max(torch.zeros(0)).tolist() == []
