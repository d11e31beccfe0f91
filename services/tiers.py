"""The cache of one worker: its memory, its node's files, then the shared tier; each operation is in the work ledger."""

from occam.kv.break_even import BreakEven
from occam.kv.store import KVStore, MemoryStore, TieredStore, TierEvent
from services import metrics
from services.kv import MEMORY_URL
from services.node_store import NodeStore
from services.redis_store import RedisStore
from services.settings import Settings


def open_tiers(settings: Settings) -> tuple[MemoryStore, TieredStore, BreakEven]:
    """The memory tier by itself, all tiers as one, and what must be told of every state that is computed."""
    memory, break_even = MemoryStore(settings.kv_memory_bytes), BreakEven()
    tiers: list[KVStore] = [memory]
    if settings.kv_node_bytes:
        node = NodeStore(
            settings.node_directory,
            max_bytes=settings.kv_node_bytes,
            ttl_s=settings.kv_ttl_s,
            break_even=BreakEven(beside=break_even),
        )
        tiers.append(node)
    if settings.kv_url != MEMORY_URL:
        shared = RedisStore(
            settings.kv_url,
            ttl_s=int(settings.kv_ttl_s),
            max_entry_bytes=settings.kv_entry_bytes,
            break_even=break_even,
        )
        tiers.append(shared)
    return memory, TieredStore(tiers, observe=_observe), break_even


def _observe(event: TierEvent) -> None:
    if event.result == "failed":
        metrics.KV_ERRORS.labels(event.tier, event.reason).inc()
    if event.op == "get":
        metrics.KV_REQUESTS.labels(event.tier, event.result).inc()
    if event.nbytes:
        metrics.KV_BYTES.labels(event.tier, "read" if event.op == "get" else "written").inc(event.nbytes)
    metrics.KV_SECONDS.labels(event.tier, event.op).observe(event.seconds)
