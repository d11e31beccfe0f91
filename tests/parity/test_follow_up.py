"""Exact follow-ups: a state restored in another process, and a state appended in other chunks."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from occam.engine.engine import Engine
from occam.tensors import PrefixState
from tests.parity.checkpoint import NEURONS, random_frames
from tests.parity.checkpoint_llava import random_image
from tests.parity.eye_llava import LlavaCase, state_of
from tests.parity.harness import QUESTIONS, ask, build, load, pruning_of
from tests.parity.oracle import Rule
from tests.parity.resume import everything, key_of, store
from tests.redis_server import RedisServer

STEPS = 16
FRAMES = random_frames(5, seed=2)
RULE = Rule(lambda1=1.1, lambda2=1.7, cut=3, neurons=NEURONS)
PRUNING = pruning_of(RULE)
IMAGES = [random_image(70, 100, seed=3), random_image(150, 33, seed=4)]
LLAVA = Rule(lambda1=1.1, lambda2=1.3, cut=3, neurons=NEURONS)
RULES = {
    "video llava": RULE,
    "qwen": Rule(lambda1=1.1, lambda2=1.7, cut=1, neurons=NEURONS),
    "llava": LLAVA,
    "next llama": LLAVA,
    "next mistral": LLAVA,
}
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Family:
    """A family's checkpoint, a rule that cuts at both stages, and a video or two images to look at."""

    checkpoint: Path
    rule: Rule
    images: bool

    def state(self, engine: Engine) -> PrefixState:
        pruning = pruning_of(self.rule)
        return state_of(engine, IMAGES, pruning) if self.images else build(engine, FRAMES, pruning)


@pytest.fixture(scope="module", params=RULES)
def family(
    request: pytest.FixtureRequest, checkpoint: Path, qwen_checkpoint: Path, llava_case: Callable[[str], LlavaCase]
) -> Family:
    name = request.param
    videos = {"video llava": checkpoint, "qwen": qwen_checkpoint}
    return Family(videos[name] if name in videos else llava_case(name).folder, RULES[name], images=name not in videos)


@pytest.fixture(scope="module")
def resumed(
    family: Family, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By dtype, what another process answers over two stored states: the media alone, and with the first turn in."""
    folder = tmp_path_factory.mktemp("stored")
    rule, pruning = family.rule, pruning_of(family.rule)
    for dtype in DTYPES:
        engine = load(family.checkpoint, dtype=dtype)
        media = family.state(engine)
        first = ask(engine, media, QUESTIONS[:1], pruning, STEPS)[0]
        states = {"media": media, "session": engine.replay(media, [first.answer.turn])}
        asyncio.run(store(shared_redis.url, {key_of(engine, rule, name): state for name, state in states.items()}))
    job = {
        "redis": shared_redis.url,
        "checkpoint": str(family.checkpoint),
        "rule": asdict(rule),
        "steps": STEPS,
        "dtypes": DTYPES,
        "questions": {"media": QUESTIONS, "session": QUESTIONS[1:]},
    }
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, "-m", "tests.parity.resume", str(folder)], cwd=Path(__file__).parents[2], check=True
    )
    replies: dict[str, dict[str, list[dict[str, Any]]]] = torch.load(folder / "replies.pt")
    return replies


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_restored_in_another_process_is_bitwise_the_cold_run(
    family: Family,
    resumed: dict[str, dict[str, list[dict[str, Any]]]],
    dtype: Literal["float32", "bfloat16"],
) -> None:
    engine, pruning = load(family.checkpoint, dtype=dtype), pruning_of(family.rule)
    replies = ask(engine, family.state(engine), QUESTIONS, pruning, STEPS)
    for counts in (reply.answer.visual_tokens for reply in replies):
        assert 0 < counts.stage2 < counts.stage1 < counts.encoded
    cold = everything(replies)
    _assert_bitwise(resumed[dtype]["media"], cold)
    _assert_bitwise(resumed[dtype]["session"], cold[1:])


def _assert_bitwise(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=0, rtol=0, equal_nan=True)


def test_other_chunks_agree_with_equal_kept_sets(engine: Engine) -> None:
    whole = build(engine, FRAMES, PRUNING, len(FRAMES))
    replies = ask(engine, whole, QUESTIONS, PRUNING, STEPS)
    for chunk_frames in (1, 3):
        state = build(engine, FRAMES, PRUNING, chunk_frames)
        for name in ("ids", "positions", "view", "patch"):
            assert torch.equal(getattr(state, name), getattr(whole, name))
        for name in ("keys", "values", "hidden", "register_sum"):
            torch.testing.assert_close(getattr(state, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
        for reply, expected in zip(ask(engine, state, QUESTIONS, PRUNING, STEPS), replies, strict=True):
            assert reply.answer.turn == expected.answer.turn
            torch.testing.assert_close(reply.logits, expected.logits, atol=1e-5, rtol=1e-5)
            for frame, other in zip(reply.answer.evidence.frames, expected.answer.evidence.frames, strict=True):
                assert (frame.stage1 == other.stage1).all()
                assert (frame.stage2 == other.stage2).all()
