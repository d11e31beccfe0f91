"""LLaVA-1.5 and LLaVA-NeXT with pruning on, against the oracle; and mistakes that this catches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.parity.checkpoint import LAYERS, NEURONS
from tests.parity.checkpoint_llava import random_image
from tests.parity.eye_llava import LlavaCase, state_of
from tests.parity.harness import QUESTIONS, Reply, ask, assert_same, pruning_of, thresholds
from tests.parity.oracle import Played, Rule, converse

STEPS = 6
IMAGES = [random_image(70, 100, seed=3), random_image(150, 33, seed=4)]
BASE = Rule(lambda1=0, lambda2=0, cut=3, neurons=NEURONS)
Cases = Callable[[str], LlavaCase]


def both(case: LlavaCase, rule: Rule) -> tuple[list[Reply], list[Played]]:
    pruning = pruning_of(rule)
    replies = ask(case.engine, state_of(case.engine, IMAGES, pruning), QUESTIONS, pruning, STEPS)
    return replies, converse(case.eye(IMAGES), QUESTIONS, rule, STEPS)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llava", {}),
        ("llava", {"register": "mean_threshold"}),
        ("llava full", {"keep_cls": True}),
        ("next llama", {"cut": 1}),
        ("next llama", {"cut": LAYERS - 1}),
        ("next llama", {"register": "zero_token", "evaluators": "question"}),
        ("next llama", {"register": "mean_threshold", "keep_cls": True}),
        ("next mistral", {"placement": "before_norm"}),
    ],
    ids=str,
)
def test_every_family_and_setting(llava_case: Cases, name: str, change: dict[str, Any]) -> None:
    case = llava_case(name)
    rule = thresholds(case.eye(IMAGES), replace(BASE, **change))
    replies, expected = both(case, rule)
    for turn in expected:
        assert 0 < turn.stage2.sum() < turn.stage1.sum() < turn.stage1.numel()
    assert_same(replies, expected, rule)


def test_no_patch_of_any_tile_passes_stage_one_and_newlines_stay(llava_case: Cases) -> None:
    case, rule = llava_case("next llama"), replace(BASE, lambda1=1e6, lambda2=1)
    replies, expected = both(case, rule)
    assert not any(turn.stage1.any() for turn in expected)
    assert_same(replies, expected, rule)
    state = state_of(case.engine, IMAGES, pruning_of(rule))
    rows = [int(rows) for rows, _ in state.view_grid[1::2]]
    assert torch.bincount(state.view[state.visual], minlength=4).tolist() == [0, rows[0], 0, rows[1]]
    assert (state.patch == -1).all()


@pytest.fixture(scope="module")
def honest(llava_case: Cases) -> tuple[Rule, list[Reply]]:
    rule = thresholds(llava_case("next llama").eye(IMAGES), BASE)
    replies, expected = both(llava_case("next llama"), rule)
    assert_same(replies, expected, rule)
    return rule, replies


@pytest.mark.parametrize(
    "mistake",
    [
        {"cut": 2},
        {"cut": 4},
        {"fault": "wrong tile's register"},
        {"fault": "newline pruned"},
        {"fault": "positions repacked"},
    ],
    ids=str,
)
def test_a_mistaken_oracle_is_noticed(
    llava_case: Cases, honest: tuple[Rule, list[Reply]], mistake: dict[str, Any]
) -> None:
    rule, replies = honest
    mistaken = converse(llava_case("next llama").eye(IMAGES), QUESTIONS, replace(rule, **mistake), STEPS)
    with pytest.raises(AssertionError):
        assert_same(replies, mistaken, rule)
