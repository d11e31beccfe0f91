"""Which tests share a process; and for whoever asks a real Redis, one shared or one to kill, and int8 on any CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer


def pytest_itemcollected(item: pytest.Item) -> None:
    """A file's tests share one, and so do all that start Ray."""
    group = "ray" if item.get_closest_marker("ray") else item.path.relative_to(item.config.rootpath).as_posix()
    item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty server; not to be killed."""
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to do anything to."""
    server = RedisServer(tmp_path, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def int8_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models load in int8 where the CPU is refused too: slowly, or to other bits, but to the same each time."""
    monkeypatch.setattr("occam.models.checkpoint.check_cpu", lambda: None)
