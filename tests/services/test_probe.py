"""What a fresh worker learns of its tiers, from a real Redis and real files, and what it leaves there: nothing."""

import asyncio
import signal
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from occam.kv.break_even import BreakEven
from services.probe import TTL_S, probe
from services.redis_store import RedisStore
from services.settings import Settings
from services.tiers import open_tiers
from tests.redis_server import RedisServer
from tests.services.slow_line import slow_line

MB = 1 << 20


def settings(redis: RedisServer, folder: Path) -> Settings:
    return Settings(kv_url=redis.url, kv_node_bytes=64 * MB, directory=str(folder)).of_node()


def choices(folder: Path, redis: RedisServer) -> dict[str, BreakEven]:
    """Of every tier of a fresh worker."""
    _, tiers, _ = open_tiers(settings(redis, folder))
    stores = (*tiers._tiers[1:], tiers._embeddings)
    return {store.name: store._break_even for store in stores}  # type: ignore[attr-defined,union-attr]


def test_a_fresh_worker_knows_every_tier_and_leaves_nothing_behind(own_redis: RedisServer, tmp_path: Path) -> None:
    known = choices(tmp_path, own_redis)
    assert set(known) == {"node", "redis", "embeddings"}
    for choice in known.values():
        fetch_s = choice._fetch_s(MB)
        assert fetch_s is not None
        assert 1e-6 < fetch_s < 1.0
        assert choice._spent_s == 0, "it was no lookup's"
    assert own_redis.client.info("stats")["total_net_input_bytes"] > 2 * MB
    assert own_redis.client.dbsize() == 0
    assert [path for path in (tmp_path / "kv").rglob("*") if path.stat().st_size > 1000] == []


@pytest.mark.parametrize("dead", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "frozen"])
def test_a_redis_that_does_not_answer_costs_the_knowledge_alone(
    own_redis: RedisServer, tmp_path: Path, dead: signal.Signals
) -> None:
    own_redis.signal(dead)
    started_s = time.monotonic()
    known = choices(tmp_path, own_redis)
    assert time.monotonic() - started_s < 3.0
    assert known["redis"]._fetch_s(MB) is known["embeddings"]._fetch_s(MB) is None
    assert known["node"]._fetch_s(MB) is not None


def test_a_line_too_slow_for_a_probe_is_left_after_a_second_and_forgotten(own_redis: RedisServer) -> None:
    choice = BreakEven()

    async def scene() -> None:
        async with slow_line(own_redis.socket) as line:
            line.bytes_per_s = 1e6
            store = partial(RedisStore, line.url, ttl_s=int(TTL_S), break_even=choice)
            started_s = time.monotonic()
            await asyncio.to_thread(probe, [store])
            assert time.monotonic() - started_s < 3.0

    asyncio.run(scene())
    assert choice._fetch_s(MB) is None
    assert own_redis.client.dbsize() == 0


def test_what_a_worker_that_is_killed_leaves_behind_is_gone_soon(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisStore, "delete", mock.AsyncMock())
    choices(tmp_path, own_redis)
    left = [*own_redis.client.scan_iter()]
    assert len(left) == 2
    assert all(0 < own_redis.client.ttl(key) <= TTL_S for key in left)
