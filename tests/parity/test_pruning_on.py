"""Pruning on against the oracle: kept sets, scores, ids and logits; and the mistakes this comparison catches."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occam.engine.engine import Engine
from tests.parity.checkpoint import LAYERS, NEURONS, pixels, random_frames
from tests.parity.harness import QUESTIONS, Reply, ask, assert_same, build, load, pruning_of
from tests.parity.oracle import Fault, Played, Rule, converse
from tests.parity.oracle_tower import VideoLlavaEye, look

STEPS = 16
FRAMES = random_frames(5, seed=2)
BASE = Rule(lambda1=0, lambda2=0, cut=3, neurons=NEURONS)


def widest_gap(ratios: torch.Tensor) -> float:
    """A threshold in the middle of the widest gap between the 30th and the 70th percentile of the ratios."""
    ratios = ratios[~ratios.isnan()].sort().values
    inner = ratios[int(0.3 * len(ratios)) : int(0.7 * len(ratios)) + 1]
    at = int(inner.diff().argmax())
    return float(inner[at : at + 2].mean())


def with_lambdas(stock: Any, tokenizer: Any, rule: Rule, *, empty_frame: bool = False) -> Rule:
    """The rule with thresholds that really cut, far from any score; optionally one frame keeps nothing."""
    frames = look(stock.model, pixels(FRAMES), rule, -2)
    ratios_FP = frames.scores / frames.reference[:, None]
    lambda1 = widest_gap(ratios_FP.flatten())
    if empty_frame:
        lambda1 = float(ratios_FP.max(dim=1).values.sort().values[:2].mean())
    rule = replace(rule, lambda1=lambda1)
    played = converse(VideoLlavaEye(stock, tokenizer, pixels(FRAMES)), QUESTIONS, rule, 1)
    return replace(rule, lambda2=widest_gap(torch.cat([turn.scores.flatten() / turn.reference for turn in played])))


def both(engine: Engine, stock: Any, tokenizer: Any, rule: Rule) -> tuple[list[Reply], list[Played]]:
    pruning = pruning_of(rule)
    expected = converse(VideoLlavaEye(stock, tokenizer, pixels(FRAMES)), QUESTIONS, rule, STEPS)
    return ask(engine, build(engine, FRAMES, pruning), QUESTIONS, pruning, STEPS), expected


@pytest.mark.parametrize("empty_frame", [False, True], ids=["", "a frame keeps nothing"])
@pytest.mark.parametrize("cut", [1, 3, LAYERS - 1])
def test_every_cut(engine: Engine, stock: Any, tokenizer: Any, cut: int, empty_frame: bool) -> None:
    rule = with_lambdas(stock, tokenizer, replace(BASE, cut=cut), empty_frame=empty_frame)
    replies, expected = both(engine, stock, tokenizer, rule)
    for turn in expected:
        assert 0 < turn.stage2.sum() < turn.stage1.sum() < turn.stage1.numel()
        assert any(not view.any() for view in turn.stage1.split(turn.sizes)) == empty_frame
    assert_same(replies, expected, rule)


@pytest.mark.parametrize(
    "change",
    [
        {"register": "zero_token"},
        {"register": "mean_threshold"},
        {"evaluators": "question"},
        {"evaluators": "question", "register": "mean_threshold"},
        {"keep_cls": True},
        {"placement": "before_norm"},
    ],
    ids=str,
)
def test_every_setting(engine: Engine, stock: Any, tokenizer: Any, change: dict[str, Any]) -> None:
    rule = with_lambdas(stock, tokenizer, replace(BASE, **change))
    replies, expected = both(engine, stock, tokenizer, rule)
    assert_same(replies, expected, rule)


@pytest.mark.parametrize(("min_tokens", "kept"), [(0, 0), (1, 1), (3, 3), (10_000, None)])
def test_min_tokens_survive_a_threshold_nobody_passes(
    engine: Engine, stock: Any, tokenizer: Any, min_tokens: int, kept: int | None
) -> None:
    lambda1 = with_lambdas(stock, tokenizer, BASE).lambda1
    rule = replace(BASE, lambda1=lambda1, lambda2=1e6, min_tokens=min_tokens)
    replies, expected = both(engine, stock, tokenizer, rule)
    assert all(turn.stage2.sum() == (turn.stage1.sum() if kept is None else kept) for turn in expected)
    assert_same(replies, expected, rule)


def test_lambda_zero_keeps_every_patch(engine: Engine, stock: Any, tokenizer: Any) -> None:
    replies, expected = both(engine, stock, tokenizer, BASE)
    assert all(turn.stage2.all() for turn in expected)
    assert_same(replies, expected, BASE)


def test_no_patch_of_any_frame_passes_stage_one(engine: Engine, stock: Any, tokenizer: Any) -> None:
    rule = replace(BASE, lambda1=1e6, lambda2=1)
    replies, expected = both(engine, stock, tokenizer, rule)
    assert not any(turn.stage1.any() for turn in expected)
    assert_same(replies, expected, rule)


def test_an_answer_that_ends_by_itself(checkpoint: Path, stock: Any, tokenizer: Any) -> None:
    """The end token is what the model gave, not what the engine appends; the next turn stands on it all the same."""
    rule = with_lambdas(stock, tokenizer, BASE)
    fifth = converse(VideoLlavaEye(stock, tokenizer, pixels(FRAMES)), QUESTIONS[:1], rule, 5)[0].generated[-1]
    engine, ending = load(checkpoint), deepcopy(stock)
    heads: tuple[Any, ...] = (engine.lm.decoder.head, ending.lm_head)
    for rows in (head.weight.data for head in heads):
        rows[tokenizer.eos_token_id] = 1.1 * rows[fifth]
    replies, expected = both(engine, ending, tokenizer, rule)
    assert replies[0].answer.finish_reason == "stop"
    assert replies[0].answer.turn.closing_ids == ()
    assert_same(replies, expected, rule)


FAULTS: list[Fault] = [
    "positions repacked",
    "survivors reused",
    "tower softmax without register",
    "decoder softmax without register",
    "old register visible",
]


@pytest.fixture(scope="module")
def honest(engine: Engine, stock: Any, tokenizer: Any) -> tuple[Rule, list[Reply]]:
    rule = with_lambdas(stock, tokenizer, BASE)
    replies, expected = both(engine, stock, tokenizer, rule)
    assert_same(replies, expected, rule)
    return rule, replies


@pytest.mark.parametrize("mistake", [{"cut": 2}, {"cut": 4}, *({"fault": fault} for fault in FAULTS)], ids=str)
def test_a_mistaken_oracle_is_noticed(
    honest: tuple[Rule, list[Reply]], stock: Any, tokenizer: Any, mistake: dict[str, Any]
) -> None:
    rule, replies = honest
    mistaken = converse(VideoLlavaEye(stock, tokenizer, pixels(FRAMES)), QUESTIONS, replace(rule, **mistake), STEPS)
    with pytest.raises(AssertionError):
        assert_same(replies, mistaken, rule)
