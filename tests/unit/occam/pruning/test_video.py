"""EVS, DTD and VidCom2 against loops over views and patches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from occam.pruning.dtd import dtd_mask
from occam.pruning.evs import evs_mask
from occam.pruning.vidcom2 import similarities, vidcom2_mask, view_budgets
from tests.unit.occam.pruning import references

AXES = torch.cat([torch.eye(3), -torch.eye(3)[:1], torch.zeros(1, 3)])
VIDEOS = st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4)


def video(seed: int, views: int = 5, patches: int = 6, channels: int = 7) -> Tensor:
    return torch.randn(views, patches, channels, generator=torch.Generator().manual_seed(seed))


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


@pytest.mark.parametrize("seed", range(4))
def test_evs_keeps_the_first_view_and_what_changed_most(seed: int) -> None:
    features = video(seed)
    changes = flat(references.changes(features.tolist()))
    for count in range(32):
        keep = evs_mask(features, count)
        assert set(keep.flatten().nonzero()[:, 0].tolist()) == references.best(changes, max(count, 6))


@settings(deadline=None, max_examples=50)
@given(VIDEOS)
def test_evs_on_ties_and_zeros(axes: list[list[int]]) -> None:
    features = AXES[torch.tensor(axes)]
    changes = flat(references.changes(features.tolist()))
    for count in range(len(changes) + 1):
        keep = evs_mask(features, count)
        assert set(keep.flatten().nonzero()[:, 0].tolist()) == references.best(changes, max(count, 3))


def test_evs_orders_static_patches_by_index_alone() -> None:
    features = video(0, views=1, patches=50, channels=33).expand(3, 50, 33)
    assert evs_mask(features, 70).flatten().nonzero()[:, 0].tolist() == list(range(70))


@pytest.mark.parametrize("tau", [-1.0, -0.2, 0.0, 0.5, 1.0])
def test_dtd_drops_what_exceeds_tau(tau: float) -> None:
    features = video(3)
    expected = [[1 - change <= tau for change in row] for row in references.changes(features.tolist())]
    assert dtd_mask(features, tau).tolist() == expected


def test_dtd_at_one_keeps_even_what_stands_still() -> None:
    features = video(0, views=1, patches=50, channels=33).expand(3, 50, 33)
    assert bool(dtd_mask(features, 1.0).all())


@settings(deadline=None, max_examples=50)
@given(VIDEOS, st.sampled_from([-0.5, 0.0, 0.5]))
def test_dtd_on_ties_and_zeros(axes: list[list[int]], tau: float) -> None:
    features = AXES[torch.tensor(axes)]
    expected = [[1 - change <= tau for change in row] for row in references.changes(features.tolist())]
    assert dtd_mask(features, tau).tolist() == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("channels", [1, 7, 8])
def test_vidcom2_similarities_are_those_of_the_formulas(seed: int, channels: int) -> None:
    features = video(seed, channels=channels) * torch.linspace(0.5, 2, channels)
    features[1, 3] = 0
    for ours, expected in zip(similarities(features), references.vidcom2_similarities(features.tolist()), strict=True):
        assert torch.allclose(ours, torch.tensor(expected), atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_vidcom2_budgets_are_the_wanted_ones_made_whole(seed: int) -> None:
    likeness = 3 + 0.02 * torch.rand(5, 6, generator=torch.Generator().manual_seed(seed))
    for count in range(31):
        budgets = view_budgets(likeness, count)
        wanted = references.vidcom2_wanted(likeness.tolist(), count)
        assert sum(budgets) == count
        assert all((count >= 5) <= budget <= 6 for budget in budgets)
        if all(1 <= share <= 6 for share in wanted):
            down = [int(share) for share in wanted]
            more = references.best([s - d for s, d in zip(wanted, down, strict=True)], count - sum(down))
            assert budgets == [d + (view in more) for view, d in enumerate(down)]


def test_vidcom2_gives_more_to_the_unusual_view_and_no_view_more_than_it_has() -> None:
    likeness = torch.full((4, 10), 4.0)
    likeness[2] = 3.0
    assert view_budgets(likeness, 10) == [2, 2, 4, 2]
    assert view_budgets(likeness, 34) == [8, 8, 10, 8]
    assert view_budgets(torch.full((4, 10), 4.0), 10) == [3, 3, 2, 2]
    assert view_budgets(torch.full((4, 10), 4.0), 2) == [1, 1, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_vidcom2_keeps_the_least_alike_of_each_view(seed: int) -> None:
    features = video(seed)
    to_video, to_view = references.vidcom2_similarities(features.tolist())
    for count in (0, 1, 4, 7, 15, 29, 30, 40):
        keep = vidcom2_mask(features, count)
        budgets = view_budgets(torch.tensor(to_video), min(count, 30))
        for view, budget in enumerate(budgets):
            unlike = [-a - b for a, b in zip(to_video[view], to_view[view], strict=True)]
            assert set(keep[view].nonzero()[:, 0].tolist()) == references.best(unlike, budget)
