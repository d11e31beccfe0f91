"""The models inside the package, as they are shipped: pruning off is the stock model, their default is the oracle's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration, VideoLlavaForConditionalGeneration

from occam.engine.engine import Engine
from occam.models.checkpoint import embedded_models
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import ask, assert_same, build, load, pruning_of
from tests.parity.oracle import Eye, Rule, converse
from tests.parity.oracle_qwen import QwenEye, segments_of_video
from tests.parity.oracle_tower import VideoLlavaEye

QUESTIONS = ("what color is the ball ?", "where is it at the end ?")
STEPS = 8
SIDE, FRAMES, FPS = 96, 8, 2.0
"""As the models take clips, so that nothing is resized; `build` shows two frames a second."""


@pytest.fixture(scope="module", params=list(embedded_models().values()), ids=list(embedded_models()))
def folder(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.param
    return directory


def seen(folder: Path, family: str) -> tuple[np.ndarray, Eye]:
    """Frames, and the oracle's eye on them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def stock(kind: Any) -> Any:
        return kind.from_pretrained(folder, dtype="float32", attn_implementation="eager")

    if family == "qwen3_vl":
        frames = checkpoint_qwen.random_frames(FRAMES, SIDE, SIDE)
        return frames, QwenEye(stock(Qwen3VLForConditionalGeneration), tokenizer, segments_of_video(frames, FPS))
    frames = checkpoint.random_frames(FRAMES, size=SIDE)
    return frames, VideoLlavaEye(stock(VideoLlavaForConditionalGeneration), tokenizer, checkpoint.pixels(frames))


@pytest.mark.parametrize("pruned", [False, True], ids=["pruning off", "the shipped default"])
def test_a_conversation_equals_the_oracle(folder: Path, pruned: bool) -> None:
    engine = load(folder)
    rule = _shipped_rule(engine) if pruned else None
    frames, eye = seen(folder, engine.info.family)
    expected = converse(eye, QUESTIONS, rule, STEPS)
    pruning = pruning_of(rule)
    assert_same(ask(engine, build(engine, frames, pruning), QUESTIONS, pruning, STEPS), expected, rule)


def _shipped_rule(engine: Engine) -> Rule:
    shipped = engine.info.calibration
    assert shipped is not None
    return Rule(
        lambda1=shipped.lambda1,
        lambda2=shipped.lambda2,
        cut=shipped.cut,
        register=shipped.register,
        neurons=shipped.neurons,
        evaluators=shipped.evaluators,
    )
