"""Every route, every answer shape and every failure, over the service in one process with fakes."""

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from occam.engine import Engine
from occam.errors import EngineFailure
from occam.kv.break_even import Offer
from services import strict_json
from services.engine_thread import EngineThread
from services.state import State
from tests.parity.checkpoint import write_checkpoint
from tests.redis_server import RedisServer
from tests.services.local import LocalStream
from tests.services.world import MODEL, Play, World

CLIP = {"type": "video_url", "video_url": {"url": "fake://clip"}}


def chat(*messages: tuple[str, Any], **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": role, "content": content} for role, content in messages], **options}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_video_is_described_encoded_and_forgotten(play: Play) -> None:
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


def test_an_answer_says_what_it_cost_and_a_follow_up_goes_on(play: Play) -> None:
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
        assert first["evidence"]["spans"] == [{"medium": 0, "start_s": 0.0, "end_s": 0.875, "kept": 8}]

        second = await service.query(video, "what then?", session_id=first["session_id"])
        assert second["session_id"] == first["session_id"]
        assert " turn 1" in second["answer"]
        assert second["evidence"] is None
        assert second["usage"]["cached_tokens"] == 17, "the video's state; the first turn is replayed"
        third = await service.query(video, "and then?", session_id=first["session_id"])
        assert " turn 2" in third["answer"]

    play(scene)


def test_a_follow_up_is_exact_wherever_its_state_comes_from(play: Play, own_redis: RedisServer) -> None:
    """From memory; from Redis, with a memory that holds nothing; from frames, if a byte has flipped or Redis died."""
    answers: list[tuple[str, str]] = []
    clip = "fake://exact?delay=0.2"  # far slower to compute than any fetch

    async def in_memory(service: World) -> None:
        video = await service.post_video(clip)
        first = await service.query(video, "what?")
        second = await service.query(video, "and then?", session_id=first["session_id"])
        await service.worker.target._prefixes._tiers.drain()
        assert (first["occam"]["cache"], second["occam"]["cache"]) == ("memory", "memory")
        answers.append((first["answer"], second["answer"]))

    async def redis_dies(service: World) -> None:
        video = await service.post_video(clip)
        first = await service.query(video, "what?")
        assert first["occam"]["cache"] == "redis"
        assert first["usage"]["cached_tokens"] == 17
        own_redis.kill()
        errors = count("occam_kv_errors_total", tier="redis", reason="unavailable")
        second = await service.query(video, "and then?", session_id=first["session_id"])
        assert second["occam"]["cache"] == "none"
        assert second["usage"]["cached_tokens"] == 0
        assert second["timings"]["decode_s"] > 0
        assert count("occam_kv_errors_total", tier="redis", reason="unavailable") > errors
        answers.append((first["answer"], second["answer"]))

    async def a_byte_flips(service: World) -> None:
        video = await service.post_video(clip)
        first = await service.query(video, "what?")
        assert first["occam"]["cache"] == "redis"
        flip_a_byte(own_redis)
        errors = count("occam_kv_errors_total", tier="redis", reason="corrupt")
        second = await service.query(video, "and then?", session_id=first["session_id"])
        assert second["occam"]["cache"] == "none"
        assert count("occam_kv_errors_total", tier="redis", reason="corrupt") == errors + 1
        await service.worker.target._prefixes._tiers.drain()
        third = await service.query(video, "what?")
        assert (third["occam"]["cache"], third["answer"]) == ("redis", first["answer"]), "written anew"
        answers.append((first["answer"], second["answer"]))

    play(in_memory, kv_url=own_redis.url)
    play(a_byte_flips, kv_url=own_redis.url, kv_memory_bytes=1)
    play(redis_dies, kv_url=own_redis.url, kv_memory_bytes=1)
    assert answers[0] == answers[1] == answers[2]


def test_messages_sent_again_take_one_turn_of_the_engine_whatever_their_number(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns between which the chunks of other videos would go first."""
    run, turns = EngineThread.run, 0

    async def counted(self: EngineThread, *args: Any, **kwargs: Any) -> Any:
        nonlocal turns
        turns += 1
        return await run(self, *args, **kwargs)

    monkeypatch.setattr(EngineThread, "run", counted)
    taken = []

    async def scene(service: World) -> None:
        for past in (0, 0, 1, 6):
            said = [("user", [CLIP, text_part("what?")]), ("assistant", "that")]
            said += [("user", "and then?"), ("assistant", "this")] * (past - 1)
            messages = [*said, ("user", "where?")] if past else said[:1]
            before = turns
            answer = await service.http.post("/v1/chat/completions", json=chat(*messages))
            assert answer.status_code == 200, answer.text
            taken.append(turns - before)

    play(scene)
    _, none, one, six = taken
    assert none <= one == six


def test_what_came_over_a_lossy_wire_is_labelled_wherever_it_goes(play: Play, own_redis: RedisServer) -> None:
    """Two replicas with int8 between them, then one that knows the exact wire alone."""
    clip = "fake://lossy?delay=0.2"  # far slower to compute than any fetch

    def said(answer: dict[str, Any]) -> tuple[str, bool]:
        return answer["occam"]["cache"], answer["occam"]["approximate"]

    async def converse(service: World) -> tuple[dict[str, Any], ...]:
        content = [{"type": "video_url", "video_url": {"url": clip}}, text_part("what?")]
        first = (await service.http.post("/v1/chat/completions", json=chat(("user", content)))).json()
        session = {"session_id": first["occam"]["session_id"]}
        second = await service.http.post("/v1/chat/completions", json=chat(("user", "and then?"), occam=session))
        third = await service.http.post("/v1/chat/completions", json=chat(("user", "and then?"), occam=session))
        streamed = await service.http.post("/v1/chat/completions", json=chat(("user", content), stream=True))
        await service.worker.target._prefixes._tiers.drain()
        return first, second.json(), third.json(), events(streamed.text)[-1]

    async def writer(service: World) -> None:
        first, *others = map(said, await converse(service))
        assert first == ("none", False), "computed here, exactly"
        assert others == [("memory", False)] * 3

    async def reader(service: World) -> None:
        first, second, third, streamed = await converse(service)
        assert said(first) == ("redis", True)
        assert [said(each) for each in (second, third, streamed)] == [("memory", True)] * 3
        assert len(service.worker.target._prefixes._memory._states) == 3, "the clip's state, and those behind two turns"
        video = await service.post_video(clip)
        assert said(await service.query(video, "what?")) == ("memory", True), "in our own dialect as well"
        other = await service.post_video("fake://other")
        assert said(await service.query(other, "what?")) == ("memory", False), "computed here"

    async def exact(service: World) -> None:
        first, *others = map(said, await converse(service))
        assert first == ("embeddings", False), "states of a lossy wire are not its own; embeddings go exactly"
        assert others == [("memory", False)] * 3

    play(writer, kv_url=own_redis.url, kv_wire="int8")
    play(reader, kv_url=own_redis.url, kv_wire="int8")
    play(exact, kv_url=own_redis.url)


def test_a_state_that_is_quicker_to_compute_is_not_fetched(play: Play, own_redis: RedisServer) -> None:
    async def scene(service: World) -> None:
        prefixes = service.worker.target._prefixes
        video = await service.post_video("fake://quick?delay=0.1")
        await prefixes._tiers.drain()
        took = prefixes._break_even._rebuild_s(Offer(nbytes=1, encoded=32, tokens=17))
        assert took > 0.4, "the wait for four chunks"
        assert prefixes._break_even._builds.prefill.seconds(17) == 0, "as the fake says"
        first = await service.query(video, "what?")
        for _ in range(7):
            prefixes._break_even.built(encoded=32, tokens=17, seconds=1e-6, prefill_s=0.0)
        declined = {tier: results(tier)["declined"] for tier in ("redis", "embeddings")}
        errors = count("occam_kv_errors_total", tier="redis", reason="unavailable")
        tried = [await service.query(video, "what?") for _ in range(2)]
        last = await service.query(video, "what?")
        assert first["occam"]["cache"] == "embeddings", "of a line that is not known, the smaller"
        assert [each["occam"]["cache"] for each in tried] == ["redis", "embeddings"], "once each"
        assert (last["occam"]["cache"], last["usage"]["cached_tokens"]) == ("none", 0)
        assert {each["answer"] for each in tried} == {first["answer"], last["answer"]}
        assert results("redis")["declined"] == declined["redis"] + 2
        assert results("embeddings")["declined"] == declined["embeddings"] + 1
        assert count("occam_kv_errors_total", tier="redis", reason="unavailable") == errors

    play(scene, kv_url=own_redis.url, kv_memory_bytes=1)


def results(tier: str) -> dict[str, float]:
    """Lookups of a tier so far, by what became of them."""
    return {
        result: count("occam_kv_requests_total", tier=tier, result=result)
        for result in ("hit", "miss", "declined", "given_up", "failed")
    }


def test_workers_of_a_node_share_states_in_files_that_are_forgotten_with_their_video(
    play: Play, tmp_path: Path
) -> None:
    node = {"kv_url": "memory://", "kv_memory_bytes": 1, "kv_node_bytes": 1 << 20}
    clip = "fake://node?delay=0.2"
    answers, posted = [], []

    async def one(service: World) -> None:
        posted.append(await service.post_video(clip))
        first = await service.query(posted[0], "what?")
        await service.worker.target._prefixes._tiers.drain()
        answers.append(first["answer"])

    async def another(service: World) -> None:
        hits = count("occam_kv_requests_total", tier="node", result="hit")
        video = await service.post_video(clip)
        found = await service.query(video, "what?")
        assert (found["occam"]["cache"], found["usage"]["cached_tokens"]) == ("node", 17)
        assert count("occam_kv_requests_total", tier="node", result="hit") == hits + 2, "when it was posted, too"
        answers.append(found["answer"])
        (path,) = (tmp_path / "kv").iterdir()
        for hours, tier in ((23, "node"), (25, "none")):  # a state lives for a day
            os.utime(path, (time.time(), time.time() - 3600 * hours))
            assert (await service.query(video, "what?"))["occam"]["cache"] == tier
        await service.worker.target._prefixes._tiers.drain()
        assert path.exists(), "written anew"
        assert (await service.http.delete(f"/v1/videos/{posted[0]}")).status_code == 204
        assert path.exists(), "the other video has the same bytes"
        assert (await service.http.delete(f"/v1/videos/{video}")).status_code == 204
        assert list((tmp_path / "kv").iterdir()) == []

    play(one, **node)
    play(another, **node)
    assert answers[0] == answers[1]


def flip_a_byte(redis: RedisServer) -> None:
    """In a part, not the manifest, of every state that lies in the Redis."""
    for key in redis.client.keys("occam:kv:*"):
        part = next(field for field in redis.client.hkeys(key) if field != b"manifest")
        value = bytearray(redis.client.hget(key, part))
        value[len(value) // 2] ^= 1
        redis.client.hset(key, part, bytes(value))


def test_answer_metrics_are_the_sum_of_usage(play: Play) -> None:
    labels = {"model": MODEL, "strategy": "occam"}

    async def scene(service: World) -> None:
        before = {stage: count("occam_visual_tokens_total", stage=stage, **labels) for stage in ("encoded", "stage2")}
        video = await service.post_video("fake://sum")
        answers = await asyncio.gather(*(service.query(video, f"what {i}?") for i in range(5)))
        for stage, value in before.items():
            spent = sum(answer["usage"]["visual_tokens"][stage] for answer in answers)
            assert count("occam_visual_tokens_total", stage=stage, **labels) - value == spent > 0

    play(scene)


def test_requests_that_come_together_build_a_state_once(play: Play) -> None:
    async def scene(service: World) -> None:
        before = count("occam_frames_decoded_total", backend="fake")
        clip = [{"type": "video_url", "video_url": {"url": "fake://once?delay=0.05"}}, text_part("what?")]
        request = service.http.post
        answers = await asyncio.gather(*(request("/v1/chat/completions", json=chat(("user", clip))) for _ in range(4)))
        tiers = sorted(answer.json()["occam"]["cache"] for answer in answers)
        assert tiers == ["memory", "memory", "memory", "none"]
        assert count("occam_frames_decoded_total", backend="fake") - before == 8

    play(scene)


def test_a_stream_carries_pieces_then_the_answer(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        response = await service.http.post(f"/v1/videos/{video}/queries", json={"question": "what?", "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        *pieces, answer = events(response.text)
        assert [piece["type"] for piece in pieces] == ["text"] * 3
        assert answer["type"] == "answer"
        assert "".join(piece["text"] for piece in pieces) == answer["answer"]
        assert answer["usage"]["visual_tokens"]["stage2"] == 8

    play(scene)


def test_a_stream_that_breaks_says_so(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        path = "/v1/videos/{video_id}/queries"
        failed = count("occam_requests_total", route=path, outcome="server_error")
        monkeypatch.setattr(LocalStream, "__anext__", _die_after(1, EngineFailure("The engine failed.")))
        body = {"question": "what?", "stream": True}
        response = await service.http.post(f"/v1/videos/{video}/queries", json=body)
        assert response.status_code == 200
        error = events(response.text)[-1]
        assert (error["type"], error["error"]["code"]) == ("error", "engine_failure")
        assert count("occam_requests_total", route=path, outcome="server_error") == failed + 1

    play(scene)


@pytest.mark.parametrize(
    ("streamed", "after", "lives"), [(False, 0, True), (False, 2, True), (True, 0, True), (True, 1, False)]
)
def test_a_request_survives_its_replica_until_its_stream_begins(
    play: Play, monkeypatch: pytest.MonkeyPatch, streamed: bool, after: int, lives: bool
) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        whole = await service.query(video, "what?")
        monkeypatch.setattr(LocalStream, "__anext__", _die_after(after, ActorDiedError()))
        body = {"question": "what?", "stream": streamed}
        response = await service.http.post(f"/v1/videos/{video}/queries", json=body)
        last = events(response.text)[-1] if streamed else response.json()
        if lives:
            assert last["answer"] == whole["answer"]
        else:
            assert last["error"]["code"] == "replica_lost"

    play(scene)


def _die_after(items: int, error: Exception) -> Any:
    """A stream's `__anext__` that fails once, behind so many items, and works ever after."""
    original, seen = LocalStream.__anext__, []

    async def anext_or_die(stream: LocalStream) -> Any:
        seen.append(None)
        if len(seen) == items + 1:
            raise error
        return await original(stream)

    return anext_or_die


def test_chat_takes_and_gives_what_openai_does(play: Play) -> None:
    async def scene(service: World) -> None:
        clip = [{"type": "video_url", "video_url": {"url": "fake://chat"}}, text_part("what?")]
        options = {"stream": True, "stream_options": {"include_usage": True}, "user": "somebody"}
        whole = (await service.http.post("/v1/chat/completions", json=chat(("user", clip)))).json()
        streamed = await service.http.post("/v1/chat/completions", json=chat(("user", clip), **options))
        *pieces, end, usage = events(streamed.text)
        text = whole["choices"][0]["message"]["content"]
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == text
        assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
        assert end["choices"][0]["finish_reason"] == "stop"
        assert usage["choices"] == []
        assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
        assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 17

        resent = chat(("user", clip), ("assistant", text), ("user", "and then?"))
        by_text = (await service.http.post("/v1/chat/completions", json=resent)).json()
        session = whole["occam"]["session_id"]
        by_session = await service.http.post(
            "/v1/chat/completions", json=chat(("user", "and then?"), occam={"session_id": session})
        )
        assert by_session.json()["occam"]["session_id"] == session
        assert by_session.json()["choices"] == by_text["choices"], "ids of the session, or the texts that were resent"

    play(scene)


def test_a_session_is_not_told_another_past(play: Play) -> None:
    async def scene(service: World) -> None:
        async def said(*past: tuple[str, Any], session: str | None = None) -> Any:
            body = chat(*past, ("user", "and then?"), occam={"session_id": session})
            return await service.http.post("/v1/chat/completions", json=body)

        clip = [CLIP, text_part("what?")]
        first = (await said(("user", clip), ("assistant", "Red."), session=None)).json()
        text, session = first["choices"][0]["message"]["content"], first["occam"]["session_id"]
        past = [("user", clip), ("assistant", "Red."), ("user", "and then?"), ("assistant", text)]
        for edited in (
            [*past[:3], ("assistant", "Blue.")],
            [*past[:2], ("user", "and before?"), past[3]],
            past[:2],
        ):
            refused = await said(*edited, session=session)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "messages")
        assert " turn 2" in (await said(*past, session=session)).json()["choices"][0]["message"]["content"]

    play(scene)


def test_a_null_is_as_good_as_nothing(play: Play) -> None:
    async def scene(service: World) -> None:
        messages: list[tuple[str, Any]] = [("user", [CLIP, text_part("what?")]), ("assistant", None), ("user", "so?")]
        names = ("temperature", "top_p", "n", "stream", "stream_options", "seed", "max_tokens", "max_completion_tokens",
                 "stop", "tools", "tool_choice", "response_format", "logit_bias", "occam")  # fmt: skip
        answers = [
            await service.http.post("/v1/chat/completions", json=chat(*messages, **options))
            for options in ({}, dict.fromkeys(names), {"stream_options": {"include_usage": None}})
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200], answers[1].text
        assert len({json.dumps(answer.json()["choices"]) for answer in answers}) == 1

    play(scene)


@pytest.mark.parametrize(
    ("name", "value", "harmless"),
    [
        ("stop", ["."], []),
        ("tools", [{"type": "function", "function": {"name": "f"}}], []),
        ("tool_choice", "required", "none"),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("logprobs", True, False),
        ("logit_bias", {"7": 1}, {}),
        ("presence_penalty", 0.5, 0.0),
        ("frequency_penalty", -1, 0),
        ("n", 2, 1),
    ],
)
def test_what_is_not_supported_is_not_ignored(play: Play, name: str, value: Any, harmless: Any) -> None:
    async def scene(service: World) -> None:
        clip = ("user", [CLIP, text_part("what?")])
        refused = await service.http.post("/v1/chat/completions", json=chat(clip, **{name: value}))
        assert refused.status_code in (400, 422)
        assert refused.json()["error"]["param"] == name
        taken = await service.http.post("/v1/chat/completions", json=chat(clip, **{name: harmless}))
        assert taken.status_code == 200, taken.text

    play(scene)


def test_what_a_session_was_begun_with_stays(play: Play) -> None:
    async def scene(service: World) -> None:
        video, other = await service.post_video(), await service.post_video("fake://other")
        session = (await service.query(video, "what?", strategy="none"))["session_id"]
        for place, options in (
            (video, {"strategy": "occam"}),
            (video, {"start_s": 1.0}),
            (video, {"fps": 2.0}),
            (other, {}),
        ):
            body = {"question": "and?", "session_id": session, **options}
            response = await service.http.post(f"/v1/videos/{place}/queries", json=body)
            assert response.status_code == (404 if place == other else 422), options
        assert " turn 1" in (await service.query(video, "and?", session_id=session, strategy="none"))["answer"]

    play(scene)


def test_turns_of_one_session_do_not_run_side_by_side(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        session = (await service.query(video, "what?"))["session_id"]
        path, body = f"/v1/videos/{video}/queries", {"session_id": session}
        slow = asyncio.create_task(service.http.post(path, json={**body, "question": "slow?", "max_tokens": 10}))
        await asyncio.sleep(0.2)
        beside = await service.http.post(path, json={**body, "question": "now?"})
        assert (beside.status_code, beside.json()["error"]["code"]) == (409, "session_busy")
        assert (await slow).status_code == 200
        assert " turn 2" in (await service.query(video, "now?", session_id=session))["answer"]

    play(scene)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/videos", {}, 400, "malformed", "url"),
        ("/v1/videos", {"url": "fake://clip", "speed": 2}, 400, "malformed", "speed"),
        ("/v1/videos", {"url": "fake://missing"}, 422, "source_unavailable", "url"),
        ("/v1/videos/video-none/queries", {"question": "what?"}, 404, "not_found", "video_id"),
        ("/v1/videos/{clip}/queries", {"question": ""}, 400, "malformed", "question"),
        ("/v1/videos/{clip}/queries", {"question": "what?", "fps": 1e9}, 400, "malformed", "fps"),
        ("/v1/videos/{clip}/queries", {"question": "what?", "model": "other"}, 404, "unknown_model", "model"),
        ("/v1/videos/{clip}/queries", {"question": "what?", "session_id": "x"}, 404, "not_found", "session_id"),
        (
            "/v1/videos/{clip}/queries",
            {"question": "what?", "session_id": "x" * 10_000},
            400,
            "malformed",
            "session_id",
        ),
        ("/v1/chat/completions", {**chat(("user", [CLIP])), "model": "x" * 10_000}, 400, "malformed", "model"),
        ("/v1/videos/{clip}/queries", {"question": "what?", "start_s": 200}, 422, "invalid_input", "start_s"),
        ("/v1/videos/{clip}/queries", {"question": "crash?"}, 500, "internal", None),
        ("/v1/videos/{clip}/queries", {"question": "what?", "temperature": 1e-39}, 422, "invalid_input", "temperature"),
        ("/v1/videos/{clip}/queries", {"question": "what?", "seed": 2**63}, 400, "malformed", "seed"),
        ("/v1/chat/completions", chat(("user", [CLIP]), seed=-(2**63) - 1), 400, "malformed", "seed"),
        ("/v1/videos/{corrupt}/queries", {"question": "what?"}, 415, "unsupported_video", None),
        ("/v1/chat/completions", chat(("user", "no video")), 422, "invalid_input", "messages"),
        ("/v1/chat/completions", chat(("user", [CLIP])), 422, "invalid_input", "messages"),
        ("/v1/chat/completions", chat(("assistant", "hello")), 422, "invalid_input", "messages"),
        (
            "/v1/chat/completions",
            chat(("system", "a" * 32_766), ("user", [CLIP, {"type": "text", "text": "what?"}])),
            422,
            "invalid_input",
            "messages",
        ),
        (
            "/v1/chat/completions",
            chat(
                ("user", [CLIP, {"type": "video_url", "video_url": {"url": "fake://b"}}, {"type": "text", "text": "?"}])
            ),
            422,
            "invalid_input",
            "messages",
        ),
        (
            "/v1/chat/completions",
            chat(
                ("user", [{"type": "image_url", "image_url": {"url": "fake://missing"}}, {"type": "text", "text": "?"}])
            ),
            422,
            "invalid_input",
            "model",
        ),
        ("/v1/nothing", {}, 404, "not_found", None),
        ("/v1/models", {}, 405, "method_not_allowed", None),
    ],
)
def test_errors_have_one_shape(
    play: Play, path: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    async def scene(service: World) -> None:
        ids = {name: await service.post_video(f"fake://{name}") for name in ("clip", "corrupt")}
        response = await service.http.post(path.format(**ids), json=body, headers={"x-request-id": "r1"})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"type", "code", "message", "param", "request_id"}
        assert (error["code"], error["param"], error["request_id"]) == (code, param, "r1")

    play(scene)


HALF = "\ud800"
HALF_IMAGE = {"type": "image_url", "image_url": {"url": f"data:{HALF}"}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/videos", {"url": f"fake://{HALF}"}),
        ("/v1/videos", {HALF: "fake://clip"}),
        ("/v1/videos/{clip}/queries", {"question": HALF}),
        ("/v1/videos/{clip}/queries", {"question": "what?", "session_id": HALF}),
        ("/v1/videos/{clip}/queries", {"question": "what?", "model": HALF}),
        ("/v1/chat/completions", chat(("system", HALF), ("user", [CLIP, {"type": "text", "text": "what?"}]))),
        ("/v1/chat/completions", chat(("user", [CLIP, {"type": "text", "text": HALF}]))),
        ("/v1/chat/completions", chat(("user", [HALF_IMAGE, {"type": "text", "text": "what?"}]))),
        ("/v1/chat/completions", chat(("user", "what?"), occam={"session_id": HALF})),
    ],
)
def test_half_a_character_is_malformed(play: Play, path: str, body: dict[str, Any]) -> None:
    async def scene(service: World) -> None:
        clip = await service.post_video()
        headers = {"content-type": "application/json"}
        response = await service.http.post(path.format(clip=clip), content=json.dumps(body), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed"), response.text

    play(scene)


@pytest.mark.parametrize("given", [None, b"\xff\xfe", b"x" * 65, b"<b>", b"a b", b""])
def test_every_request_has_a_harmless_id(play: Play, given: bytes | None) -> None:
    async def scene(service: World) -> None:
        headers = {} if given is None else {b"x-request-id": given}
        response = await service.http.post("/v1/videos", json={"url": "fake://missing"}, headers=headers)
        assert re.fullmatch("[0-9a-f]{32}", response.json()["error"]["request_id"])

    play(scene)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_has_a_limit(play: Play, declared: bool) -> None:
    async def scene(service: World) -> None:
        fits = {"url": "fake://" + "x" * 400}
        assert (await service.http.post("/v1/videos", json=fits)).status_code == 200
        content = json.dumps({"url": "fake://" + "x" * 600}).encode()

        async def pieces() -> AsyncIterator[bytes]:
            yield content[:300]
            yield content[300:]

        response = await service.http.post(
            "/v1/videos",
            content=content if declared else pieces(),
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 413
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "body_too_large")
        assert "512 bytes" in error["message"]

    play(scene, max_body_bytes=512)


def test_a_large_body_is_read_beside_the_loop(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for the loop, so what takes long to read may not be read there."""
    threads: list[bool] = []

    def parse(body: bytes, real: Callable[[bytes], Any] = strict_json.parse) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return real(body)

    monkeypatch.setattr(strict_json, "parse", parse)

    async def scene(service: World) -> None:
        for size, status in ((8_000, 200), (100_000, 400)):
            body = {"url": "fake://" + "x" * size}
            assert (await service.http.post("/v1/videos", json=body)).status_code == status

    play(scene)
    assert threads == [True, False]


def test_a_video_is_encoded_again_if_its_ingress_died(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        record = json.loads(redis_server.client.get(f"video:{video}"))
        redis_server.client.set(f"video:{video}", json.dumps({**record, "status": "processing"}))
        statuses = []
        for _ in range(50):
            statuses.append((await service.http.get(f"/v1/videos/{video}")).json()["status"])
            await asyncio.sleep(0.02)
        assert (statuses[0], statuses[-1]) == ("processing", "ready")

    play(scene)


def test_who_asks_as_the_encoding_ends_does_not_begin_it_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    read, encoded = State.video, asyncio.Event()

    async def slowly(state: State, *names: str) -> Any:
        record = await read(state, *names)
        await encoded.wait()
        return record

    async def scene(service: World) -> None:
        warms = []
        warm = service.worker.target.warm

        async def counted(*args: Any) -> Any:
            warms.append(args)
            warmed = await warm(*args)
            asyncio.get_running_loop().call_later(0.1, encoded.set)
            return warmed

        monkeypatch.setattr(service.worker.target, "warm", counted)
        monkeypatch.setattr(State, "video", slowly)
        video = (await service.http.post("/v1/videos", json={"url": "fake://clip?delay=0.02"})).json()["id"]
        assert (await service.http.get(f"/v1/videos/{video}")).json()["status"] == "processing", "as it was read"
        assert (await service.http.get(f"/v1/videos/{video}")).json()["status"] == "ready"
        assert len(warms) == 1

    play(scene)


def test_a_video_whose_frames_cannot_be_had_fails(play: Play) -> None:
    async def scene(service: World) -> None:
        path = f"/v1/videos/{await service.post_video('fake://corrupt')}"
        body = (await service.http.get(path)).json()
        assert (body["status"], body["error"]["code"]) == ("failed", "unsupported_video")

    play(scene)


def test_a_full_queue_says_when_to_come_back(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        monkeypatch.setattr(LocalStream, "__anext__", _die_after(0, BackPressureError(8, 8)))
        response = await service.http.post(f"/v1/videos/{video}/queries", json={"question": "what?"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1

    play(scene)


def test_a_request_ends_at_its_deadline(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        path = f"/v1/videos/{video}/queries"
        response = await service.http.post(path, json={"question": "slow?"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        streamed = await service.http.post(path, json={"question": "slow?", "stream": True})
        assert events(streamed.text)[-1]["error"]["code"] == "deadline_exceeded"

    play(scene, deadline_s=0.5)


def test_posting_a_video_ends_at_its_deadline(play: Play) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/videos", json={"url": "fake://late?fetch=5"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")

    play(scene, deadline_s=0.5)


def test_sessions_need_their_store(play: Play, own_redis: RedisServer) -> None:
    async def scene(service: World) -> None:
        ready = (await service.http.get("/readyz")).json()
        assert (ready["models"], ready["sandbox"]) == ([MODEL], "without landlock and namespaces")
        own_redis.kill()
        response = await service.http.get("/readyz")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await service.http.get("/healthz")).status_code == 200

    play(scene, state_url=own_redis.url)


def test_a_cache_that_is_away_is_said_so(play: Play, own_redis: RedisServer) -> None:
    async def scene(service: World) -> None:
        assert (await service.http.get("/readyz")).json()["kv"] == "a private Redis"
        own_redis.kill()
        response = await service.http.get("/readyz")
        assert response.status_code == 200, "it costs time only"
        assert response.json()["kv"] == "a private Redis, which does not answer: each worker's memory"

    play(scene, kv_url=own_redis.url, kv_detail="a private Redis")


def test_a_full_store_says_so(play: Play, own_redis: RedisServer) -> None:
    async def scene(service: World) -> None:
        assert (await service.http.get("/readyz")).status_code == 200
        own_redis.client.config_set("maxmemory-policy", "noeviction")
        own_redis.client.config_set("maxmemory", 1)
        for response in (
            await service.http.get("/readyz"),
            await service.http.post("/v1/videos", json={"url": "fake://clip"}),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (503, "store_unavailable")
            assert "full" in error["message"]

    play(scene, state_url=own_redis.url)


def test_a_session_is_kept_for_long_once_it_is_followed_up(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        clip = chat(("user", [CLIP, text_part("what?")]))
        session = (await service.http.post("/v1/chat/completions", json=clip)).json()["occam"]["session_id"]
        assert 0 < redis_server.client.ttl(f"session:{session}") <= 60
        body = chat(("user", "and then?"), occam={"session_id": session})
        assert (await service.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert 60 < redis_server.client.ttl(f"session:{session}") <= 600

    play(scene, session_first_ttl_s=60, session_ttl_s=600)


def test_models_and_the_document_describe_the_service(play: Play) -> None:
    async def scene(service: World) -> None:
        model = (await service.http.get("/v1/models")).json()["data"][0]
        assert (model["id"], model["object"], model["frames"], model["media"]) == (MODEL, "model", 8, ["video"])
        assert model["defaults"] == {"strategy": "occam", "lambda1": 1.0, "lambda2": 1.0}
        document = (await service.http.get("/openapi.json")).json()
        routes = {
            "/v1/videos", "/v1/videos/{video_id}", "/v1/videos/{video_id}/queries", "/v1/chat/completions",
            "/v1/sessions/{session_id}", "/v1/sessions/{session_id}/turns/{turn}/frames/{index}.png",
            "/v1/models", "/healthz", "/readyz", "/startupz", "/metrics",
            "/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/results", "/v1/estimate",
        }  # fmt: skip
        assert set(document["paths"]) == routes
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                assert operation["description"], f"{method} {path} must say what it does"

    play(scene)


@pytest.mark.parametrize("options", [{"strategy": "occam"}, {"lambda1": 0.5}, {"lambda2": 0.0}], ids=str)
def test_a_model_without_calibration_refuses_to_prune(play: Play, tmp_path: Path, options: dict[str, Any]) -> None:
    """In either dialect, however the pruning is asked for; an answer without it would pass for a pruned one."""
    bare = write_checkpoint(tmp_path / "bare")
    (bare / "occam.json").unlink()

    async def scene(service: World) -> None:
        video = await service.post_video()
        assert (await service.query(video, "what"))["occam"]["strategy"] == "none"
        body = chat(("user", [CLIP, text_part("what")]), occam=options) | {"model": str(bare)}
        for path, asked in (
            (f"/v1/videos/{video}/queries", {"question": "what", **options}),
            ("/v1/chat/completions", body),
        ):
            response = await service.http.post(path, json=asked)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (422, "not_calibrated"), response.text
            assert "Run `occam calibrate`" in error["message"]
            assert str(bare.parent) not in error["message"], "where it lies is nobody's business"
            prefix = "occam." if "chat" in path else ""
            assert error["param"] == f"{prefix}{next(iter(options))}"

    play(scene, models=(str(bare),), load=Engine.load)


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
