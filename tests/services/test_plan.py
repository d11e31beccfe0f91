"""`occam plan` against what real questions about real files cost, in tokens and in a real Redis."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from occam.engine import Engine
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.renderer import FIRST_TEST_SEED, SceneConfig, draw_scene, render
from services import cli
from services.media import LocalMedia
from services.messages import FrameChoice
from services.plan import DAY_S, Load, measured_rate, size, stored_bytes
from services.settings import Settings
from tests.redis_server import RedisServer
from tests.services.world import world
from tests.soak.cancelled import chat

FPS = 25
LOAD = Load(
    videos_per_day=1000.0,
    questions=2,
    seconds=60.0,
    width=320,
    height=240,
    frames=FrameChoice(),
    answer_tokens=4,
    peak=1.0,
)


@pytest.mark.parametrize(
    ("choice", "wire"),
    [(FrameChoice(), "exact"), (FrameChoice(), "int8"), (FrameChoice(fps=3.0, max_frames=10), "exact")],
    ids=["exact", "int8", "rate"],
)
@pytest.mark.parametrize("strategy", ["none", "occam"])
@pytest.mark.parametrize("model", ["tiny-video-llava", "tiny-qwen3-vl"])
def test_a_plan_is_what_questions_then_cost(
    tmp_path: Path, redis_server: RedisServer, model: str, strategy: str, wire: Any, choice: FrameChoice
) -> None:
    """Tokens exactly; bytes as Redis itself counts its memory, within one in a hundred."""
    frames = np.repeat(render(draw_scene(FIRST_TEST_SEED, SceneConfig(unseen_pairs=False))), FPS, axis=0)
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, frames, FPS)
    answer, entries = asked(tmp_path, redis_server, model, strategy, wire, choice)
    tokens = answer["usage"]["visual_tokens"]

    engine = Engine.load(Settings().engine(model))
    height, width = frames.shape[1:3]
    load = replace(LOAD, seconds=len(frames) / FPS, width=width, height=height, frames=choice)
    shape = load.shape(engine.info.frames)
    assert engine.visual_tokens("video", len(shape.pts_seconds), height, width) == tokens["encoded"]
    if strategy == "occam" and model == "tiny-video-llava":
        assert tokens["stage1"] < tokens["encoded"], "the clip is one of which something goes"
    planned = stored_bytes(engine, engine.pruning(strategy), shape, tokens["stage1"], wire)
    print(model, strategy, wire, tokens, "planned", planned, "in Redis", entries)
    assert sorted(planned) == pytest.approx(sorted(entries), rel=0.01)


@pytest.mark.parametrize(("most", "stored"), [("kv", 2), ("below kv", 1), ("embeddings", 1), ("below embeddings", 0)])
def test_what_a_plan_leaves_out_of_redis_is_not_there(
    tmp_path: Path, redis_server: RedisServer, most: str, stored: int
) -> None:
    frames = np.repeat(render(draw_scene(FIRST_TEST_SEED, SceneConfig(unseen_pairs=False))), FPS, axis=0)
    write_mp4(tmp_path / "clip.mp4", frames, FPS)
    height, width = frames.shape[1:3]
    load = replace(LOAD, seconds=len(frames) / FPS, width=width, height=height)
    engine = Engine.load(Settings().engine("tiny-video-llava"))
    [unbounded, *_] = size(Settings(), engine, load, (1.0,), rate=1.0)
    bytes_of = {"kv": unbounded.kv_bytes, "embeddings": unbounded.embedding_bytes}
    kv_entry_bytes = bytes_of[most.removeprefix("below ")] - most.startswith("below")

    bound = {"kv_entry_bytes": kv_entry_bytes}
    _, entries = asked(tmp_path, redis_server, "tiny-video-llava", "none", "exact", LOAD.frames, **bound)
    [planned, *_] = size(Settings(**bound), engine, load, (1.0,), rate=1.0)
    kept = planned.kv_bytes * planned.kv_stored + planned.embedding_bytes * planned.embeddings_stored
    assert planned.kv_stored + planned.embeddings_stored == len(entries) == stored
    assert kept == pytest.approx(sum(entries), rel=0.01)
    assert planned.redis_bytes == kept * LOAD.videos_per_day


def asked(
    folder: Path, redis: RedisServer, model: str, strategy: str, wire: Any, choice: FrameChoice, **settings: Any
) -> tuple[dict[str, Any], list[int]]:
    """The answer to a question about the clip, and the bytes that Redis has for the state and the embeddings."""
    wanted = {"fps": choice.fps, "max_frames": choice.max_frames, "strategy": strategy}
    given = {name: value for name, value in wanted.items() if value}
    body = chat(model, (folder / "clip.mp4").as_uri(), "what?", max_tokens=4, occam=given)
    options: dict[str, Any] = {"models": (model,), "file_roots": (str(folder),), "kv_wire": wire} | settings

    async def scene() -> dict[str, Any]:
        async with world(folder, redis.url, media=LocalMedia, load=Engine.load, **options) as service:
            response = await service.http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            await service.worker.target._prefixes._tiers.drain()
            answer: dict[str, Any] = response.json()
            return answer

    answer = asyncio.run(scene())
    return answer, [redis.client.memory_usage(entry) for entry in redis.client.keys("occam:kv:*")]


def test_a_rate_comes_to_workers_gpus_and_memory() -> None:
    settings = Settings(kv_ttl_s=2 * DAY_S, gpus_per_worker=0.5)
    engine = Engine.load(settings.engine("tiny-video-llava"))
    load = replace(LOAD, videos_per_day=86_400.0, peak=3.0)
    rows = size(settings, engine, load, (1.0, 0.5), rate=400.0)
    assert [(row.strategy, row.retention) for row in rows] == [("none", 1.0), ("occam", 1.0), ("occam", 0.5)]
    for row in rows:
        assert (row.frames, row.visual_tokens) == (8, 288)
        assert row.tokens_per_second == pytest.approx(288 * 3)
        assert (row.workers, row.gpus) == (3, 1.5)
        assert row.redis_bytes == (row.kv_bytes + row.embedding_bytes) * 2 * 86_400
    assert rows[0].kv_bytes > rows[1].kv_bytes > 1.9 * rows[2].kv_bytes
    [small, *_] = size(replace(settings, kv_entry_bytes=1 << 20), engine, load, (1.0,), rate=400.0)
    assert (small.kv_stored, small.embeddings_stored) == (False, True)
    assert small.redis_bytes == small.embedding_bytes * 2 * 86_400, "of the state Redis has nothing"


def test_the_rate_is_that_of_a_worker_which_also_answers() -> None:
    engine = Engine.load(Settings().engine("tiny-video-llava"))
    chatty = replace(LOAD, questions=12, answer_tokens=32)
    rates = [measured_rate(engine, engine.pruning(), load) for load in (LOAD, chatty)]
    assert rates[0] > rates[1] > 0


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "plan",
        "--model",
        "tiny-video-llava",
        "--questions-per-second",
        "6",
        "--questions",
        "3",
        "--rate",
        "100",
    ]
    assert cli.main([*command, "--json", "--retention", "0.5"]) == 0
    none, occam = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (none["strategy"], occam["retention"], occam["workers"]) == ("none", 0.5, 6)
    assert occam["tokens_per_second"] == pytest.approx(2 * 288)
    assert cli.main([*command, "--frame-size", "640x360"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "strategy", "kept"]
    assert [row.split()[1:3] for row in rows] == [
        ["none", "100%"],
        *(["occam", kept] for kept in ("100%", "50%", "25%")),
    ]


@pytest.mark.parametrize(
    ("most", "stars"),
    [(1 << 30, (False, False)), (1 << 20, (True, False)), (1 << 10, (True, True))],
    ids=["all", "embeddings", "nothing"],
)
def test_what_is_not_stored_has_a_star(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int, stars: tuple[bool, bool]
) -> None:
    monkeypatch.setenv("OCCAM_KV_ENTRY_BYTES", str(most))
    assert cli.main(["plan", "--model", "tiny-video-llava", "--videos-per-day", "9", "--rate", "9"]) == 0
    _, row, *rest = capsys.readouterr().out.splitlines()
    cells = re.split(r"\s{2,}", row)
    assert tuple(cell.endswith("*") for cell in cells[5:7]) == stars
    assert [line for line in rest if line.startswith("*")] == ["* more than OCCAM_KV_ENTRY_BYTES: not in Redis"] * any(
        stars
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--rate", "0"], "--rate must be above 0, got 0."),
        (["--questions", "-1"], "--questions must be above 0, got -1."),
        (["--retention", "1.5"], "--retention must lie in (0, 1], got 1.5."),
    ],
)
def test_a_load_that_cannot_be_is_a_plain_sentence(
    capsys: pytest.CaptureFixture[str], wrong: list[str], says: str
) -> None:
    command = ["plan", "--model", "tiny-video-llava", "--videos-per-day", "9", "--rate", "9"]
    assert cli.main([*command, *wrong]) == 1
    assert capsys.readouterr().err == f"occam: {says}\n"
