import asyncio
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import torch

from occam.errors import CorruptState, InvalidInput, StoreUnavailable
from occam.kv import codec, layout
from occam.kv.store import TieredStore, TierEvent
from services.redis_store import Breaker, RedisStore
from tests.redis_server import RedisServer
from tests.states import assert_same, finite, make_key, make_state, with_wide

KEY = make_key()
HASH = f"occam:kv:{KEY.digest}"
STALL_S = 0.3


@asynccontextmanager
async def opened(url: str, **settings: object) -> AsyncIterator[RedisStore]:
    times = {"connect_s": STALL_S, "stall_s": STALL_S, "total_s": 10.0}
    store = RedisStore(url, **(times | settings))  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small states in many parts."""
    monkeypatch.setattr(layout, "PART_BYTES", 256)


def parts_of(server: RedisServer) -> list[bytes]:
    return [field for field in server.client.hkeys(HASH) if field != b"manifest"]


async def fails_within(seconds: float, call: Callable[[], Awaitable[object]]) -> None:
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call()
    assert time.monotonic() - started < seconds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 40])
def test_round_trip_is_bitwise(redis_server: RedisServer, small_parts: None, dtype: torch.dtype, tokens: int) -> None:
    async def test() -> None:
        state = make_state(tokens=tokens, views=min(tokens, 2), dtype=dtype)
        async with opened(redis_server.url) as store:
            assert await store.get(KEY) is None
            assert await store.put(KEY, state)
            restored = await store.get(KEY)
            assert restored is not None
            assert_same(restored, state)
            assert await store.get(make_key("another")) is None

    asyncio.run(test())


def test_whole_parts_of_a_larger_state_arrive(redis_server: RedisServer) -> None:
    async def test() -> None:
        state = make_state(tokens=1500, heads=8, head_dim=64, width=512, layers=2, planes=0)
        async with opened(redis_server.url, stall_s=10.0) as store:
            await store.put(KEY, state)
            restored = await store.get(KEY)
            assert restored is not None
            assert torch.equal(restored.hidden.view(torch.int32), state.hidden.view(torch.int32))
            assert torch.equal(restored.values[1].view(torch.int32), state.values[1].view(torch.int32))
        assert len(parts_of(redis_server)) == 4

    asyncio.run(test())


def test_an_int8_wire_holds_fewer_bytes_and_what_comes_back_says_that_it_is_approximate(
    redis_server: RedisServer,
) -> None:
    async def test() -> None:
        state, lossy = finite(make_state(tokens=40, head_dim=32, width=64)), replace(KEY, wire="int8")
        held: dict[str, int] = {}
        for key in (KEY, lossy):
            redis_server.client.flushall()
            async with opened(redis_server.url) as store:
                assert await store.put(key, state)
                other = KEY if key is lossy else lossy
                assert await store.get(other) is None, "one wire's entry is not the other's"
                restored = await store.get(key)
            assert restored is not None
            assert_same(restored, codec.decode(*codec.encode(state, key.wire)))
            assert restored.approximate == (key is lossy)
            name = f"occam:kv:{key.digest}"
            fields = [field for field in redis_server.client.hkeys(name) if field != b"manifest"]
            held[key.wire] = sum(redis_server.client.hstrlen(name, field) for field in fields)
            assert held[key.wire] == codec.describe(state, key.wire).nbytes
        assert held["int8"] < 0.4 * held["exact"]

    asyncio.run(test())


def test_the_limit_on_an_entry_is_one_of_bytes_on_the_wire(redis_server: RedisServer) -> None:
    async def test() -> None:
        state, lossy = finite(make_state(tokens=100)), replace(KEY, wire="int8")
        infinite = with_wide(state, lambda tensor: torch.full_like(tensor, torch.inf))
        async with opened(redis_server.url, max_entry_bytes=codec.describe(state, "int8").nbytes) as store:
            assert not await store.put(KEY, state)
            assert not await store.put(lossy, infinite), "what has no scale goes exactly"
            assert await store.put(lossy, state)

    asyncio.run(test())


def test_another_process_reads_the_same_bits(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis_server.url) as store:
            await store.put(KEY, make_state(7))

    asyncio.run(test())
    reader = """
import asyncio, sys
from services.redis_store import RedisStore
from tests.states import assert_same, make_key, make_state
async def read():
    store = RedisStore(sys.argv[1])
    assert_same(await store.get(make_key()), make_state(7))
    await store.aclose()
asyncio.run(read())
"""
    subprocess.run([sys.executable, "-c", reader, redis_server.url], check=True, timeout=120)


def test_every_key_expires(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis_server.url, ttl_s=100) as store:
            await store.put(KEY, make_state())
        assert redis_server.client.keys() == [HASH.encode()]
        assert 90 < redis_server.client.ttl(HASH) <= 100

    asyncio.run(test())


def test_an_entry_that_lost_a_part_is_a_miss(redis_server: RedisServer, small_parts: None) -> None:
    async def test() -> None:
        async with opened(redis_server.url) as store:
            for gone in (0, -1):
                await store.put(KEY, make_state(tokens=40))
                redis_server.client.hdel(HASH, parts_of(redis_server)[gone])
                assert await store.get(KEY) is None
            await store.put(KEY, make_state(tokens=40))
            redis_server.client.hdel(HASH, "manifest")
            assert await store.get(KEY) is None

    asyncio.run(test())


def test_a_flipped_byte_is_found_counted_and_healed(redis_server: RedisServer, small_parts: None) -> None:
    async def test() -> None:
        state = make_state(tokens=40)
        async with opened(redis_server.url) as store:
            seen: list[TierEvent] = []
            tiers = TieredStore([store], seen.append)
            await tiers.put(KEY, state)
            fields = [*parts_of(redis_server), b"manifest"]
            assert len(fields) > 10
            for field in fields:
                await tiers.put(KEY, state)
                value = bytearray(redis_server.client.hget(HASH, field))  # type: ignore[arg-type]
                value[len(value) // 2] ^= 1
                redis_server.client.hset(HASH, field, bytes(value))
                with pytest.raises(CorruptState):
                    await store.get(KEY)
                assert (await tiers.get(KEY, fits=lambda found: found.shape == state.shape)).state is None
                assert (seen[-1].tier, seen[-1].result, seen[-1].reason) == ("redis", "failed", "corrupt")
            await tiers.put(KEY, state)
            assert (await tiers.get(KEY, fits=lambda found: found.shape == state.shape)).tier == "redis"

    asyncio.run(test())


def test_an_entry_over_the_limit_is_neither_written_nor_read(redis_server: RedisServer) -> None:
    async def test() -> None:
        state = make_state(tokens=100)
        size = codec.describe(state).nbytes
        async with opened(redis_server.url, max_entry_bytes=size - 1) as small:
            assert not await small.put(KEY, state)
            assert redis_server.client.keys() == []
            async with opened(redis_server.url, max_entry_bytes=size) as large:
                assert await large.put(KEY, state)
                assert await large.get(KEY) is not None
            assert await small.get(KEY) is None

    asyncio.run(test())


def test_delete_leaves_nothing(redis_server: RedisServer, small_parts: None) -> None:
    async def test() -> None:
        async with opened(redis_server.url) as store:
            await store.put(KEY, make_state(tokens=40))
            await store.delete(KEY)
            await store.delete(KEY)
        assert redis_server.client.keys() == []

    asyncio.run(test())


def test_writers_of_one_key_never_mix(redis_server: RedisServer, small_parts: None) -> None:
    """Two contents under one key cannot happen by the key's definition; if they do, a reader gets one of them whole."""

    async def test() -> None:
        states = [make_state(seed, tokens=60) for seed in range(3)]
        hiddens = [state.hidden.view(torch.int32).tolist() for state in states]
        found = 0

        async def write(store: RedisStore, index: int) -> None:
            for _ in range(5):
                await store.put(KEY, states[index])

        async def read(store: RedisStore) -> None:
            nonlocal found
            while not writers.done():
                state = await store.get(KEY)
                if state is not None:
                    found += 1
                    assert state.hidden.view(torch.int32).tolist() in hiddens

        async with opened(redis_server.url) as one, opened(redis_server.url) as other:
            writers = asyncio.gather(*(write(store, index) for index, store in enumerate((one, other, one))))
            await asyncio.gather(writers, read(one), read(other))
        assert found > 5

    asyncio.run(test())


def test_a_writer_that_dies_half_way_leaves_nothing_to_see(redis_server: RedisServer, small_parts: None) -> None:
    async def test() -> None:
        async with opened(redis_server.url) as store:
            states = 0
            for delay in range(6):
                redis_server.client.delete(HASH)
                task = asyncio.create_task(store.put(KEY, make_state(tokens=400)))
                while redis_server.client.hlen(HASH) <= delay * 8 and not task.done():
                    await asyncio.sleep(0)
                while not task.done():  # Python 3.11's wait_for may lose a cancellation
                    task.cancel()
                    await asyncio.sleep(0)
                partial = redis_server.client.hlen(HASH) > 0 and not redis_server.client.hexists(HASH, "manifest")
                states += partial
                if partial:
                    assert await store.get(KEY) is None
                    assert redis_server.client.ttl(HASH) > 0
            assert states > 0

    asyncio.run(test())


def test_a_killed_server_fails_fast_and_a_new_one_is_used(own_redis: RedisServer) -> None:
    async def test() -> None:
        now = 0.0
        state = make_state()
        async with opened(own_redis.url, breaker=Breaker(5.0, lambda: now)) as store:
            await store.put(KEY, state)
            own_redis.signal(signal.SIGKILL)
            own_redis.kill()
            await fails_within(STALL_S + 0.5, lambda: store.get(KEY))
            own_redis.start()
            await fails_within(0.05, lambda: store.get(KEY))
            await fails_within(0.05, lambda: store.put(KEY, state))
            now = 5.1
            assert await store.get(KEY) is None
            assert await store.put(KEY, state)
            assert await store.get(KEY) is not None

    asyncio.run(test())


def test_a_frozen_server_costs_its_budget_once_and_no_reply_is_mixed_up(own_redis: RedisServer) -> None:
    async def test() -> None:
        now = 0.0
        other = make_key("other")
        async with opened(own_redis.url, breaker=Breaker(5.0, lambda: now)) as store:
            await store.put(KEY, make_state(1))
            await store.put(other, make_state(2))
            own_redis.signal(signal.SIGSTOP)
            await fails_within(STALL_S + 0.5, lambda: store.get(KEY))
            started = time.monotonic()
            for _ in range(20):
                await fails_within(0.1, lambda: store.get(KEY))
            assert time.monotonic() - started < 0.2
            now = 5.1
            await fails_within(2 * STALL_S + 0.5, lambda: store.put(KEY, make_state(1)))
            own_redis.signal(signal.SIGCONT)
            now = 10.3
            restored = await store.get(other)
            assert restored is not None
            assert_same(restored, make_state(2))

    asyncio.run(test())


def test_a_cancelled_get_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    async def test() -> None:
        other = make_key("other")
        async with opened(redis_server.url) as store:
            await store.put(KEY, make_state(1))
            await store.put(other, make_state(2))
            for steps in range(12):
                task = asyncio.create_task(store.get(KEY))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                restored = await store.get(other)
                assert restored is not None
                assert_same(restored, make_state(2))

    asyncio.run(test())


def test_a_server_that_refuses_is_away_and_the_next_call_asks_again(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with opened(redis_server.url) as store:
            redis_server.client.set(HASH, "not a hash")
            for call in (lambda: store.get(KEY), lambda: store.put(KEY, make_state())):
                with pytest.raises(StoreUnavailable, match="refused"):
                    await call()
            await store.delete(KEY)
            assert await store.put(KEY, make_state())

    asyncio.run(test())


def test_the_breaker_lets_one_caller_try() -> None:
    now = 0.0
    breaker = Breaker(5.0, lambda: now)
    breaker.enter()
    breaker.failed()
    now = 4.9
    with pytest.raises(StoreUnavailable):
        breaker.enter()
    now = 5.0
    breaker.enter()
    with pytest.raises(StoreUnavailable):
        breaker.enter()
    breaker.succeeded()
    breaker.enter()
    breaker.enter()


def test_an_address_is_checked_and_never_told() -> None:
    with pytest.raises(InvalidInput, match="OCCAM_KV_URL"):
        RedisStore("http://secret-host:6379")

    async def test() -> None:
        async with opened("redis://127.0.0.1:9/0") as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.get(KEY)
            assert "127.0.0.1" not in str(caught.value)

    asyncio.run(test())


def test_what_has_come_is_copied_while_the_rest_comes(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a state lies in memory once and a few parts of it again, and its checksums take no time of their own."""
    monkeypatch.setattr(layout, "PART_BYTES", 1 << 20)
    state = make_state(tokens=200_000)

    async def test() -> None:
        async with opened(redis_server.url) as store:
            assert await store.put(KEY, state)
            tracemalloc.start()
            restored = await store.get(KEY)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert restored is not None
            assert_same(restored, state)
            assert most < codec.describe(state).nbytes / 4

    asyncio.run(test())
