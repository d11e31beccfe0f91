"""Which key calls carry, and that another worker is asked where one refuses; deadlines that a request names itself."""

import asyncio
import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from services.errors import WorkerFull
from tests.redis_server import RedisServer
from tests.services.local import LocalHandle, LocalStream
from tests.services.world import MODEL, World, world


@pytest.fixture
def play(tmp_path: Path, redis_server: RedisServer) -> Callable[..., None]:
    def run(scene: Callable[[World], Any], **options: Any) -> None:
        async def main() -> None:
            async with world(tmp_path, redis_server.url, **options) as service:
                await scene(service)

        asyncio.run(main())

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(method, key) of every call that carries a key, as they are made."""
    made: list[tuple[str, str]] = []
    original = LocalHandle.options

    def options(self: LocalHandle, method_name: str, stream: bool = False, session_id: str = "") -> LocalHandle:
        if session_id:
            made.append((method_name, session_id))
        return original(self, method_name, stream, session_id)

    monkeypatch.setattr(LocalHandle, "options", options)
    return made


def chat(name: str, question: str = "what?", **options: Any) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": f"fake://{name}"}}, {"type": "text", "text": question}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}


def test_all_that_is_asked_about_the_same_frames_goes_the_same_way(
    play: Callable[..., None], calls: list[tuple[str, str]]
) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://clip")
        session = (await service.query(video, "what?"))["session_id"]
        await service.query(video, "and?", session_id=session)
        await service.http.post("/v1/chat/completions", json=chat("clip"))
        # Who asks how far it is at the moment when it is through has it warmed again.
        assert list(dict(groupby(method for method, _ in calls))) == ["warm", "answer"]
        assert [method for method, _ in calls].count("answer") == 3
        assert len({key for _, key in calls}) == 1
        await service.query(video, "what?", max_frames=4)
        await service.http.post("/v1/chat/completions", json=chat("another"))
        assert len({key for _, key in calls}) == 3

    play(scene)


@pytest.mark.parametrize(("refusals", "status"), [(1, 200), (2, 503)])
def test_where_a_worker_refuses_the_next_is_asked_once(
    play: Callable[..., None],
    calls: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    refusals: int,
    status: int,
) -> None:
    left = [WorkerFull("Full.", retry_after_s=7.2)] * refusals
    original = LocalStream.__anext__

    async def anext_or_refuse(stream: LocalStream) -> Any:
        if left:
            raise left.pop()
        return await original(stream)

    async def scene(service: World) -> None:
        video = await service.post_video("fake://clip")
        calls.clear()
        monkeypatch.setattr(LocalStream, "__anext__", anext_or_refuse)
        response = await service.http.post(f"/v1/videos/{video}/queries", json={"question": "what?"})
        assert response.status_code == status
        assert response.headers.get("retry-after") == (None if status == 200 else "8")
        [(_, first), (_, second)] = calls
        assert (first[-2:], second) == ("+0", first[:-1] + "1")

    play(scene)


def test_a_request_ends_at_the_deadline_it_names(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        queries = f"/v1/videos/{video}/queries"
        for path, body in (
            (queries, {"question": "slow?", "deadline_s": 0.4}),
            ("/v1/chat/completions", chat("clip", "slow?", occam={"deadline_s": 0.4})),
            ("/v1/chat/completions", chat("late?fetch=20", occam={"deadline_s": 0.4})),
            ("/v1/chat/completions", chat("late?delay=20", occam={"deadline_s": 0.4})),
        ):
            response = await service.http.post(path, json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert "more than 0.4 s" in response.json()["error"]["message"]
            for handle in (service.worker, service.decoder):
                while not (await handle.target.running()).idle:
                    await asyncio.sleep(0.01)
        streamed = await service.http.post(queries, json={"question": "slow?", "deadline_s": 0.4, "stream": True})
        *_, error, done = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
        assert (json.loads(error)["error"]["code"], done) == ("deadline_exceeded", "[DONE]")
        assert (await service.query(video, "what?", deadline_s=60))["answer"].startswith("saw 8 frames")

    play(scene, deadline_s=60)


def test_a_deadline_is_no_longer_than_the_services(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        queries = f"/v1/videos/{video}/queries"
        for path, body in (
            (queries, {"question": "what?", "deadline_s": 61}),
            (queries, {"question": "what?", "deadline_s": 61, "stream": True}),
            ("/v1/chat/completions", chat("clip", occam={"deadline_s": 61})),
        ):
            response = await service.http.post(path, json=body)
            error = response.json()["error"]
            assert (response.status_code, error["param"].split(".")[-1]) == (422, "deadline_s")
            assert "61" in error["message"]
            assert "60" in error["message"]
        refused = await service.http.post(queries, json={"question": "what?", "deadline_s": 0})
        assert refused.status_code == 400

    play(scene, deadline_s=60)


def test_where_one_image_cannot_be_had_the_others_are_not_fetched_on(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        urls = ("fake://slow1?fetch=60", "fake://missing", "fake://slow2?fetch=60")
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}]
        response = await service.http.post("/v1/chat/completions", json={"model": "fake-both", "messages": messages})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "source_unavailable")
        assert (await service.decoder.target.running()).idle

    play(scene, models=("fake-both",))
