"""How far an answer is, while it is streamed: what is told, to whom, when, and what it must not change."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from services import events
from services.messages import Progress, Reply
from services.progress import Watched
from services.routes import chat as routes
from tests.services.local import LocalStream
from tests.services.world import MODEL, Play, World

WHAT = {"type": "text", "text": "what?"}


def chat(url: str, **options: Any) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": url}}, WHAT]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True, **options}


def parsed(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def ask(service: World, video: str, question: str = "what?", **options: Any) -> list[Any]:
    body = {"question": question, "stream": True, **options}
    response = await service.http.post(f"/v1/videos/{video}/queries", json=body)
    assert response.status_code == 200, response.text
    return parsed(response.text)


def steps(told: list[Any]) -> list[tuple[str, int, int]]:
    return [(each["stage"], each["done"], each["total"]) for each in told]


def test_what_is_built_for_an_answer_is_told_in_frames(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        told = await ask(service, video, max_frames=6)  # other frames than those that posting encoded
        progress = [event for event in told if event["type"] == "progress"]
        assert told[: len(progress)] == progress, "in front of the text"
        assert [event["type"] for event in told[len(progress) :]] == ["text"] * 3 + ["answer"]
        assert set(progress[0]) == {"type", "stage", "done", "total", "seconds"}
        *built, last = steps(progress)
        assert last == ("generate", 0, 64)
        assert built[0][0] == "decode"
        for stage in ("decode", "encode", "prefill"):
            assert [done for name, done, total in built if name == stage and total == 6][-1] == 6
            seconds = [event["seconds"] for event in progress if event["stage"] == stage]
            assert seconds == sorted(seconds)

    play(scene)


def test_over_embeddings_only_the_prefill_is_told(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://projected?delay=0.1")
        await service.worker.target._prefixes._tiers.drain()
        *told, answer = await ask(service, video)
        assert answer["occam"]["cache"] == "embeddings"
        *built, last = steps([event for event in told if event["type"] == "progress"])
        assert {stage for stage, _, _ in built} == {"prefill"}
        assert (built[-1], last[0]) == (("prefill", 8, 8), "generate")

    play(scene, kv_memory_bytes=1)


def test_a_fetch_is_told_once_and_a_cached_follow_up_nothing(play: Play) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/chat/completions", json=chat("fake://far"))
        *chunks, end = parsed(response.text)
        told = [chunk["occam"]["progress"] for chunk in chunks if "occam" in chunk]
        assert steps(told)[0] == ("fetch", 8, 8)
        assert told[0]["seconds"] == pytest.approx(0.25), "what the fake says of its fetch"
        assert {stage for stage, _, _ in steps(told)} == {"fetch", "decode", "encode", "prefill", "generate"}
        for chunk in chunks[: len(told)]:
            assert chunk["choices"] == [{"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}]

        session = {"occam": {"session_id": end["occam"]["session_id"]}}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "and then?"}], "stream": True, **session}
        follow_up = parsed((await service.http.post("/v1/chat/completions", json=body)).text)
        assert [chunk for chunk in follow_up[:-1] if "occam" in chunk] == []

    play(scene)


def test_who_waits_for_anothers_state_hears_how_far_it_is(play: Play) -> None:
    async def scene(service: World) -> None:
        decoded = REGISTRY.get_sample_value("occam_frames_decoded_total", {"backend": "fake"}) or 0
        body = chat("fake://shared?delay=0.05")
        both = await asyncio.gather(*(service.http.post("/v1/chat/completions", json=body) for _ in range(2)))
        for response in both:
            told = [chunk["occam"]["progress"] for chunk in parsed(response.text)[:-1] if "occam" in chunk]
            assert ("prefill", 8, 8) in steps(told)
        assert REGISTRY.get_sample_value("occam_frames_decoded_total", {"backend": "fake"}) == decoded + 8

    play(scene)


def test_nobody_is_told_who_does_not_stream(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = LocalStream.__anext__

    async def listening(stream: LocalStream) -> Any:
        seen.append(await original(stream))
        return seen[-1]

    async def heard(pieces: AsyncGenerator[Any]) -> Reply:
        seen.extend([piece async for piece in pieces])
        assert isinstance(seen[-1], Reply)
        return seen[-1]

    async def scene(service: World) -> None:
        monkeypatch.setattr(LocalStream, "__anext__", listening)
        monkeypatch.setattr(routes, "last", heard)
        body = chat("fake://quiet", stream=False)
        assert (await service.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert seen
        assert not [event for event in seen if isinstance(event, Progress)]

    play(scene)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/videos/absent/queries", {"question": "what?", "stream": True}, 404, "not_found"),
        ("/v1/chat/completions", chat("fake://a", occam={"session_id": "absent"}), 404, "not_found"),
        ("/v1/chat/completions", chat("fake://a", model="absent"), 404, "unknown_model"),
        ("/v1/chat/completions", chat("fake://missing"), 422, "source_unavailable"),
        ("/v1/chat/completions", chat("fake://a", occam={"start_s": 101.0}), 422, "invalid_input"),
    ],
)
def test_an_error_before_any_work_has_its_status(
    play: Play, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post(path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)

    play(scene)


def test_an_overloaded_worker_is_a_status_although_the_video_was_fetched(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(stream: LocalStream) -> Any:
        raise BackPressureError(num_queued_requests=9, max_queued_requests=9)

    async def scene(service: World) -> None:
        monkeypatch.setattr(LocalStream, "__anext__", refuse)
        response = await service.http.post("/v1/chat/completions", json=chat("fake://fetched"))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert "retry-after" in response.headers

    play(scene)


def test_what_fails_in_the_middle_of_the_work_is_said_in_the_stream(play: Play) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/chat/completions", json=chat("fake://corrupt?delay=0.05"))
        assert response.status_code == 200
        *told, error = parsed(response.text)
        assert steps([chunk["occam"]["progress"] for chunk in told])[:2] == [("fetch", 8, 8), ("decode", 2, 8)]
        assert (error["type"], error["error"]["code"]) == ("error", "unsupported_video")

    play(scene)


def test_a_replica_that_dies_behind_progress_is_replaced(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress promises nothing: only a text that has gone out keeps another replica from beginning anew."""
    original, worker_events = LocalStream.__anext__, []

    async def die_behind_progress(stream: LocalStream) -> Any:
        event = await original(stream)
        if isinstance(event, Progress):
            worker_events.append(event)
            if len(worker_events) == 3:
                raise ActorDiedError
        return event

    async def scene(service: World) -> None:
        monkeypatch.setattr(LocalStream, "__anext__", die_behind_progress)
        response = await service.http.post("/v1/chat/completions", json=chat("fake://dies?delay=0.02"))
        *chunks, end = parsed(response.text)
        assert len(worker_events) > 3
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text.startswith("saw 8 frames turn 0")
        assert end["choices"][0]["finish_reason"] == "stop"

    play(scene)


def test_the_last_event_says_what_the_answer_cost(play: Play) -> None:
    async def scene(service: World) -> None:
        answer = (await ask(service, await service.post_video()))[-1]
        assert answer["usage"]["visual_tokens"]["stage2"] == 8
        assert answer["timings"]["total_s"] >= answer["timings"]["ttft_s"] > 0
        for include in (False, True):
            body = chat("fake://cost", stream_options={"include_usage": include})
            told = parsed((await service.http.post("/v1/chat/completions", json=body)).text)
            *_, end = [chunk for chunk in told if chunk["choices"]]
            assert end["occam"]["usage"]["visual_tokens"]["stage2"] == 8
            assert end["occam"]["timings"]["total_s"] > 0
            assert "usage" not in end, "OpenAI's clients take it where they asked for it"
            assert (told[-1]["choices"] == []) == include
        assert told[-1]["usage"]["visual_tokens"]["stage2"] == 8
        assert told[-1]["occam"]["timings"] == end["occam"]["timings"]

    play(scene)


def test_the_first_text_is_what_the_ttft_is_of(play: Play) -> None:
    """Progress goes out long before."""

    async def scene(service: World) -> None:
        answer = parsed((await service.http.post("/v1/chat/completions", json=chat("fake://t?delay=0.1"))).text)[-1]
        assert answer["occam"]["timings"]["ttft_s"] > 0.39, "four chunks of a tenth of a second"

    play(scene)


def test_a_silent_stream_is_kept_open(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        body = chat("fake://silent?delay=0.2")
        monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
        response = await service.http.post("/v1/chat/completions", json=body)
        assert ": keep-alive\n\n" in response.text
        monkeypatch.setattr(events, "HEARTBEAT_S", 15.0)
        again = await service.http.post("/v1/chat/completions", json=body)
        assert ": keep-alive" not in again.text
        texts = [
            [chunk["choices"][0]["delta"].get("content") for chunk in parsed(each.text) if chunk["choices"][0]["delta"]]
            for each in (response, again)
        ]
        assert texts[0] == texts[1]

    play(scene)


def test_openais_async_client_is_not_disturbed(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        monkeypatch.setattr(events, "HEARTBEAT_S", 0.02)
        client = openai.AsyncOpenAI(base_url="http://occam/v1", api_key="any", http_client=service.http, max_retries=0)
        body = chat("fake://openai?delay=0.1", stream_options={"include_usage": True})
        chunks = [chunk async for chunk in await client.chat.completions.create(**body)]
        contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert contents[0] is None
        assert "".join(content or "" for content in contents).startswith("saw 8 frames turn 0")
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].usage.total_tokens > 0
        assert chunks[0].model_extra["occam"]["progress"]["stage"] == "fetch"

    play(scene)


def test_watched_work_ends_with_who_watches_it() -> None:
    ended: list[str] = []

    async def main() -> None:
        async def work(tell: Callable[[Progress], None]) -> None:
            tell(Progress(stage="decode", done=1, total=2, seconds=0.0))
            tell(Progress(stage="decode", done=2, total=2, seconds=0.0))
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        progress = Watched(work).progress()
        assert (await anext(progress)).done == 2, "the latest alone"
        await progress.aclose()
        await asyncio.sleep(0)
        assert ended == ["cancelled"]

    asyncio.run(main())
