"""Qwen3-VL with pruning on, against the oracle; and the mistakes this comparison catches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from occam.engine.engine import Engine
from occam.types import FrameBatch
from tests.parity.checkpoint_qwen import LAYERS, NEURONS, random_frames
from tests.parity.harness import QUESTIONS, Reply, ask, assert_same, image_of, pruning_of, see, thresholds
from tests.parity.oracle import Fault, Played, Rule, converse
from tests.parity.oracle_qwen import QwenEye, Segment, segment_of_image, segments_of_video

STEPS = 8
FPS = 2.0
BASE = Rule(lambda1=0, lambda2=0, cut=3, neurons=NEURONS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The same media for the engine and for the oracle's eye, of sizes that need no resize."""

    media: Sequence[FrameBatch]
    segments: Sequence[Segment]


def video(count: int, height: int, width: int, seed: int = 4) -> Scene:
    frames = random_frames(count, height, width, seed=seed)
    batch = FrameBatch(frames=frames, pts_seconds=np.arange(count) / FPS, indices=np.arange(count), digest="0" * 64)
    return Scene(media=[batch], segments=segments_of_video(frames, FPS))


def image(height: int, width: int) -> Scene:
    pixels = random_frames(1, height, width, seed=3)[0]
    return Scene(media=[image_of(pixels)], segments=[segment_of_image(pixels)])


def together(*scenes: Scene) -> Scene:
    return Scene(
        media=[media for scene in scenes for media in scene.media],
        segments=[segment for scene in scenes for segment in scene.segments],
    )


VIDEO = video(5, 32, 64)
WITH_A_DULL_GROUP = video(5, 32, 64, seed=2)
SCENES = {
    "video": VIDEO,
    "image": image(80, 48),
    "image, then video": together(image(32, 48), video(2, 48, 48)),
}


class Both:
    """The engine and the oracle, asked the same."""

    def __init__(self, engine: Engine, stock: Any, tokenizer: Any, scene: Scene = VIDEO) -> None:
        self.engine = engine
        self.scene = scene
        self.eye = QwenEye(stock, tokenizer, scene.segments)

    def __call__(self, rule: Rule) -> tuple[list[Reply], list[Played]]:
        pruning = pruning_of(rule)
        replies = ask(self.engine, see(self.engine, self.scene.media, pruning), QUESTIONS, pruning, STEPS)
        return replies, converse(self.eye, QUESTIONS, rule, STEPS)


@pytest.fixture
def both(qwen_engine: Engine, qwen_stock: Any, qwen_tokenizer: Any) -> Both:
    return Both(qwen_engine, qwen_stock, qwen_tokenizer)


@pytest.mark.parametrize("scene", SCENES)
def test_every_scene(qwen_engine: Engine, qwen_stock: Any, qwen_tokenizer: Any, scene: str) -> None:
    both = Both(qwen_engine, qwen_stock, qwen_tokenizer, SCENES[scene])
    rule = thresholds(both.eye, BASE)
    replies, expected = both(rule)
    assert all(0 < turn.stage2.sum() < turn.stage1.sum() < turn.stage1.numel() for turn in expected)
    assert_same(replies, expected, rule)


def test_without_pruning_the_oracle_is_the_stock_model_too(both: Both) -> None:
    """Stock `generate` is compared with the engine elsewhere; here the eye is, so that all three agree."""
    pruning = pruning_of(None)
    replies = ask(both.engine, see(both.engine, VIDEO.media, pruning), QUESTIONS, pruning, STEPS)
    assert_same(replies, converse(both.eye, QUESTIONS, None, STEPS), None)


@pytest.mark.parametrize("empty_view", [False, True], ids=["", "a group keeps nothing"])
@pytest.mark.parametrize("cut", [1, 2, LAYERS - 1])
def test_every_cut(qwen_engine: Engine, qwen_stock: Any, qwen_tokenizer: Any, cut: int, empty_view: bool) -> None:
    """Below and above the DeepStack levels: planes are added before the cut, and behind it."""
    both = Both(qwen_engine, qwen_stock, qwen_tokenizer, WITH_A_DULL_GROUP if empty_view else VIDEO)
    rule = thresholds(both.eye, replace(BASE, cut=cut))
    replies, expected = both(rule)
    for turn in expected:
        assert 0 < turn.stage2.sum() < turn.stage1.sum() < turn.stage1.numel()
        assert any(not view.any() for view in turn.stage1.split(turn.sizes)) == empty_view
    assert_same(replies, expected, rule)


@pytest.mark.parametrize(
    "change",
    [
        {"register": "zero_token"},
        {"register": "mean_threshold"},
        {"evaluators": "question"},
        {"cut": 1, "register": "mean_threshold"},
    ],
    ids=str,
)
def test_every_setting(both: Both, change: dict[str, Any]) -> None:
    rule = thresholds(both.eye, replace(BASE, **change))
    assert_same(*both(rule), rule)


def test_no_patch_of_any_group_passes_stage_one(both: Both) -> None:
    rule = replace(BASE, lambda1=1e6, lambda2=1)
    replies, expected = both(rule)
    assert not any(turn.stage1.any() for turn in expected)
    assert_same(replies, expected, rule)


FAULTS: list[Fault] = [
    "positions repacked",
    "survivors reused",
    "decoder softmax without register",
    "old register visible",
    "rows instead of columns",
    "planes of the unmasked order",
]


@pytest.fixture(scope="module")
def honest(qwen_engine: Engine, qwen_stock: Any, qwen_tokenizer: Any) -> tuple[Rule, list[Reply]]:
    both = Both(qwen_engine, qwen_stock, qwen_tokenizer)
    rule = thresholds(both.eye, BASE)
    replies, expected = both(rule)
    assert_same(replies, expected, rule)
    return rule, replies


@pytest.mark.parametrize("mistake", [{"cut": 2}, {"cut": 4}, *({"fault": fault} for fault in FAULTS)], ids=str)
def test_a_mistaken_oracle_is_noticed(both: Both, honest: tuple[Rule, list[Reply]], mistake: dict[str, Any]) -> None:
    rule, replies = honest
    mistaken = converse(both.eye, QUESTIONS, replace(rule, **mistake), STEPS)
    with pytest.raises(AssertionError):
        assert_same(replies, mistaken, rule)


def test_a_tower_softmax_without_register_is_noticed(both: Both) -> None:
    """It moves every score by little: lambda1 is put where it keeps a patch that the rule drops."""
    fault: Fault = "tower softmax without register"
    right, wrong = (both.eye.see(replace(BASE, fault=each)) for each in (None, fault))
    ratios, moved = right.scores / right.reference, wrong.scores / wrong.reference
    patch = int((moved - ratios).argmax())
    rule = replace(BASE, lambda1=float(ratios[patch] + moved[patch]) / 2)
    replies, expected = both(rule)
    assert_same(replies, expected, rule)
    with pytest.raises(AssertionError):
        assert_same(replies, converse(both.eye, QUESTIONS, replace(rule, fault=fault), STEPS), rule)
