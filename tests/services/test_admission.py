"""Admission by cost: what one worker takes on, and when it says to come back."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.admission import Admission
from services.errors import WorkerFull
from tests.redis_server import RedisServer
from tests.services.world import MODEL, World, world


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def gauge() -> float:
    return REGISTRY.get_sample_value("occam_queued_visual_tokens") or 0.0


def test_tokens_are_admitted_up_to_the_bound() -> None:
    admission, before = Admission(100), gauge()
    with admission.admit(60), admission.admit(40) as second:
        assert admission.queued == gauge() - before == 100
        with pytest.raises(WorkerFull, match=r"100 visual tokens .* 1 would .* limit of 100"), admission.admit(1):
            pass
        with admission.admit(0):
            assert admission.queued == 100, "what is cached costs nothing"
        second.done(30)
        assert admission.queued == gauge() - before == 70
        with admission.admit(30):
            assert admission.queued == 100
    assert admission.queued == gauge() - before == 0


def test_what_is_larger_than_the_bound_is_admitted_alone() -> None:
    admission = Admission(100)
    with admission.admit(1), pytest.raises(WorkerFull), admission.admit(101):
        pass
    with admission.admit(101), pytest.raises(WorkerFull), admission.admit(1):
        pass
    assert admission.queued == 0


def test_a_ticket_never_counts_off_more_than_it_has() -> None:
    admission = Admission(100)
    with admission.admit(50), admission.admit(10) as ticket:
        ticket.done(25)
        assert (admission.queued, ticket.left) == (50, 0)
    assert admission.queued == 0


def retry_after(admission: Admission) -> float:
    with pytest.raises(WorkerFull) as refused, admission.admit(1_000_000):
        pass
    return refused.value.retry_after_s


def test_it_says_when_what_is_queued_will_be_done() -> None:
    clock = Clock()
    admission = Admission(1000, clock)
    with admission.admit(1000) as ticket:
        assert retry_after(admission) == 1.0, "nothing is known of the pace yet"
        clock.now += 4.0
        ticket.done(200)  # 50 a second
        assert retry_after(admission) == math.ceil(800 / 50)
    clock.now += 1000.0  # nothing is queued: this is not its pace
    with admission.admit(600):
        assert retry_after(admission) == math.ceil(600 / 50)
    with admission.admit(1_000_000):
        assert retry_after(admission) == 60.0, "nobody is sent away for longer"


def test_an_old_pace_fades() -> None:
    clock = Clock()
    admission = Admission(1, clock)
    for tokens_each in (1000, 10):
        for _ in range(600):
            with admission.admit(tokens_each) as ticket:
                clock.now += 1.0
                ticket.done(tokens_each)
    with admission.admit(400):
        assert 35 <= retry_after(admission) <= 41


@pytest.fixture
def play(tmp_path: Path, redis_server: RedisServer) -> Callable[..., None]:
    def run(scene: Callable[[World], Any], **options: Any) -> None:
        async def main() -> None:
            async with world(tmp_path, redis_server.url, **options) as service:
                await scene(service)

        asyncio.run(main())

    return run


def ask(service: World, name: str, **options: Any) -> Any:
    content = [{"type": "video_url", "video_url": {"url": f"fake://{name}"}}, {"type": "text", "text": "what?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}
    return service.http.post("/v1/chat/completions", json=body)


async def encoding(service: World, tokens: int) -> None:
    """Wait until so many visual tokens are queued."""
    while service.worker.target._admission.queued < tokens:
        await asyncio.sleep(0.01)


def test_new_media_are_refused_over_the_bound_and_what_is_known_is_not(play: Callable[..., None]) -> None:
    """A clip of 8 frames is 32 tokens."""

    async def scene(service: World) -> None:
        known = await service.post_video("fake://known")
        session = (await service.query(known, "what?"))["session_id"]
        long = [asyncio.create_task(ask(service, f"long{number}?delay=0.5")) for number in range(2)]
        await encoding(service, 64)
        for streamed in (False, True):
            refused = await ask(service, "refused", stream=streamed)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "limit of 64" in refused.json()["error"]["message"]
        assert (await service.query(known, "and?", session_id=session))["answer"].startswith("saw 8 frames turn 1")
        assert (await service.query(known, "another?"))["occam"]["cache"] == "memory"
        joined = asyncio.create_task(ask(service, "long0?delay=0.5"))
        assert [response.status_code for response in await asyncio.gather(*long, joined)] == [200] * 3
        assert (await ask(service, "refused")).status_code == 200
        assert service.worker.target._admission.queued == 0

    play(scene, max_queued_tokens=64)


def test_a_clip_above_the_bound_is_answered_where_nothing_else_runs(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        first = asyncio.create_task(ask(service, "large?delay=0.2"))
        await encoding(service, 1)
        assert (await ask(service, "other")).status_code == 503
        assert (await first).status_code == 200
        assert (await ask(service, "other")).status_code == 200

    play(scene, max_queued_tokens=16)


def test_what_is_encoded_leaves_the_queue_chunk_by_chunk(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        asked = asyncio.create_task(ask(service, "chunks?delay=0.2"))
        seen = set()
        while not asked.done():
            seen.add(service.worker.target._admission.queued)
            await asyncio.sleep(0.01)
        assert (await asked).status_code == 200
        assert seen == {0, 8, 16, 24, 32}

    play(scene)


def test_a_clip_that_breaks_off_or_is_given_up_leaves_the_queue(play: Callable[..., None]) -> None:
    async def scene(service: World) -> None:
        assert (await ask(service, "corrupt")).status_code == 415
        assert service.worker.target._admission.queued == 0
        late = await ask(service, "late?delay=5", occam={"deadline_s": 0.3})
        assert late.status_code == 504
        while service.worker.target._admission.queued:
            await asyncio.sleep(0.01)

    play(scene)
