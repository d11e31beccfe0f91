"""Forgetting videos: what they refer to goes with the last of them, whatever happens meanwhile."""

import asyncio
import random
from hashlib import sha256
from typing import Any

import pytest

from services.errors import ReplicaLost
from services.keys import entry_of, fresh_key
from services.state import State
from tests.redis_server import RedisServer
from tests.services.world import MODEL, Play, World

ACME, OTHER = fresh_key(), fresh_key()
AS_ACME, AS_OTHER = ({"authorization": f"Bearer {key}"} for key in (ACME, OTHER))
CLIP = "fake://clip"
DIGEST = sha256(b"clip").hexdigest()


@pytest.fixture
def usual() -> dict[str, Any]:
    """Two tenants; scenes are played as the first of them."""
    return {"api_keys": (entry_of("acme", ACME), entry_of("other", OTHER)), "headers": AS_ACME}


async def post(service: World, headers: dict[str, str] = AS_ACME, url: str = CLIP) -> str:
    """The id of a video that has been encoded."""
    response = await service.http.post("/v1/videos", json={"url": url}, headers=headers)
    assert response.status_code == 200, response.text
    path = f"/v1/videos/{response.json()['id']}"
    while (await service.http.get(path, headers=headers)).json()["status"] == "processing":
        await asyncio.sleep(0)
    return str(response.json()["id"])


async def delete(service: World, video: str, headers: dict[str, str] = AS_ACME) -> int:
    return (await service.http.delete(f"/v1/videos/{video}", headers=headers)).status_code


async def tier(service: World, headers: dict[str, str] = AS_ACME) -> str:
    """Where a chat completion finds the state of the clip; it leaves nothing that was not there."""
    content = [{"type": "video_url", "video_url": {"url": CLIP}}, {"type": "text", "text": "what?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    response = await service.http.post("/v1/chat/completions", json=body, headers=headers)
    return str(response.json()["occam"]["cache"])


def states(service: World) -> int:
    """States in the worker's memory."""
    return len(service.worker.target._prefixes._memory._states)


def has_copy(service: World) -> bool:
    return DIGEST in service.decoder.target._media._here


def test_the_last_video_of_the_same_bytes_takes_states_and_copies_along(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        first, second = await post(service), await post(service, url=f"{CLIP}?again")
        assert states(service) == 1
        assert await delete(service, first) == 204
        assert (states(service), has_copy(service)) == (1, True)
        assert (await service.query(second, "what?"))["occam"]["cache"] == "memory"
        assert await delete(service, first) == 404
        assert await delete(service, second) == 204
        assert (states(service), has_copy(service)) == (0, False)
        left = {name.split(b":")[0] for name in redis_server.client.scan_iter()}
        assert left <= {b"session", b"dropped", b"check"}
        assert redis_server.client.ttl(f"dropped:{DIGEST}") > 0
        assert await tier(service) == "none"

    play(scene)


def test_tenants_keep_their_own_states_and_one_copy(play: Play) -> None:
    async def scene(service: World) -> None:
        ours, theirs = await post(service), await post(service, AS_OTHER)
        assert states(service) == 2
        assert await delete(service, ours) == 204
        assert (states(service), has_copy(service)) == (1, True)
        assert await tier(service, AS_OTHER) == "memory"
        assert await delete(service, theirs, AS_OTHER) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


def test_with_a_shared_cache_the_last_tenant_takes_the_states_along(play: Play) -> None:
    async def scene(service: World) -> None:
        ours, theirs = await post(service), await post(service, AS_OTHER)
        assert states(service) == 1
        assert await delete(service, ours) == 204
        assert (states(service), has_copy(service)) == (1, True)
        assert await delete(service, theirs, AS_OTHER) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene, shared_cache=True)


def test_a_video_that_has_expired_refers_to_nothing(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        expired, video = await post(service), await post(service)
        redis_server.client.delete(f"video:{expired}")
        assert await delete(service, video) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


def test_what_is_referred_to_lives_as_long_as_the_video(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await post(service)
        names = [f"video:{video}", f"refs:acme:{DIGEST}", f"keys:acme:{DIGEST}", f"copies:{DIGEST}"]
        assert all(0 < redis_server.client.ttl(name) <= 600 for name in names)
        for name in names:
            redis_server.client.expire(name, 9)
        assert (await service.http.get(f"/v1/videos/{video}")).status_code == 200
        assert all(590 < redis_server.client.ttl(name) <= 600 for name in names)

    play(scene, session_ttl_s=600)


class Halt:
    """Holds the first call of a method up until it is let go, before it does anything or `after` it has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool = False) -> None:
        self.reached, self.go, self.calls = asyncio.Event(), asyncio.Event(), 0
        original = getattr(owner, name)

        async def halted(*args: Any) -> Any:
            self.calls += 1
            first = self.calls == 1
            if first and not after:
                await self._wait()
            result = await original(*args)
            if first and after:
                await self._wait()
            return result

        monkeypatch.setattr(owner, name, halted)

    async def _wait(self) -> None:
        self.reached.set()
        await self.go.wait()


async def settled() -> None:
    """Give everything that can go on the time to do so."""
    for _ in range(5):
        await asyncio.sleep(0.02)


def test_of_two_deletes_at_once_one_drops(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        videos = [await post(service) for _ in range(2)]
        drop = Halt(monkeypatch, service.decoder.target, "forget")
        deletes = [asyncio.create_task(delete(service, video)) for video in videos]
        await drop.reached.wait()
        drop.go.set()
        assert await asyncio.gather(*deletes) == [204, 204]
        assert drop.calls == 1
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


def test_a_post_during_a_delete_has_its_copy_and_its_state(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The post has described the copy before the delete drops it."""

    async def scene(service: World) -> None:
        first = await post(service)
        drop = Halt(monkeypatch, service.decoder.target, "forget")
        deleting = asyncio.create_task(delete(service, first))
        await drop.reached.wait()
        posting = asyncio.create_task(post(service))
        await settled()
        assert not posting.done(), "it waits for the delete"
        drop.go.set()
        assert await deleting == 204
        second = await posting
        assert (states(service), has_copy(service)) == (1, True)
        assert (await service.query(second, "what?"))["occam"]["cache"] == "memory"
        assert await delete(service, second) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


def test_a_delete_between_the_halves_of_a_post_makes_it_fetch_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: World) -> None:
        first = await post(service)
        described = Halt(monkeypatch, service.decoder.target, "describe", after=True)
        posting = asyncio.create_task(post(service))
        await described.reached.wait()
        assert await delete(service, first) == 204
        assert not has_copy(service)
        described.go.set()
        second = await posting
        assert described.calls == 2
        assert (states(service), has_copy(service)) == (1, True)
        assert await delete(service, second) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


@pytest.mark.parametrize("where", [(State, "note_key"), (State, "save_session")])
def test_what_an_answer_caches_while_its_video_is_deleted_goes_too(
    play: Play, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    async def scene(service: World) -> None:
        video = await post(service)
        answered = Halt(monkeypatch, *where)
        asking = asyncio.create_task(service.query(video, "what?", lambda1=0.5))
        await answered.reached.wait()
        assert states(service) == 2
        assert await delete(service, video) == 204
        answered.go.set()
        await asking
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


def test_what_an_answer_notes_while_the_drop_is_under_way_goes_too(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        video = await post(service)
        drop = Halt(monkeypatch, service.decoder.target, "forget")
        deleting = asyncio.create_task(delete(service, video))
        await drop.reached.wait()
        await service.query(video, "what?", lambda1=0.5)
        assert states(service) == 1
        drop.go.set()
        assert await deleting == 204
        assert states(service) == 0

    play(scene)


def test_what_posting_encodes_after_a_delete_goes_too(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        warm = Halt(monkeypatch, service.worker.target, "warm")
        video = (await service.http.post("/v1/videos", json={"url": CLIP})).json()["id"]
        await warm.reached.wait()
        assert await delete(service, video) == 204
        service.decoder.target._media._here.add(DIGEST)  # as decoding it would, which fetches what is not here
        warm.go.set()
        while states(service) or has_copy(service):
            await asyncio.sleep(0.01)

    play(scene)


def test_a_delete_that_fails_can_be_tried_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(service: World) -> None:
        video = await post(service)

        async def die(*args: Any) -> None:
            raise ReplicaLost("The process that worked on the request died.")

        with monkeypatch.context() as patch:
            patch.setattr(service.decoder.target, "forget", die)
            assert await delete(service, video) == 503
        assert (await service.http.get(f"/v1/videos/{video}")).status_code == 200
        assert await delete(service, video) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_references_hold_however_things_interleave(
    play: Play, monkeypatch: pytest.MonkeyPatch, seed: int, shared: bool
) -> None:
    """Two tenants post, ask about and delete the same bytes, each step held up by chance."""
    dice = random.Random(seed)

    def jolt(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        async def jolted(*args: Any) -> Any:
            for _ in range(dice.choice((0, 0, 1, 5, 30))):
                await asyncio.sleep(0)
            return await original(*args)

        monkeypatch.setattr(owner, name, jolted)

    async def client(service: World, headers: dict[str, str], kept: list[str]) -> None:
        for _ in range(6):
            kept.append(await post(service, headers))
            body = {"question": "what?", "lambda1": dice.choice((0.5, 0.75))}
            asked = service.http.post(f"/v1/videos/{dice.choice(kept)}/queries", json=body, headers=headers)
            if dice.random() < 0.7:
                gone = kept.pop(dice.randrange(len(kept)))
                answer, status = await asyncio.gather(asked, delete(service, gone, headers))
                assert (answer.status_code in (200, 404), status) == (True, 204)
            else:
                assert (await asked).status_code == 200

    async def scene(service: World) -> None:
        for owner, name in (
            (State, "run"),
            (State, "save_video"),
            (service.decoder.target, "describe"),
            (service.decoder.target, "forget"),
            (service.worker.target, "forget"),
            (service.worker.target, "warm"),
        ):
            jolt(owner, name)
        kept: dict[int, list[str]] = {number: [] for number in range(4)}
        tenants = [AS_ACME, AS_OTHER, AS_ACME, AS_OTHER]
        await asyncio.gather(*(client(service, tenants[number], kept[number]) for number in kept))
        left = [(video, tenants[number]) for number in kept for video in kept[number]]
        dice.shuffle(left)
        for video, headers in left:
            assert has_copy(service)
            assert await delete(service, video, headers) == 204
        assert (states(service), has_copy(service)) == (0, False)

    play(scene, shared_cache=shared)
