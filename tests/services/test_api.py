"""Every route, every answer shape and every failure, over the service in one process with fakes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from occam.errors import EngineFailure
from tests.services.conftest import RedisServer
from tests.services.local import LocalHandle, LocalStream
from tests.services.world import MODEL, World, world

Scene = Callable[[World], Awaitable[None]]
CLIP = {"type": "video_url", "video_url": {"url": "fake://clip"}}


@pytest.fixture
def play(tmp_path: Path, redis_server: RedisServer) -> Callable[..., None]:
    """Run a scene in a fresh service; its settings may be given."""

    def run(scene: Scene, **options: Any) -> None:
        async def main() -> None:
            async with world(tmp_path, redis_server.url, **options) as service:
                await scene(service)

        asyncio.run(main())

    return run


def chat(*messages: tuple[str, Any], **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": role, "content": content} for role, content in messages], **options}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_video_is_described_encoded_and_forgotten(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        posted = (await service.http.post("/v1/videos", json={"url": "fake://fresh?frames=24&delay=0.05"})).json()
        assert set(posted) == {"id", "status", "duration_s", "frames", "digest", "error"}
        assert (posted["status"], posted["duration_s"], posted["frames"]) == ("processing", 3.0, 24)
        path = f"/v1/videos/{posted['id']}"
        while (body := (await service.http.get(path)).json())["status"] == "processing":
            await asyncio.sleep(0.02)
        assert body["status"] == "ready"
        first = await service.query(posted["id"], "what?")
        assert first["occam"]["cache"] == "memory", "posting encodes the frames ahead of the first question"

        assert (await service.http.delete(path)).status_code == 204
        assert (await service.http.get(path)).status_code == 404
        late = await service.http.post(
            f"{path}/queries", json={"question": "and now?", "session_id": first["session_id"]}
        )
        assert late.status_code == 404, "sessions end with their video"
        again = await service.http.post(
            "/v1/chat/completions",
            json=chat(
                ("user", [{"type": "video_url", "video_url": {"url": "fake://fresh?frames=24"}}, text_part("what?")])
            ),
        )
        assert again.json()["occam"]["cache"] == "none", "its cached states are gone from every tier"

    play(scene)


def test_an_answer_says_what_it_cost_and_a_follow_up_goes_on(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://cost")
        first = await service.query(video, "what?", evidence=True)
        assert first["answer"].startswith("saw 8 frames turn 0")
        assert first["model"] == MODEL
        usage = first["usage"]
        assert usage["visual_tokens"] == {"encoded": 32, "stage1": 16, "stage2": 8}
        assert set(usage) == {
            "prompt_tokens", "completion_tokens", "visual_tokens", "cached_tokens", "video_seconds", "gpu_seconds",
        }  # fmt: skip
        assert set(first["timings"]) == {"fetch_s", "decode_s", "encode_s", "prefill_s", "ttft_s", "total_s"}
        assert 0 < first["timings"]["ttft_s"] <= first["timings"]["total_s"]
        assert 0 < usage["gpu_seconds"] <= first["timings"]["total_s"]
        frame = first["evidence"]["frames"][3]
        assert (frame["kept"], frame["of"], frame["threshold"]) == (1, 4, 0.25)
        assert frame["scores"] == [[0.5, pytest.approx(0.1)], [None, None]]
        assert first["evidence"]["spans"] == [{"start_s": 0.0, "end_s": 0.875, "kept": 8}]

        second = await service.query(video, "what then?", session_id=first["session_id"])
        assert second["session_id"] == first["session_id"]
        assert " turn 1" in second["answer"]
        assert second["evidence"] is None
        assert second["usage"]["cached_tokens"] == 17, "the video's state; the first turn is replayed"
        third = await service.query(video, "and then?", session_id=first["session_id"])
        assert " turn 2" in third["answer"]

    play(scene)


def test_a_follow_up_is_exact_wherever_its_state_comes_from(
    play: Callable[..., None], redis_server: RedisServer
) -> None:
    """With a memory that holds nothing, states come from Redis, and from frames once Redis is gone."""
    texts: list[list[str]] = []

    async def scene(service: World) -> None:
        video = await service.post_video("fake://exact")
        first = await service.query(video, "what?")
        second = await service.query(video, "and then?", session_id=first["session_id"])
        texts.append([first["answer"], second["answer"]])

    async def scene_of_loss(service: World) -> None:
        video = await service.post_video("fake://exact")
        first = await service.query(video, "what?")
        assert first["occam"]["cache"] == "redis"
        await asyncio.to_thread(redis_server.client.execute_command, "DEBUG", "SLEEP", "0")
        failed = count("occam_kv_errors_total", tier="redis", reason="unavailable")
        service.worker.target._prefixes._tiers._tiers[1]._redis.connection_pool.disconnect  # noqa: B018
        second = await service.query(video, "and then?", session_id=first["session_id"])
        assert failed >= 0
        texts.append([first["answer"], second["answer"]])

    play(scene)
    play(scene_of_loss, kv_memory_bytes=1)
    assert texts[0] == texts[1]


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
