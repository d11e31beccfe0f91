"""The shared cache tier: one Redis hash per state, and per medium's embeddings; its parts and its manifest as fields.

A hash lives, expires and is evicted as one, so no entry loses single parts to eviction and one UNLINK forgets all of
it. The manifest goes in last, with the last parts and in their transaction: a reader finds a whole entry or none.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from occam.errors import FetchGivenUp, InvalidInput, StoreUnavailable
from occam.kv.break_even import BreakEven, Fetch
from occam.kv.codec import STATES, Manifest
from occam.kv.embeddings import EMBEDDINGS, MediumManifest
from occam.kv.key import KVKey
from occam.kv.layout import Codec, Part, Reader, Sealed
from occam.tensors import MediumTokens, PrefixState

M = TypeVar("M", bound=Sealed)
T = TypeVar("T")

_PREFIX = "occam:kv:"
_MANIFEST = "manifest"
# Parts per round trip: enough to keep the line busy, few enough that a batch is through before `stall_s` on a slow one.
_BATCH = 2


class Breaker:
    """Fails fast for `open_s` seconds after a failure; then one caller may try while the others go on failing."""

    def __init__(self, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._open_s = open_s
        self._clock = clock
        self._open_until: float | None = None

    def enter(self) -> None:
        """Begin a call that ends in `failed` or `succeeded`; raises StoreUnavailable while open."""
        if self._open_until is None:
            return
        if self._clock() < self._open_until:
            raise StoreUnavailable("The shared cache failed a moment ago and is left alone for now.")
        self.failed()

    def failed(self) -> None:
        """Open for `open_s` seconds from now."""
        self._open_until = self._clock() + self._open_s

    def succeeded(self) -> None:
        """Close."""
        self._open_until = None


class RedisEntries(Generic[M, T]):
    """A `Store` on a Redis that may be away, slow, full or shared at any time; for one event loop.

    ttl_s: seconds an entry lives after it was last written
    max_entry_bytes: larger entries are neither written nor read: one near Redis' maxmemory would evict all others
    connect_s, stall_s: seconds without a connection, and without an answer to one command, until the tier is away
    total_s: seconds one operation may take altogether; breaker: how long the tier is then left alone
    break_even: decides what is worth fetching; one that knows nothing of computing lets everything be fetched
    """

    name: str
    _codec: Codec[M, T]

    def __init__(
        self,
        url: str,
        ttl_s: int = 3600,
        max_entry_bytes: int = 256 << 20,
        connect_s: float = 0.5,
        stall_s: float = 1.0,
        total_s: float = 5.0,
        breaker: Breaker | None = None,
        break_even: BreakEven | None = None,
    ) -> None:
        self._ttl_s = ttl_s
        self._max_entry_bytes = max_entry_bytes
        self._total_s = total_s
        self._breaker = breaker or Breaker(open_s=5.0)
        self._break_even = break_even or BreakEven()
        try:
            self._redis = Redis.from_url(
                url,
                socket_connect_timeout=connect_s,
                socket_timeout=stall_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
        except ValueError as error:
            raise InvalidInput("OCCAM_KV_URL must be a redis://, rediss:// or unix:// URL.", "OCCAM_KV_URL") from error

    async def get(self, key: KVKey) -> T | None:
        """The value of `key` on the CPU, every bit checked, or None where any of it is missing.

        Raises CorruptState, and FetchDeclined where doing without it is quicker.
        """
        with self._break_even.asking():
            async with self._answering():
                raw = cast(bytes | None, await self._redis.hget(_name(key), _MANIFEST))
        if raw is None:
            self._break_even.missed()
            return None
        manifest = await asyncio.to_thread(self._codec.read, raw)
        if manifest.nbytes > self._max_entry_bytes:
            return None
        with self._break_even.fetching(manifest.offer) as fetch:
            async with self._answering():
                reader = await self._fetch(key, manifest, fetch)
            if reader is None:
                return None
            value = await asyncio.to_thread(self._codec.assembled, manifest, reader.tensors())
            fetch.complete()
            return value

    async def put(self, key: KVKey, value: T, /) -> bool:
        """Keep `value`, encoded for the key's wire; False where it then has more than `max_entry_bytes`."""
        planned = await asyncio.to_thread(self._codec.describe, value, key.wire)
        if planned.nbytes > self._max_entry_bytes:
            return False
        async with self._answering():
            manifest, parts = await asyncio.to_thread(self._codec.encode, value, key.wire)
            fields: list[tuple[str, Part]] = [*zip(manifest.parts, parts, strict=True)]
            fields.append((_MANIFEST, manifest.to_bytes()))
            for batch in _batches(fields):
                pipeline = self._redis.pipeline(transaction=True)
                for field, data in batch:
                    pipeline.hset(_name(key), field, data)
                pipeline.expire(_name(key), self._ttl_s)
                await pipeline.execute()
        return True

    async def has(self, key: KVKey) -> bool:
        """Whether there is a manifest of `key`."""
        async with self._answering():
            return bool(await self._redis.hexists(_name(key), _MANIFEST))

    async def delete(self, key: KVKey) -> None:
        """Forget the manifest and every part of `key`."""
        async with self._answering():
            await self._redis.unlink(_name(key))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _fetch(self, key: KVKey, manifest: M, fetch: Fetch) -> Reader | None:
        """All parts, each copied and checked while the next ones come; None where one is missing.

        Raises FetchGivenUp, and CorruptState.
        """
        reader, first = Reader(manifest), 0
        here: list[bytes] = []
        for batch in [*_batches([*zip(manifest.parts, manifest.part_sizes, strict=True)]), []]:
            copying = asyncio.create_task(asyncio.to_thread(_copy, here, reader, first))
            try:
                coming = await self._fetch_parts(key, batch, fetch)
            finally:
                await copying
            first += len(here)
            here = [part for part in coming if part is not None]
            if len(here) < len(batch):
                return None
        return reader

    async def _fetch_parts(self, key: KVKey, batch: Sequence[tuple[str, int]], fetch: Fetch) -> list[bytes | None]:
        """Parts by their names and sizes; raises FetchGivenUp."""
        if not batch:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for field, _ in batch:
            pipeline.hget(_name(key), field)
        nbytes = sum(size for _, size in batch)
        patience_s = fetch.patience_s(nbytes)
        try:
            async with asyncio.timeout(patience_s) as limit:
                parts = cast(list[bytes | None], await pipeline.execute())
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise FetchGivenUp(f"{nbytes} bytes have not come within {patience_s:.3f} s.") from error
        fetch.arrived(nbytes)
        return parts

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        """Failures inside become StoreUnavailable: after `total_s` at the latest, at once while the breaker is open."""
        self._breaker.enter()
        try:
            async with asyncio.timeout(self._total_s):
                yield
        except ResponseError as error:  # it is there, and refused: full, read-only, not permitted
            self._breaker.succeeded()
            raise StoreUnavailable("The shared cache refused the operation.") from error
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._breaker.failed()
            raise StoreUnavailable("The shared cache did not answer in time.") from error
        self._breaker.succeeded()


class RedisStore(RedisEntries[Manifest, PrefixState]):
    """The states."""

    name = "redis"
    _codec = STATES


class RedisEmbeddings(RedisEntries[MediumManifest, MediumTokens]):
    """The embeddings of media."""

    name = "embeddings"
    _codec = EMBEDDINGS


def _name(key: KVKey) -> str:
    return _PREFIX + key.digest


def _copy(parts: Sequence[bytes], reader: Reader, first: int) -> None:
    for index, part in enumerate(parts, first):
        reader.take(index, part)


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
