"""Tenants: ids and cached states of others are as good as unknown."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from services.keys import entry_of, fresh_key
from services.settings import Settings
from services.state import new_id
from tests.redis_server import RedisServer
from tests.services.document import operations
from tests.services.world import MODEL, Play, World

ACME, OTHER = fresh_key(), fresh_key()
KEYS = (entry_of("acme", ACME), entry_of("other", OTHER))
CLIP = "fake://clip?delay=0.2"  # far slower to compute than any fetch


@pytest.fixture
def usual() -> dict[str, Any]:
    """Two tenants; scenes are played as the first of them unless they say otherwise."""
    return {"api_keys": KEYS, "headers": {"authorization": f"Bearer {ACME}"}}


AS_OTHER = {"authorization": f"Bearer {OTHER}"}


def chat(url: str = CLIP, **options: Any) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}


async def tier(service: World, url: str = CLIP, headers: dict[str, str] | None = None) -> str:
    """Where the state of a clip came from, for a question of its own."""
    response = await service.http.post("/v1/chat/completions", json=chat(url), headers=headers)
    assert response.status_code == 200, response.text
    await service.worker.target._prefixes._tiers.drain()
    return str(response.json()["occam"]["cache"])


def without_request_id(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert error.pop("request_id")
    return error


def test_ids_of_others_are_unknown_on_every_route(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        owned = {"video_id": video, "session_id": (await service.query(video, "what?"))["session_id"]}
        job = {"videos": [{"id": video}], "questions": ["what?"]}
        owned["job_id"] = (await service.http.post("/v1/jobs", json=job)).json()["id"]
        tried = set()
        for operation in await operations(service):
            kinds = {name for name in operation.parameters if name.endswith("_id")}
            assert kinds <= set(owned), f"{operation.template}: say above how its ids are made"
            if not kinds:
                continue
            ids = {name: owned[name] for name in kinds}
            unknown = {name: new_id(name.removesuffix("_id")) for name in kinds}
            foreign, nothing = [
                await service.http.request(
                    operation.method, operation.path(**each), json=operation.body, headers=AS_OTHER
                )
                for each in (ids, unknown)
            ]
            assert (foreign.status_code, nothing.status_code) == (404, 404), operation
            assert without_request_id(foreign) == without_request_id(nothing)
            assert set(foreign.headers) == set(nothing.headers)
            tried.add((operation.method, operation.template))
        assert {("DELETE", "/v1/videos/{video_id}"), ("GET", "/v1/sessions/{session_id}")} <= tried
        follow_up = await service.query(video, "and?", session_id=owned["session_id"])
        assert " turn 1" in follow_up["answer"], "nothing of all that has touched them"

    play(scene)


def test_a_session_of_others_is_unknown_in_bodies_even_while_it_is_busy(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        session = (await service.query(video, "what?"))["session_id"]
        posted = await service.http.post("/v1/videos", json={"url": "fake://clip"}, headers=AS_OTHER)
        path = f"/v1/videos/{posted.json()['id']}/queries"

        async def as_other(named: str) -> list[dict[str, Any]]:
            text: list[Any] = [{"role": "user", "content": "and?"}]
            answers = [
                await service.http.post(path, json={"question": "and?", "session_id": named}, headers=AS_OTHER),
                await service.http.post(
                    "/v1/chat/completions",
                    json={"model": MODEL, "messages": text, "occam": {"session_id": named}},
                    headers=AS_OTHER,
                ),
            ]
            assert [answer.status_code for answer in answers] == [404, 404], answers
            return [without_request_id(answer) for answer in answers]

        nothing = await as_other(new_id("session"))
        assert await as_other(session) == nothing
        slow = await begun(service, redis_server, video, session)
        assert await as_other(session) == nothing
        assert not slow.done()
        await slow

    play(scene)


async def begun(service: World, redis: RedisServer, video: str, session: str) -> "asyncio.Task[dict[str, Any]]":
    """A slow turn of a session that is being answered."""
    turn = asyncio.create_task(service.query(video, "slow?", session_id=session, max_tokens=20))
    while not any(session.encode() in name for name in redis.client.scan_iter("turn:*")):
        await asyncio.sleep(0)
    return turn


def test_ids_cannot_be_guessed() -> None:
    ids = [new_id("video") for _ in range(100)]
    assert len(set(ids)) == 100
    assert all(len(each.removeprefix("video-")) * 6 >= 128 for each in ids)


def decoded() -> float:
    return REGISTRY.get_sample_value("occam_frames_decoded_total", {"backend": "fake"}) or 0.0


@pytest.mark.parametrize("options", [{}, {"kv_memory_bytes": 1}, {"kv_url": "memory://", "kv_node_bytes": 1 << 20}])
def test_cached_states_and_embeddings_are_of_one_tenant(play: Play, options: dict[str, Any]) -> None:
    async def scene(service: World) -> None:
        assert await tier(service) == "none"
        assert await tier(service) != "none"
        before = decoded()
        assert await tier(service, headers=AS_OTHER) == "none"
        assert decoded() == before + 8, "it takes as long as if nobody had asked"
        assert await tier(service, headers=AS_OTHER) != "none"

    play(scene, **options)


def test_a_build_under_way_is_of_one_tenant(play: Play) -> None:
    async def scene(service: World) -> None:
        before = decoded()
        tiers = await asyncio.gather(*(tier(service, headers=headers) for headers in (None, AS_OTHER, None, AS_OTHER)))
        assert sorted(tiers) == ["memory", "memory", "none", "none"]
        assert decoded() == before + 16

    play(scene)


def test_a_shared_cache_is_a_setting(play: Play) -> None:
    async def scene(service: World) -> None:
        assert await tier(service) == "none"
        assert await tier(service, headers=AS_OTHER) == "memory"

    play(scene, shared_cache=True)
    assert [Settings(shared_cache=shared).salt("public") for shared in (False, True)] == ["public", ""]


@pytest.mark.parametrize(
    ("given", "shared"), [("true", True), ("1", True), ("True", True), ("false", False), ("0", False)]
)
def test_a_switch_is_read_as_it_is_meant(given: str, shared: bool) -> None:
    assert Settings.load({"OCCAM_SHARED_CACHE": given}).shared_cache is shared


def test_a_session_is_shown_and_forgotten(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        first = await service.query(video, "what?")
        path = f"/v1/sessions/{first['session_id']}"
        second = await service.query(video, "and?", session_id=first["session_id"])
        redis_server.client.pexpire(f"session:{first['session_id']}", 50_000)
        for _ in range(2):
            shown = (await service.http.get(path)).json()
            assert 0 < shown["expires_at"] - int(time.time()) <= 50, "looking at it does not prolong it"
        assert shown | {"expires_at": 0} == {
            "id": first["session_id"],
            "model": MODEL,
            "video_id": video,
            "media": [
                {
                    "kind": "video",
                    "url": "fake://clip",
                    "digest": (await service.http.get(f"/v1/videos/{video}")).json()["digest"],
                    "duration_s": 2.0,
                    "frames": 16,
                    "frames_taken": 8,
                }
            ],
            "turns": [
                {"question": "what?", "answer": first["answer"]},
                {"question": "and?", "answer": second["answer"]},
            ],
            "expires_at": 0,
        }
        assert (await service.http.delete(path)).status_code == 204
        for gone in (
            await service.http.get(path),
            await service.http.delete(path),
            await service.http.post(
                f"/v1/videos/{video}/queries", json={"question": "?", "session_id": first["session_id"]}
            ),
        ):
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
        assert (await service.http.get(f"/v1/videos/{video}")).status_code == 200

    play(scene)


def test_a_session_that_is_forgotten_while_it_is_answered_stays_forgotten(
    play: Play, redis_server: RedisServer
) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        session = (await service.query(video, "what?"))["session_id"]
        slow = await begun(service, redis_server, video, session)
        assert (await service.http.delete(f"/v1/sessions/{session}")).status_code == 204
        assert not slow.done()
        assert " turn 1" in (await slow)["answer"]
        assert (await service.http.get(f"/v1/sessions/{session}")).status_code == 404

    play(scene)


def test_a_session_ends_with_its_video(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        session = (await service.query(video, "what?"))["session_id"]
        assert (await service.http.delete(f"/v1/videos/{video}")).status_code == 204
        response = await service.http.get(f"/v1/sessions/{session}")
        assert (response.status_code, response.json()["error"]["param"]) == (404, "session_id")

    play(scene)
