"""Pruning on against the oracle: kept sets, scores, ids and logits; and the mistakes this comparison catches."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from occam.engine.engine import Engine
from tests.parity.checkpoint import LAYERS, NEURONS, pixels, random_frames
from tests.parity.harness import QUESTIONS, Reply, ask, assert_same, build, load, pruning_of, thresholds
from tests.parity.oracle import Fault, Played, Rule, converse
from tests.parity.oracle_tower import VideoLlavaEye

STEPS = 16
FRAMES = random_frames(5, seed=2)
BASE = Rule(lambda1=0, lambda2=0, cut=3, neurons=NEURONS)


def with_lambdas(stock: Any, tokenizer: Any, rule: Rule, *, empty_frame: bool = False) -> Rule:
    return thresholds(VideoLlavaEye(stock, tokenizer, pixels(FRAMES)), rule, empty_view=empty_frame)


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
