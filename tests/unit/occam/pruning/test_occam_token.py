"""The rule against a literal loop over tokens, ties and empty inputs included."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from occam.config import OccamToken
from occam.models.compact import Layout, compact
from occam.pruning.occam_token import OccamTokenStrategy, frame_mask, question_mask
from occam.pruning.strategy import Projections, TextEvidence

SCORES = st.integers(0, 8).map(lambda n: n / 8)


@given(
    st.lists(st.lists(SCORES, min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 6).map(lambda n: n / 4)
)
def test_stage_one_is_the_comparison_written_out(rows: list[list[float]], lambda1: float) -> None:
    reference = [row[-1] for row in rows]
    mask = frame_mask(torch.tensor(rows), torch.tensor(reference), lambda1)
    assert mask.keep.tolist() == [
        score >= lambda1 * ref for row, ref in zip(rows, reference, strict=True) for score in row
    ]


@given(st.lists(SCORES, max_size=12), SCORES, st.integers(0, 12).map(lambda n: n / 4), st.integers(0, 4))
def test_stage_two_keeps_what_passes_and_never_fewer_than_the_floor(
    scores: list[float], reference: float, lambda2: float, floor: int
) -> None:
    keep = question_mask(torch.tensor(scores), torch.tensor(reference), lambda2, floor).keep
    passing = [score >= lambda2 * reference for score in scores]
    if sum(passing) >= floor:
        assert keep.tolist() == passing
    else:
        kept = [score for score, kept in zip(scores, keep.tolist(), strict=True) if kept]
        assert len(kept) == min(floor, len(scores))
        assert sorted(kept, reverse=True) == sorted(scores, reverse=True)[: len(kept)]


def test_evidence_is_the_largest_over_text_for_a_token_and_the_mean_for_the_register() -> None:
    strategy = OccamTokenStrategy(OccamToken(lambda1=1, lambda2=1, cut=1, register="zero_token"))
    mask = strategy.in_decoder(0, seen([[0.1, 0.4, 0.2], [0.3, 0.0, 0.2]], register=[0.1, 0.5]))
    assert mask.scores.tolist() == pytest.approx([0.3, 0.4, 0.2])
    assert float(mask.threshold) == pytest.approx(0.3)
    assert mask.keep.tolist() == [True, True, False]


def test_without_a_register_the_mean_takes_its_place() -> None:
    strategy = OccamTokenStrategy(OccamToken(lambda1=1, lambda2=2, cut=1, register="mean_threshold"))
    assert strategy.in_tower(torch.tensor([[0.1, 0.3]]), None).keep.tolist() == [False, True]
    rows = [[0.1, 0.4], [0.1, 0.2]]
    assert float(strategy.in_decoder(0, seen(rows)).threshold) == pytest.approx(0.4)


def test_ablations_change_what_is_compared_with_and_nothing_else() -> None:
    rows = [[0.1, 0.4, 0.2, 0.05], [0.3, 0.0, 0.2, 0.05]]
    kept = {
        ("register", 1.0): [True, True, False, False],
        ("mean", 1.0): [True, True, False, False],
        ("mean", 0.8): [True, True, True, False],
        ("first_token", 1.0): [False, False, False, False],
        ("first_token", 0.5): [False, True, False, False],
        ("top_k", 0.5): [True, True, False, False],
        ("top_k", 0.75): [True, True, True, False],
        ("top_p", 0.4): [False, True, False, False],
        ("top_p", 0.5): [True, True, False, False],
        ("top_p", 1.0): [True, True, True, True],
    }
    for (rule, lambda2), wanted in kept.items():
        config = OccamToken(lambda1=1, lambda2=lambda2, cut=1, register="zero_token", rule=rule, min_tokens=0)
        evidence = seen(rows, register=[0.1, 0.5], first=[0.8, 0.6])
        assert OccamTokenStrategy(config).in_decoder(0, evidence).keep.tolist() == wanted, (rule, lambda2)


def seen(
    rows: list[list[float]], register: list[float] | None = None, first: list[float] | None = None
) -> TextEvidence:
    """What a cut sees of these attention rows."""
    nothing = torch.zeros(0, 0)
    return TextEvidence(
        rows_TN=torch.tensor(rows),
        register_T=None if register is None else torch.tensor(register),
        first_T=torch.tensor(first or [0.0] * len(rows)),
        encoded=len(rows[0]),
        layers=2,
        hidden=lambda: (nothing, nothing),
        projections=lambda: Projections(nothing, nothing, nothing, nothing),
    )


@pytest.mark.parametrize("keep_cls", [False, True])
def test_kept_tokens_keep_the_position_they_have_in_the_stock_sequence(keep_cls: bool) -> None:
    keep = torch.tensor([[True, False, False, True], [False] * 4, [False, True, True, False]])
    kept = compact(Layout.of_frames(3, side=2, with_cls=True), keep, keep_cls)
    expected = [1, 4, 12, 13] if not keep_cls else [0, 1, 4, 5, 10, 12, 13]
    assert kept.offsets.tolist() == expected
    assert kept.source.tolist() == expected
    assert kept.view.tolist() == [offset // 5 for offset in expected]
    assert kept.patch.tolist() == [offset % 5 - 1 for offset in expected]


def test_a_sequence_without_cls_tokens_and_with_tokens_of_its_own_keeps_its_positions() -> None:
    layout = Layout.of_frames(2, side=2, with_cls=False)
    assert layout.source.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    newline = torch.tensor([-1])
    layout = replace(
        layout,
        source=torch.cat([layout.source[:4], newline, layout.source[4:]]),
        view=torch.cat([layout.view[:4], newline + 1, layout.view[4:]]),
        patch=torch.cat([layout.patch[:4], newline, layout.patch[4:]]),
    )
    kept = compact(layout, torch.tensor([[False, True, False, False], [False] * 4]), keep_cls=True)
    assert kept.offsets.tolist() == [1, 4]
    assert kept.source.tolist() == [2, -1]
    assert kept.patch.tolist() == [1, -1]


@pytest.mark.parametrize(("field", "value"), [("lambda1", -0.1), ("lambda2", math.inf), ("cut", 0), ("min_tokens", -1)])
def test_settings_out_of_range_name_the_field_and_the_value(field: str, value: float) -> None:
    settings = {"lambda1": 1.0, "lambda2": 1.0, "cut": 2, "register": "zero_token", field: value}
    with pytest.raises(ValueError, match=rf"{field} must .*{value}"):
        OccamToken(**settings)  # type: ignore[arg-type]


def test_a_cut_deeper_than_the_model_is_refused() -> None:
    strategy = OccamTokenStrategy(OccamToken(lambda1=1, lambda2=1, cut=6, register="zero_token"))
    with pytest.raises(ValueError, match=r"1\.\.5 for 6 decoder layers, got 6"):
        strategy.cuts(6)
