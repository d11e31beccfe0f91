"""From `OCCAM_KV_URL` to the tiers of the cache: one process resolves the setting, every process opens the result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from occam.errors import InvalidInput, StoreUnavailable
from occam.kv.store import KVStore, MemoryStore, TieredStore, TierEvent
from services.private_redis import PrivateRedis
from services.redis_store import RedisStore

_MEMORY = "memory://"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


@dataclass(frozen=True, kw_only=True)
class KVBackend:
    """The cache that is live, for as long as whoever resolved it keeps it open.

    url: what `open_store` takes, in this process or another; kind and detail: for `/readyz` and the log
    """

    url: str
    kind: Literal["memory", "private_redis", "redis"]
    detail: str
    server: PrivateRedis | None = None

    def close(self) -> None:
        """Stop the private server, where there is one."""
        if self.server is not None:
            self.server.close()


def resolve(url: str, max_bytes: int = 1 << 30) -> KVBackend:
    """The cache that the setting asks for; `auto` starts a private server of `max_bytes`, or stays in memory."""
    if url == _MEMORY:
        return KVBackend(url=_MEMORY, kind="memory", detail="each worker's memory, as set")
    if url.startswith(_REDIS_SCHEMES):
        return KVBackend(url=url, kind="redis", detail="the Redis that is set")
    if url != "auto":
        raise InvalidInput(
            "OCCAM_KV_URL must be auto, memory:// or a redis://, rediss:// or unix:// URL.", "OCCAM_KV_URL"
        )
    try:
        server = PrivateRedis.start(max_bytes)
    except StoreUnavailable as error:
        return KVBackend(url=_MEMORY, kind="memory", detail=f"each worker's memory: {error.message}")
    return KVBackend(url=server.url, kind="private_redis", detail="a private Redis on this machine", server=server)


def open_store(
    url: str, observe: Callable[[TierEvent], None], memory_bytes: int = 256 << 20, ttl_s: int = 3600
) -> TieredStore:
    """The tiers behind a resolved `url`: this process's memory, and behind it Redis unless the url is `memory://`."""
    tiers: list[KVStore] = [MemoryStore(memory_bytes)]
    if url != _MEMORY:
        tiers.append(RedisStore(url, ttl_s=ttl_s))
    return TieredStore(tiers, observe)
