"""The models inside the package, as they are shipped: pruning off is the stock model, their default is the oracle's."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

from occam.engine.engine import Engine
from occam.models.checkpoint import embedded_models
from tests.parity.checkpoint import pixels, random_frames
from tests.parity.harness import ask, assert_same, build, load, pruning_of
from tests.parity.oracle import Rule, converse
from tests.parity.oracle_tower import VideoLlavaEye

QUESTIONS = ("what color is the ball ?", "where is it at the end ?")
STEPS = 8


@pytest.fixture(scope="module", params=list(embedded_models().values()), ids=list(embedded_models()))
def folder(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.param
    return directory


@pytest.mark.parametrize("pruned", [False, True], ids=["pruning off", "the shipped default"])
def test_a_conversation_equals_the_oracle(folder: Path, pruned: bool) -> None:
    engine = load(folder)
    stock: Any = VideoLlavaForConditionalGeneration.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rule = _shipped_rule(engine) if pruned else None
    frames = random_frames(engine.info.frames, size=engine.lm.pixels.crop)
    expected = converse(VideoLlavaEye(stock, tokenizer, pixels(frames)), QUESTIONS, rule, STEPS)
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
