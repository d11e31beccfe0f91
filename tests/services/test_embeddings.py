"""Embeddings in a real Redis: whole or not at all, taken where they are the quickest way, and shared."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from occam.config import CDPruner, OccamToken
from occam.errors import CorruptState, StoreUnavailable
from occam.kv import layout
from occam.kv.break_even import BreakEven
from occam.kv.embeddings import EMBEDDINGS_VERSION
from occam.kv.store import TieredStore, TierEvent
from services.answers import embeddings_keys, key_of
from services.messages import Medium
from services.redis_store import RedisEmbeddings, RedisStore
from tests.parity.checkpoint import write_checkpoint
from tests.parity.harness import load
from tests.redis_server import RedisServer
from tests.services.slow_line import slow_line
from tests.services.world import World, world
from tests.states import assert_same_media, make_key, make_medium, make_state

MODEL = "fake-both"
KEY = make_key()
HASH = f"occam:kv:{KEY.digest}"
MEDIUM = make_medium(tokens=[40, 60])
CLIP = {"type": "video_url", "video_url": {"url": "fake://clip?delay=0.2"}}  # far slower to compute than any fetch
PHOTO = {"type": "image_url", "image_url": {"url": "fake://photo?delay=0.2"}}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small media in many parts."""
    monkeypatch.setattr(layout, "PART_BYTES", 256)


def with_store(redis: RedisServer, test: Callable[[RedisEmbeddings], Awaitable[None]]) -> None:
    async def scene() -> None:
        store = RedisEmbeddings(redis.url, ttl_s=100, connect_s=0.3, stall_s=0.3, total_s=10.0)
        await test(store)
        await store.aclose()

    asyncio.run(scene())


def test_a_medium_comes_back_bit_for_bit_and_expires(redis_server: RedisServer, small_parts: None) -> None:
    async def test(store: RedisEmbeddings) -> None:
        assert await store.get(KEY) is None
        assert await store.put(KEY, MEDIUM)
        assert redis_server.client.hlen(HASH) > 10
        assert 90 < redis_server.client.ttl(HASH) <= 100
        restored = await store.get(KEY)
        assert restored is not None
        assert_same_media(restored, MEDIUM)
        await store.delete(KEY)
        assert redis_server.client.keys() == []

    with_store(redis_server, test)


def test_what_is_broken_or_a_state_is_found_and_what_lacks_a_part_is_a_miss(
    redis_server: RedisServer, small_parts: None
) -> None:
    async def test(store: RedisEmbeddings) -> None:
        await store.put(KEY, MEDIUM)
        fields = redis_server.client.hkeys(HASH)
        for field in (fields[0], fields[-2], b"manifest"):
            await store.put(KEY, MEDIUM)
            value = bytearray(redis_server.client.hget(HASH, field))  # type: ignore[arg-type]
            value[len(value) // 2] ^= 1
            redis_server.client.hset(HASH, field, bytes(value))
            with pytest.raises(CorruptState):
                await store.get(KEY)
        await store.put(KEY, MEDIUM)
        redis_server.client.hdel(HASH, fields[0])
        assert await store.get(KEY) is None
        states = RedisStore(redis_server.url)
        await states.put(KEY, make_state())
        with pytest.raises(CorruptState):
            await store.get(KEY)
        await states.aclose()

    with_store(redis_server, test)


def test_a_dead_server_is_an_outage(own_redis: RedisServer) -> None:
    async def test(store: RedisEmbeddings) -> None:
        await store.put(KEY, MEDIUM)
        own_redis.signal(signal.SIGKILL)
        own_redis.kill()
        for call in (lambda: store.get(KEY), lambda: store.put(KEY, MEDIUM), lambda: store.delete(KEY)):
            with pytest.raises(StoreUnavailable):
                await call()

    with_store(own_redis, test)


def test_over_a_line_too_slow_for_the_state_its_embeddings_are_taken(own_redis: RedisServer) -> None:
    """4 s for the state and 0.4 s for the embeddings, where the tower takes 2 s and the lower layers 0.2 s."""

    async def scene() -> None:
        of_embeddings = BreakEven()
        states = BreakEven(embeddings=of_embeddings)
        state, medium = make_state(tokens=2000, heads=8, head_dim=8), make_medium(tokens=[1000, 1000])
        seen: list[TierEvent] = []
        async with slow_line(own_redis.socket) as line:
            times: Any = {"stall_s": 10.0, "total_s": 60.0}
            tiers = TieredStore(
                [RedisStore(line.url, break_even=states, **times)],
                seen.append,
                embeddings=RedisEmbeddings(line.url, break_even=of_embeddings, **times),
            )
            for _ in range(3):
                states.built(encoded=state.encoded, tokens=len(state), seconds=2.2, prefill_s=0.2)
            await tiers.put(KEY, state)
            tiers.put_embeddings(make_key("medium"), medium)
            await tiers.drain()
            seen.clear()
            line.bytes_per_s = 0.5e6
            for _ in range(5):
                assert (await tiers.get(KEY, fits=lambda _: True)).state is None
                found, wanted = await tiers.get_embeddings(make_key("medium"), fits=lambda _: True)
                assert found is not None
                assert not wanted
                states.built(encoded=0, tokens=len(state), seconds=0.2, prefill_s=0.2)
            await tiers.aclose()
        results = {tier: [event.result for event in seen if event.tier == tier] for tier in ("redis", "embeddings")}
        assert results["embeddings"] == ["hit"] * 5
        assert results["redis"][0] == "declined", "of a line that is not known"
        assert results["redis"].count("declined") + results["redis"].count("given_up") == 5

    asyncio.run(scene())


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def chat(service: World, *media: dict[str, Any], system: str = "") -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": [*media, {"type": "text", "text": "what?"}]})
    response = await service.http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert response.status_code == 200, response.text
    await service.worker.target._prefixes._tiers.drain()
    body: dict[str, Any] = response.json()
    return body


def play(tmp_path: Path, redis_url: str, scene: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with world(tmp_path, redis_url, models=(MODEL,), **options) as service:
            await scene(service)

    asyncio.run(main())


def test_other_texts_and_other_media_share_what_the_tower_gave(tmp_path: Path, redis_server: RedisServer) -> None:
    answers: dict[str, list[str]] = {"shared": [], "alone": []}

    async def shared(service: World) -> None:
        assert (await chat(service, CLIP))["occam"]["cache"] == "none"
        before = {name: count(name, **LABELS[name]) for name in LABELS}
        again = await chat(service, CLIP, system="briefly")
        assert again["occam"]["cache"] == "embeddings"
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert count("occam_frames_decoded_total", backend="fake") == before["occam_frames_decoded_total"]
        assert (
            count("occam_kv_requests_total", tier="embeddings", result="hit") == before["occam_kv_requests_total"] + 1
        )
        assert count("occam_kv_bytes_total", tier="embeddings", direction="read") > before["occam_kv_bytes_total"]
        both = await chat(service, PHOTO, CLIP)
        assert both["occam"]["cache"] == "none", "the photo was computed"
        assert count("occam_frames_decoded_total", backend="fake") == before["occam_frames_decoded_total"] + 1
        turned = await chat(service, CLIP, PHOTO)
        assert turned["occam"]["cache"] == "embeddings"
        answers["shared"] += [each["choices"][0]["message"]["content"] for each in (again, both, turned)]

    async def alone(service: World) -> None:
        for media, system in (((CLIP,), "briefly"), ((PHOTO, CLIP), ""), ((CLIP, PHOTO), "")):
            body = await chat(service, *media, system=system)
            assert body["occam"]["cache"] == "none"
            answers["alone"].append(body["choices"][0]["message"]["content"])

    play(tmp_path, redis_server.url, shared)
    play(tmp_path, redis_server.url, alone, kv_url="memory://")
    assert answers["shared"] == answers["alone"]
    assert len(set(answers["alone"])) == 3


LABELS = {
    "occam_frames_decoded_total": {"backend": "fake"},
    "occam_kv_requests_total": {"tier": "embeddings", "result": "hit"},
    "occam_kv_bytes_total": {"tier": "embeddings", "direction": "read"},
}


def test_a_deleted_videos_embeddings_are_gone(tmp_path: Path, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video(CLIP["video_url"]["url"])  # type: ignore[index]
        await service.worker.target._prefixes._tiers.drain()
        assert len(redis_server.client.keys("occam:kv:*")) == 2
        assert (await service.http.delete(f"/v1/videos/{video}")).status_code == 204
        assert redis_server.client.keys("occam:kv:*") == []
        assert (await chat(service, CLIP, system="briefly"))["occam"]["cache"] == "none"

    play(tmp_path, redis_server.url, scene)


def test_embeddings_are_known_by_all_that_the_tower_saw_and_by_nothing_else(tmp_path: Path) -> None:
    engine = load(write_checkpoint(tmp_path))
    clip, other = (
        Medium(
            kind="video",
            url="",
            digest=digest,
            duration_s=1.0,
            width=8,
            height=8,
            frames=8,
            seconds=1.0,
            indices=(0, 4),
            decoder="d 1",
        )
        for digest in ("a", "b")
    )
    occam = engine.pruning("occam")
    assert isinstance(occam, OccamToken)
    key = key_of(engine, (clip,), occam, "")
    [own] = embeddings_keys(key)

    def digests(*media: Medium, pruning: Any = occam, system: str = "") -> list[str]:
        return [each.digest for each in embeddings_keys(key_of(engine, media, pruning, system))]

    assert own.digest != key.digest
    assert own.facts["embeddings"] == EMBEDDINGS_VERSION, "another version is another entry"
    assert digests(clip, system="briefly") == digests(clip, pruning=replace(occam, lambda2=9.0)) == [own.digest]
    assert digests(other, clip)[1] == own.digest
    [lossy] = embeddings_keys(key_of(engine, (clip,), occam, "", "int8"))
    assert lossy.digest == own.digest, "they go exactly over any wire"
    for pruning in (replace(occam, lambda1=0.25), replace(occam, keep_cls=True), engine.pruning("none")):
        assert digests(clip, pruning=pruning) != [own.digest]
    for changed in (replace(clip, indices=(0, 5)), replace(clip, decoder="d 2"), other):
        assert digests(changed) != [own.digest]
    asked = [CDPruner(budget=0.5, question=question) for question in ("what ?", "where ?")]
    assert digests(clip, pruning=asked[0]) != digests(clip, pruning=asked[1])
