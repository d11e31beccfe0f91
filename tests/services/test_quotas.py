"""Quotas: what counts, what is refused and how, and that nothing is free while they cannot be counted."""

import asyncio
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import av
import httpx
import openai
import pytest
from prometheus_client import REGISTRY
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from occam.errors import EngineFailure, InvalidInput
from services import ingress, strict_json
from services.allowances import Allowance
from services.errors import DeadlineExceeded, QuotaExceeded
from services.keys import entry_of, fresh_key
from services.media import LocalMedia
from services.messages import Source
from services.quotas import Quotas
from services.reference_sets import Sets
from services.settings import Settings
from services.state import State
from tests.fakes import FakeMedia
from tests.redis_server import RedisServer
from tests.services.document import operations
from tests.services.local import LocalStream
from tests.services.world import MODEL, Play, World

ACME, OTHER = fresh_key(), fresh_key()
AS_OTHER = {"authorization": f"Bearer {OTHER}"}
NOON = 20_000 * 86_400 + 43_200.0
"""A time at which a minute and half a day begin."""
SECONDS = 2.0
"""Length of `fake://clip`."""


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What services that are made from now on count minutes and days by."""
    clock = Clock()
    monkeypatch.setattr(ingress, "Quotas", partial(Quotas, clock=clock))
    return clock


@pytest.fixture
def usual(clock: Clock) -> dict[str, Any]:
    """Two tenants; scenes are played as the first of them."""
    keys = (entry_of("acme", ACME), entry_of("other", OTHER))
    return {"api_keys": keys, "headers": {"authorization": f"Bearer {ACME}"}}


def chat(url: str = "fake://clip", **options: Any) -> dict[str, Any]:
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "what?"}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}


async def ask(service: World, url: str = "fake://clip", **given: Any) -> httpx.Response:
    """A chat completion."""
    return await service.http.post("/v1/chat/completions", json=chat(url), **given)


def refused(response: httpx.Response) -> str:
    """The message of a refusal by quota."""
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "quota_exceeded")
    return str(error["message"])


def rejected() -> float:
    return REGISTRY.get_sample_value("occam_rejections_total", {"reason": "quota_exceeded"}) or 0.0


def used(redis: RedisServer, kind: str, tenant: str = "acme") -> int:
    """What the counters of a tenant say, all windows together."""
    return sum(int(redis.client.get(name)) for name in redis.client.scan_iter(f"quota:{kind}:{tenant}:*"))


def test_requests_are_counted_by_the_minute_and_the_tenant(play: Play, clock: Clock) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        clock.now += 20.5
        assert (await ask(service)).status_code == 200
        assert (await service.http.post(f"/v1/videos/{video}/queries", json={"question": "?"})).status_code == 200
        before = rejected()
        over = await ask(service)
        assert "quota of 3 requests a minute" in refused(over)
        assert "OCCAM_QUOTA_REQUESTS" in refused(over)
        assert over.headers["retry-after"] == "40", "39.5 s, and no less"
        assert rejected() == before + 1
        assert (await ask(service, headers=AS_OTHER)).status_code == 200
        for path in (f"/v1/videos/{video}", "/v1/models", "/metrics", "/healthz"):
            assert (await service.http.get(path)).status_code == 200
        clock.now += 39.0
        refused(await ask(service))
        clock.now += 0.5
        assert (await ask(service)).status_code == 200, "after what Retry-After says, at the latest"

    play(scene, quota_requests=3)


def test_every_route_that_costs_is_counted(play: Play, redis_server: RedisServer) -> None:
    """Every POST; those of jobs are counted by their questions."""

    async def scene(service: World) -> None:
        costly = [each for each in await operations(service) if each.method == "POST" and each.template != "/v1/jobs"]
        assert {each.template for each in costly} >= {
            "/v1/chat/completions",
            "/v1/videos",
            "/v1/videos/{video_id}/queries",
        }
        for number, each in enumerate(costly):
            await service.http.request(each.method, each.path(), json=each.body)
            assert used(redis_server, "requests") == number + 1, each.template

    play(scene, quota_requests=100)


def test_what_is_malformed_is_counted_before_it_is_read(
    play: Play, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(strict_json, "parse", lambda body, parse=strict_json.parse: read.append(body) or parse(body))

    async def scene(service: World) -> None:
        for number, body in enumerate((b"{", b"{}", b"[" * 100_000)):
            response = await service.http.post(
                "/v1/videos/0/queries", content=body, headers={"content-type": "application/json"}
            )
            assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed")
            assert used(redis_server, "requests") == number + 1
        assert len(read) == 3
        for path in ("/v1/videos", "/v1/videos/0/queries", "/v1/chat/completions", "/v1/jobs", "/v1/estimate"):
            refused(await service.http.post(path, content=b"{", headers={"content-type": "application/json"}))
        refused(await service.http.post("/v1/videos", files={"file": b"no video"}))
        assert len(read) == 3, "what the quota refuses is not read"

    play(scene, quota_requests=3)


def test_an_estimate_is_counted_by_the_addresses_that_it_fetches(
    play: Play, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    async def describe(self: FakeMedia, source: Source, *rest: Any, real: Any = FakeMedia.describe) -> Any:
        fetched.append(source.url)
        return await real(self, source, *rest)

    monkeypatch.setattr(FakeMedia, "describe", describe)

    async def estimate(service: World, *videos: dict[str, str]) -> httpx.Response:
        return await service.http.post("/v1/estimate", json={"videos": videos, "questions": ["what?"]})

    async def scene(service: World) -> None:
        posted = {"id": await service.post_video()}
        named = [{"url": f"fake://{number}"} for number in range(5)]
        assert used(redis_server, "requests") == 1
        assert (await estimate(service, posted, posted)).status_code == 200
        assert used(redis_server, "requests") == 2, "what is here already is not fetched"
        assert (await estimate(service, posted, *named[:3])).status_code == 200
        assert used(redis_server, "requests") == 5
        fetched.clear()
        assert "has 2 left, and 3 more are needed" in refused(await estimate(service, *named[:4]))
        never = await estimate(service, *named, *named)
        assert (never.status_code, never.json()["error"]["param"]) == (422, "videos")
        assert "10 addresses" in never.json()["error"]["message"]
        assert not fetched

    play(scene, quota_requests=8)


def test_of_requests_that_come_together_no_more_than_the_quota_enter(play: Play) -> None:
    async def scene(service: World) -> None:
        answers = await asyncio.gather(*(ask(service) for _ in range(12)))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 7

    play(scene, quota_requests=5)


def test_tenants_may_have_quotas_of_their_own(play: Play) -> None:
    async def scene(service: World) -> None:
        assert (await ask(service)).status_code == 200
        assert "quota of 1 requests" in refused(await ask(service))
        for _ in range(3):
            assert (await ask(service, headers=AS_OTHER)).status_code == 200

    play(scene, quota_requests=1, tenant_quotas=("other:0:0",))


def test_openais_client_knows_a_quota(play: Play) -> None:
    async def scene(service: World) -> None:
        client = openai.AsyncOpenAI(
            api_key=ACME, base_url="http://occam/v1", http_client=service.http, max_retries=0
        ).chat.completions
        await client.create(**chat())
        with pytest.raises(openai.RateLimitError) as limited:
            await client.create(**chat())
        assert (limited.value.code, limited.value.response.headers["retry-after"]) == ("quota_exceeded", "60")
        with pytest.raises(openai.RateLimitError):
            await client.create(**chat(stream=True))

    play(scene, quota_requests=1)


def test_only_what_is_newly_decoded_costs_seconds(play: Play, redis_server: RedisServer, clock: Clock) -> None:
    async def scene(service: World) -> None:
        first = (await ask(service)).json()
        assert (first["occam"]["cache"], first["usage"]["video_seconds"]) == ("none", SECONDS)
        assert used(redis_server, "video") == 2000
        session = {"session_id": first["occam"]["session_id"]}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "and?"}], "occam": session}
        assert (await service.http.post("/v1/chat/completions", json=body)).status_code == 200
        assert (await ask(service)).json()["occam"]["cache"] == "memory"
        assert used(redis_server, "video") == 2000
        over = await ask(service, "fake://other")
        assert "2 s to be decoded, and of the quota of 3 s a day 1 s are left" in refused(over)
        assert over.headers["retry-after"] == "43200", "midnight"
        assert (await ask(service)).status_code == 200, "what is cached is free for whoever has nothing left"
        assert (await ask(service, "fake://brief?frames=8")).status_code == 200
        assert used(redis_server, "video") == 3000
        refused(await ask(service, "fake://another?frames=1"))
        clock.now += 43_200
        assert (await ask(service, "fake://other")).status_code == 200

    play(scene, quota_video_seconds=3.0)


def test_a_posted_video_costs_what_encoding_it_decodes(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video()
        assert used(redis_server, "video") == 2000
        assert (await service.query(video, "what?"))["occam"]["cache"] == "memory"
        await service.post_video("fake://clip")
        assert used(redis_server, "video") == 2000, "its state is there"
        refused(await service.http.post("/v1/videos", json={"url": "fake://other"}))
        assert len(list(redis_server.client.scan_iter("video:*"))) == 2, "nothing is kept of what was refused"

    play(scene, quota_video_seconds=3.0)


def test_what_no_day_has_is_not_promised_for_tomorrow(play: Play) -> None:
    async def scene(service: World) -> None:
        for response in (
            await ask(service, "fake://long?frames=80"),
            await service.http.post("/v1/videos", json={"url": "fake://long?frames=80"}),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (413, "video_too_large")
            assert "10 s to be decoded, more than the quota of 9 s" in error["message"]

    play(scene, quota_video_seconds=9.0)


def write_clip(path: Path, frames: int, rate: int, group: int) -> None:
    """An MP4 of so many frames a second and a key frame in each group of so many."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"g": str(group), "sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("frames", "rate", "group", "end_s", "milliseconds"),
    [
        (100, 10, 600, 9.0001, 9100),
        (100, 10, 20, 9.0001, 1100),
        (100, 10, 20, 10.0, 1900),
        (600, 6000, 600, None, 8767),
    ],
    ids=["one key frame", "the key frame before", "a whole range", "timed anew"],
)
def test_what_a_range_decodes_is_paid_for_and_not_its_length_by_the_files_clock(
    play: Play,
    redis_server: RedisServer,
    tmp_path: Path,
    frames: int,
    rate: int,
    group: int,
    end_s: float | None,
    milliseconds: int,
) -> None:
    write_clip(tmp_path / "clip.mp4", frames, rate, group)
    choice = {"start_s": 9.0, "end_s": end_s} if end_s else {}

    async def scene(service: World) -> None:
        body = chat(str(tmp_path / "clip.mp4"), occam=choice)
        answer = await service.http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["video_seconds"] == pytest.approx(end_s - 9.0 if end_s else frames / rate)
        assert used(redis_server, "video") == milliseconds

    play(scene, media=LocalMedia, file_roots=(str(tmp_path),), quota_video_seconds=100.0)


def test_requests_that_come_together_do_not_overrun_the_seconds(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        answers = await asyncio.gather(*(ask(service, f"fake://clip-{number}?delay=0.05") for number in range(8)))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
        assert used(redis_server, "video") == 6000

    play(scene, quota_video_seconds=7.0)


def test_of_requests_for_one_video_one_pays(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        answers = await asyncio.gather(*(ask(service, "fake://clip?delay=0.05") for _ in range(3)))
        assert sorted(answer.json()["occam"]["cache"] for answer in answers) == ["memory", "memory", "none"]
        assert used(redis_server, "video") == 2000

    play(scene, quota_video_seconds=100.0)


@pytest.mark.parametrize(
    ("trouble", "status", "paid"),
    [
        (BackPressureError(8, 8), 503, 0),
        (EngineFailure("The engine failed."), 500, 0),
        (ActorDiedError(), 503, 0),
        (DeadlineExceeded("The request took more than 1 s."), 504, 2000),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_the_service_fails_at_is_given_back(
    play: Play,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
    status: int,
    paid: int,
) -> None:
    """But not what took too long: its frames were decoded."""
    original = LocalStream.__anext__

    async def anext_or_fail(stream: LocalStream) -> Any:
        if used(redis_server, "video"):
            raise trouble
        return await original(stream)

    async def scene(service: World) -> None:
        monkeypatch.setattr(LocalStream, "__anext__", anext_or_fail)
        assert (await ask(service)).status_code == status
        assert used(redis_server, "video") == paid

    play(scene, quota_video_seconds=10.0)


def test_who_hangs_up_while_a_video_waits_for_its_turn_does_not_pay(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        digest = (await service.http.post("/v1/videos", json={"url": "fake://clip"})).json()["digest"]
        paid = used(redis_server, "video")
        redis_server.client.set(Sets("", digest).lock, "somebody else")
        post = asyncio.create_task(service.http.post("/v1/videos", json={"url": "fake://clip?frames=16"}))
        while used(redis_server, "video") == paid:
            await asyncio.sleep(0.01)
        post.cancel()
        with suppress(asyncio.CancelledError):
            await post
        assert used(redis_server, "video") == paid

    play(scene, quota_video_seconds=100)


def test_a_video_that_breaks_off_is_paid_for(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        await service.post_video("fake://corrupt")
        assert (await ask(service, "fake://corrupt")).status_code == 415
        assert used(redis_server, "video") == 4000

    play(scene, quota_video_seconds=10.0)


def test_without_its_store_nothing_is_free(play: Play, own_redis: RedisServer, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        own_redis.kill()
        for response in (await ask(service), await service.http.post("/v1/videos", json={"url": "fake://clip"})):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unavailable")
            assert "retry-after" in response.headers

    for quota in ({"quota_requests": 5}, {"quota_video_seconds": 5.0}):
        play(scene, state_url=own_redis.url, kv_url=redis_server.url, **quota)
        own_redis.start()


def test_what_is_given_back_is_of_the_day_on_which_it_was_taken(redis_server: RedisServer, clock: Clock) -> None:
    async def scene() -> None:
        state = State(redis_server.url, ttl_s=60, first_ttl_s=60, turn_s=1, salt=str)
        quotas = Quotas(state, lambda tenant: Allowance(video_seconds=10), clock)
        yesterday = await quotas.reserve("acme", 8.0)
        with pytest.raises(QuotaExceeded):
            await quotas.reserve("acme", 2.5)
        clock.now += 43_200
        await quotas.reserve("acme", 9.0)
        await yesterday.give_back()
        with pytest.raises(QuotaExceeded, match="1 s are left"):
            await quotas.reserve("acme", 2.5)
        redis_server.client.flushall()
        await yesterday.give_back()
        assert redis_server.client.keys() == [], "a counter that has expired stays away"
        for _ in range(100):
            await quotas.reserve("acme", 0.1)
        with pytest.raises(QuotaExceeded, match=" 0 s are left"):
            await quotas.reserve("acme", 0.001)
        assert all(redis_server.client.ttl(name) > 86_400 for name in redis_server.client.scan_iter())
        await state._redis.aclose()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"quota_requests": -1}, "OCCAM_QUOTA_REQUESTS must be 0 or above, got -1"),
        ({"quota_video_seconds": float("nan")}, "OCCAM_QUOTA_VIDEO_SECONDS must be 0 or above, got nan"),
        ({"quota_video_seconds": float("inf")}, "OCCAM_QUOTA_VIDEO_SECONDS"),
        ({"tenant_quotas": ("acme:1",)}, "tenant:requests:seconds"),
        ({"tenant_quotas": ("acme:1:-1",)}, "tenant:requests:seconds"),
        ({"tenant_quotas": ("a b:1:1",)}, "letters, digits"),
        ({"tenant_quotas": ("acme:1:1", "acme:2:2")}, "names acme twice"),
    ],
)
def test_a_quota_that_is_none_is_refused_at_start(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Settings(**given)


def test_quotas_are_settings() -> None:
    settings = Settings.load(
        {
            "OCCAM_QUOTA_REQUESTS": "60",
            "OCCAM_QUOTA_VIDEO_SECONDS": "3600",
            "OCCAM_TENANT_QUOTAS": "acme:0:7200.5, b:6:0",
        }
    )
    assert settings.allowance("somebody") == Allowance(requests=60, video_seconds=3600.0)
    assert settings.allowance("acme") == Allowance(requests=0, video_seconds=7200.5)
    assert settings.allowance("b") == Allowance(requests=6, video_seconds=0.0)
