"""The cache of one worker: its memory, its node's files, then the shared tier; each operation is in the work ledger."""

from typing import Any, TypeVar

from occam.kv.break_even import BreakEven
from occam.kv.store import KVStore, MemoryStore, TieredStore, TierEvent
from services import metrics
from services.kv import MEMORY_URL
from services.node_store import NodeStore
from services.redis_store import Breaker, RedisEmbeddings, RedisEntries, RedisStore
from services.settings import Settings

Entries = TypeVar("Entries", bound=RedisEntries[Any, Any])


def open_tiers(settings: Settings) -> tuple[MemoryStore, TieredStore, BreakEven]:
    """The memory tier by itself, all tiers as one, and what must be told of every state that is computed."""
    of_embeddings, breaker = BreakEven(), Breaker(open_s=5.0)
    memory, break_even = MemoryStore(settings.kv_memory_bytes), BreakEven(embeddings=of_embeddings)

    def shared(kind: type[Entries], choice: BreakEven) -> Entries:
        return kind(
            settings.kv_url,
            ttl_s=int(settings.kv_ttl_s),
            max_entry_bytes=settings.kv_entry_bytes,
            breaker=breaker,
            break_even=choice,
        )

    tiers: list[KVStore] = [memory]
    if settings.kv_node_bytes:
        node = NodeStore(
            settings.node_directory,
            max_bytes=settings.kv_node_bytes,
            ttl_s=settings.kv_ttl_s,
            break_even=BreakEven(beside=break_even),
        )
        tiers.append(node)
    embeddings = None
    if settings.kv_url != MEMORY_URL:
        tiers.append(shared(RedisStore, break_even))
        embeddings = shared(RedisEmbeddings, of_embeddings)
    return memory, TieredStore(tiers, observe=_observe, embeddings=embeddings), break_even


def _observe(event: TierEvent) -> None:
    if event.result == "failed":
        metrics.KV_ERRORS.labels(event.tier, event.reason).inc()
    if event.op == "get":
        metrics.KV_REQUESTS.labels(event.tier, event.result).inc()
    if event.nbytes:
        metrics.KV_BYTES.labels(event.tier, "read" if event.op == "get" else "written").inc(event.nbytes)
    metrics.KV_SECONDS.labels(event.tier, event.op).observe(event.seconds)
