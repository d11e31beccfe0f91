"""From `OCCAM_KV_URL` to the cache that is live: one process resolves the setting, workers connect to the result."""

from dataclasses import dataclass
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from occam.errors import InvalidInput, StoreUnavailable
from services.private_redis import PrivateRedis
from services.settings import Settings

MEMORY_URL = "memory://"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True, kw_only=True)
class KVBackend:
    """The cache that is live, for as long as whoever resolved it keeps it open.

    url: `MEMORY_URL`, or what a `RedisStore` of any process of this machine takes
    kind and detail: for `/readyz` and the log
    """

    url: str
    kind: Literal["memory", "private_redis", "redis"]
    detail: str
    server: PrivateRedis | None = None

    def close(self) -> None:
        """Stop the private server, where there is one."""
        if self.server is not None:
            self.server.close()


class Pulse:
    """Says of the cache that is live whether it answers: it may have died since it was resolved."""

    def __init__(self, url: str, detail: str) -> None:
        self._url = url
        self._detail = detail

    async def detail(self) -> str:
        """The cache in words; one that does not answer costs time only."""
        if self._url != MEMORY_URL:
            try:
                async with Redis.from_url(self._url, socket_timeout=1, socket_connect_timeout=1) as redis:
                    await redis.ping()
            except (RedisError, OSError):
                return f"{self._detail}, which does not answer: each worker's memory"
        return self._detail


def in_words(shared: KVBackend, settings: Settings) -> str:
    """Where states are kept beside each worker's memory, for `/readyz` and the log."""
    return f"files of each node, and {shared.detail}" if settings.kv_node_bytes else shared.detail


def resolve(url: str, max_bytes: int = 1 << 30) -> KVBackend:
    """The cache that the setting asks for; `auto` starts a private server of `max_bytes`, or stays in memory."""
    if url == MEMORY_URL:
        return KVBackend(url=MEMORY_URL, kind="memory", detail="each worker's memory, as set")
    if url.startswith(_REDIS_SCHEMES):
        return KVBackend(url=url, kind="redis", detail="the Redis that is set")
    if url != "auto":
        raise InvalidInput(
            "OCCAM_KV_URL must be auto, memory:// or a redis://, rediss:// or unix:// URL.", "OCCAM_KV_URL"
        )
    try:
        server = PrivateRedis.start(max_bytes)
    except StoreUnavailable as error:
        return KVBackend(url=MEMORY_URL, kind="memory", detail=f"each worker's memory: {error.message}")
    return KVBackend(url=server.url, kind="private_redis", detail="a private Redis on this machine", server=server)
