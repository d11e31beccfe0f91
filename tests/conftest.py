"""Which tests share a process; and for whoever asks a real Redis, one shared or one to kill, and int8 on any CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.redis_server import RedisServer

RAY = ("test_service", "test_serve", "test_placement", "test_serve_config")
"""Files that start Ray: two at a time would take each other's cores."""


class Scheduling(LoadFileScheduling):
    """The tests of a file share a process, and so do all files that start Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "ray" if Path(file).stem in RAY else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """What shares the tests out where there are several processes (`make test`)."""
    return Scheduling(config, log)


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
