"""Exact follow-ups: a state restored in another process or built there on embeddings, and appended in other chunks."""

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
from occam.tensors import MediumTokens, PrefixState
from tests.parity.checkpoint import NEURONS, random_frames
from tests.parity.checkpoint_llava import random_image
from tests.parity.eye_llava import LlavaCase, state_of
from tests.parity.harness import QUESTIONS, ask, build, load, pruning_of, video_of
from tests.parity.oracle import Rule
from tests.parity.resume import everything, key_of, store
from tests.redis_server import RedisServer
from tests.states import assert_same

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

    def media(self, engine: Engine) -> dict[str, MediumTokens]:
        """What the tower gives of the same, by names: a video in chunks of two frames, or two images."""
        video = video_of(FRAMES)
        chunks = [video.chunk(start, min(start + 2, len(video))) for start in range(0, len(video), 2)]
        media = {f"image {at}": [image] for at, image in enumerate(IMAGES)} if self.images else {"video": chunks}
        pruning = pruning_of(self.rule)
        return {
            name: MediumTokens(chunks=tuple(engine.encode(chunk, pruning)[0] for chunk in batches))
            for name, batches in media.items()
        }


@dataclass(frozen=True)
class Resumed:
    """What another process answers by dtype: over stored states (of the media alone, and with the first turn in), and
    over a state that it built on stored embeddings; and that state's fields.
    """

    replies: dict[str, dict[str, list[dict[str, Any]]]]
    states: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def families(checkpoint: Path, qwen_checkpoint: Path, llava_case: Callable[[str], LlavaCase]) -> dict[str, Family]:
    videos = {"video llava": checkpoint, "qwen": qwen_checkpoint}
    return {
        name: Family(videos[name] if name in videos else llava_case(name).folder, rule, images=name not in videos)
        for name, rule in RULES.items()
    }


@pytest.fixture(scope="module")
def resumed(
    families: dict[str, Family], shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Resumed]:
    """By family; one process does all of them, for most of its time goes into imports."""
    folders = {name: tmp_path_factory.mktemp("stored") for name in families}
    for name, folder in folders.items():
        (folder / "job.json").write_text(json.dumps(_stored(families[name], shared_redis.url)))
    command = [sys.executable, "-m", "tests.parity.resume", *map(str, folders.values())]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    return {
        name: Resumed(replies=torch.load(folder / "replies.pt"), states=torch.load(folder / "states.pt"))
        for name, folder in folders.items()
    }


def _stored(family: Family, redis_url: str) -> dict[str, Any]:
    """Store a family's states and embeddings in every dtype; what another process is to do with them."""
    rule, pruning = family.rule, pruning_of(family.rule)
    names: list[str] = []
    for dtype in DTYPES:
        engine = load(family.checkpoint, dtype=dtype)
        media = family.state(engine)
        first = ask(engine, media, QUESTIONS[:1], pruning, STEPS)[0]
        states = {"media": media, "session": engine.replay(media, [first.answer.turn])}
        embeddings = family.media(engine)
        names = list(embeddings)
        asyncio.run(
            store(
                redis_url,
                {key_of(engine, rule, name): state for name, state in states.items()},
                {key_of(engine, rule, name): medium for name, medium in embeddings.items()},
            )
        )
    return {
        "redis": redis_url,
        "checkpoint": str(family.checkpoint),
        "rule": asdict(rule),
        "steps": STEPS,
        "dtypes": DTYPES,
        "questions": {"media": QUESTIONS, "session": QUESTIONS[1:]},
        "media": names,
        "embeddings": QUESTIONS,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_a_state_restored_or_built_on_embeddings_in_another_process_is_bitwise_the_cold_run(
    families: dict[str, Family], resumed: dict[str, Resumed], name: str, dtype: Literal["float32", "bfloat16"]
) -> None:
    family, there = families[name], resumed[name]
    engine, pruning = load(family.checkpoint, dtype=dtype), pruning_of(family.rule)
    state = family.state(engine)
    replies = ask(engine, state, QUESTIONS, pruning, STEPS)
    for counts in (reply.answer.visual_tokens for reply in replies):
        assert 0 < counts.stage2 < counts.stage1 < counts.encoded
    cold = everything(replies)
    _assert_bitwise(there.replies[dtype]["media"], cold)
    _assert_bitwise(there.replies[dtype]["session"], cold[1:])
    assert_same(PrefixState(**there.states[dtype]), state)
    _assert_bitwise(there.replies[dtype]["embeddings"], cold)


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
