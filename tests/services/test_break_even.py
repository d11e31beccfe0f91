"""The choice between a real Redis and computing, on a line whose speed the test sets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import torch

from occam.kv import codec, layout
from occam.kv.break_even import BreakEven, Fetch
from occam.kv.store import TieredStore, TierEvent
from services.redis_store import RedisStore
from tests.redis_server import RedisServer
from tests.services.slow_line import FAST, SlowLine, slow_line
from tests.states import make_key, make_state

KEY = make_key()
# Far more than a busy machine takes to fetch 2 MB, so that a twentieth of it is time enough for every batch.
REBUILD_S = 5.0
SLOW = 50e3  # bytes a second


class Worker:
    """A tier behind a line, and an engine that says what computing takes without taking it."""

    def __init__(self, line: SlowLine) -> None:
        self.line, self.state = line, make_state(tokens=2000, heads=8, head_dim=8)
        self.break_even = BreakEven()
        self.redis = RedisStore(line.url, stall_s=10.0, total_s=60.0, break_even=self.break_even)
        self.seen: list[TierEvent] = []
        self.tiers = TieredStore([self.redis], self.seen.append)

    async def look_up(self) -> str:
        """What became of one lookup; whoever has no state then computes it and stores it where it is wanted."""
        found = await self.tiers.get(KEY, fits=lambda _: True)
        result = self.seen[-1].result
        if found.state is None:
            self.computed()
            await self.tiers.put(KEY, self.state, found.left_alone)
        else:
            assert torch.equal(found.state.positions, self.state.positions)
        return result

    def computed(self) -> None:
        self.break_even.built(
            encoded=self.state.encoded, tokens=len(self.state), seconds=REBUILD_S, prefill_s=REBUILD_S / 2
        )


def play(redis: RedisServer, test: Callable[[Worker], Awaitable[None]]) -> None:
    async def scene() -> None:
        async with slow_line(redis.socket) as line:
            worker = Worker(line)
            for _ in range(3):
                worker.computed()
            await worker.tiers.put(KEY, worker.state)
            await test(worker)
            await worker.tiers.aclose()

    asyncio.run(scene())


def test_a_fast_line_is_used_a_slow_one_left_and_one_that_recovered_used_again(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 64 << 10)

    def writes() -> int:
        return int(own_redis.client.info("commandstats")["cmdstat_hset"]["calls"])

    async def test(worker: Worker) -> None:
        assert [await worker.look_up() for _ in range(5)] == ["hit"] * 5
        written = writes()
        worker.line.bytes_per_s = SLOW
        results = [await worker.look_up() for _ in range(12)]
        assert results[:4] == ["given_up"] * 4
        assert results.count("declined") >= 6
        assert max(event.seconds for event in worker.seen) < REBUILD_S / 2, "of 40 s that the line would take"
        assert writes() == written, "nor is it written to"
        worker.line.bytes_per_s = FAST
        results = []
        while results[-5:] != ["hit"] * 5:
            results.append(await worker.look_up())
            assert len(results) < 100, "the line is fast again, and nobody noticed"

    play(own_redis, test)


def test_a_fetch_is_told_of_every_byte(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 64 << 10)
    arrived: list[int] = []
    monkeypatch.setattr(Fetch, "arrived", lambda _, nbytes: arrived.append(nbytes))

    async def test(worker: Worker) -> None:
        assert await worker.look_up() == "hit"
        assert len(arrived) > 10
        assert sum(arrived) == codec.describe(worker.state).nbytes

    play(redis_server, test)
