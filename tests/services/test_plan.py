"""`occam plan` against what real questions about real files cost, in tokens and in a real Redis."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from occam.engine import Engine
from pipelines.evaluation.codec import write_mp4
from services.media import LocalMedia
from services.messages import FrameChoice
from services.plan import Load, stored_bytes
from services.settings import Settings
from tests.redis_server import RedisServer
from tests.services.world import world
from tests.soak.cancelled import chat

WIDTH, HEIGHT, SECONDS = 160, 120, 4.0
LOAD = Load(
    videos_per_day=1000.0,
    questions=2,
    seconds=SECONDS,
    width=WIDTH,
    height=HEIGHT,
    frames=FrameChoice(),
    answer_tokens=4,
    peak=1.0,
)
CHOICES = [FrameChoice(), FrameChoice(max_frames=4), FrameChoice(fps=3.0, max_frames=10)]


@pytest.mark.parametrize("choice", CHOICES, ids=["default", "four", "rate"])
@pytest.mark.parametrize("wire", ["exact", "int8"])
@pytest.mark.parametrize("strategy", ["none", "occam"])
@pytest.mark.parametrize("model", ["tiny-video-llava", "tiny-qwen3-vl"])
def test_a_plan_is_what_questions_then_cost(
    tmp_path: Path, redis_server: RedisServer, model: str, strategy: str, wire: Any, choice: FrameChoice
) -> None:
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, np.random.default_rng(0).integers(0, 255, (round(SECONDS * 25), HEIGHT, WIDTH, 3), np.uint8), 25)
    settings: dict[str, Any] = {"models": (model,), "file_roots": (str(tmp_path),), "kv_wire": wire}
    asked = {"fps": choice.fps, "max_frames": choice.max_frames, "strategy": strategy}
    body = chat(model, clip.as_uri(), "what?", max_tokens=4, occam={key: value for key, value in asked.items() if value})

    async def scene() -> dict[str, Any]:
        async with world(tmp_path, redis_server.url, media=LocalMedia, load=Engine.load, **settings) as service:
            response = await service.http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            await service.worker.target._prefixes._tiers.drain()
            answer: dict[str, Any] = response.json()
            return answer

    answer = asyncio.run(scene())
    tokens = answer["usage"]["visual_tokens"]
    engine = Engine.load(Settings(**settings).engine(model))
    pruning = engine.pruning(strategy)
    shape = Load(**{**vars(LOAD), "frames": choice}).shape(engine.info.frames)
    planned = stored_bytes(engine, pruning, shape, tokens["stage1"], wire)
    print(model, strategy, wire, choice.fps, tokens, planned, {key: (redis_server.client.memory_usage(key),sum(map(len,redis_server.client.hvals(key)))) for key in redis_server.client.keys("occam:kv:*")})
    assert engine.visual_tokens("video", len(shape.pts_seconds), HEIGHT, WIDTH) == tokens["encoded"]
