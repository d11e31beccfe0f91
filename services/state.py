"""What must not be lost: videos and sessions, as JSON in a Redis of their own that evicts nothing."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from math import ceil
from typing import Any, TypeVar, cast

from anyio import CancelScope
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import LockError, OutOfMemoryError, RedisError, ResponseError

from occam.errors import StoreUnavailable
from occam.kv.key import KVKey
from services.errors import NotFound, SessionBusy
from services.kept_evidence import KEPT_TURNS
from services.records import Session, VideoRecord
from services.reference_sets import NOTE, RELEASE, Last, Sets

Owned = TypeVar("Owned", Session, VideoRecord)

TIMEOUT_S = 2.0
_SCANNED = 500


_VIDEO = TypeAdapter(VideoRecord)
_SESSION = TypeAdapter(Session)
_KEY = TypeAdapter(KVKey)


# In one step with the look at the session: none of a forgotten one stays.
_SAVE_EVIDENCE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
    redis.call('HDEL', KEYS[2], ARGV[2])
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
"""


def new_id(kind: str) -> str:
    """An identifier that cannot be guessed: whoever knows it may use it."""
    return f"{kind}-{secrets.token_urlsafe(18)}"


class State:
    """Videos and sessions by id. An outage is StoreUnavailable."""

    def __init__(self, url: str, ttl_s: float, first_ttl_s: float, turn_s: float, salt: Callable[[str], str]) -> None:
        """What is not used is kept for ttl_s seconds, a session that nobody has followed up on for first_ttl_s.

        turn_s: after which a turn is taken to have died; salt: what keeps a tenant's cached states apart
        """
        # One retry: a pooled connection may be older than the server behind it.
        retry = Retry(NoBackoff(), 1)
        self._redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=retry)
        self._ttl_s = int(ttl_s)
        self._first_ttl_s = int(min(first_ttl_s, ttl_s))
        self._turn_s = turn_s
        self._salt = salt

    async def check(self) -> None:
        """Raise StoreUnavailable unless the server takes what is written: one that is full still answers."""
        with _translated():
            await self._redis.set("check", b"", ex=self._first_ttl_s)

    @contextmanager
    def talking(self) -> Iterator[Redis]:
        """The server, for what else must not be lost; its outages are StoreUnavailable."""
        with _translated():
            yield self._redis

    async def save_video(self, record: VideoRecord) -> None:
        """Keep a video's record, and that it refers to its cached states and its local copies."""
        sets = self._sets(record.tenant, record.video.digest)
        with _translated():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.set(f"video:{record.id}", _VIDEO.dump_json(record), ex=self._ttl_s)
            for name in (sets.states, sets.copies):
                pipeline.sadd(name, record.id)
                pipeline.expire(name, self._ttl_s)
            await pipeline.execute()

    async def video(self, video_id: str, tenant: str) -> VideoRecord:
        """The record of a video, which now lives on with all it refers to; NotFound if this tenant has none."""
        record = await self._load(f"video:{video_id}", _VIDEO, tenant, "video")
        sets = self._sets(tenant, record.video.digest)
        with _translated():
            pipeline = self._redis.pipeline(transaction=False)
            for name in (sets.states, sets.keys, sets.copies):
                pipeline.expire(name, self._ttl_s)
            await pipeline.execute()
        return record

    async def update_video(self, record: VideoRecord) -> bool:
        """Keep a video's record if the video has not been forgotten; whether that was so."""
        with _translated():
            return bool(await self._redis.set(f"video:{record.id}", _VIDEO.dump_json(record), ex=self._ttl_s, xx=True))

    async def last(self, video_id: str, tenant: str, digest: str) -> Last:
        """What would go with a video that has these bytes; to be asked while nobody else is at them."""
        return await self._released(video_id, tenant, digest, remove=False)

    async def release(self, record: VideoRecord) -> Last:
        """Forget a video, and say what must go with it."""
        return await self._released(record.id, record.tenant, record.video.digest, remove=True)

    async def uploads(self) -> set[str]:
        """Digests of the uploaded videos that have a record; one that cannot be read is nobody's (`_owned`)."""
        digests: set[str] = set()
        cursor = None
        with _translated():
            while cursor != 0:
                cursor, names = await self._redis.scan(cursor or 0, "video:*", _SCANNED)
                for raw in await self._redis.mget(names) if names else ():
                    record = _read(raw, _VIDEO)  # none where it has expired meanwhile
                    if record is not None and record.video.is_upload:
                        digests.add(record.video.digest)
        return digests

    async def note_key(self, video_id: str, tenant: str, digest: str, key: KVKey) -> bool:
        """Remember that a state was cached for a video; False where no video refers to such states any more."""
        sets = self._sets(tenant, digest)
        return bool(await self.run(NOTE, (sets.states, sets.keys), video_id, _KEY.dump_json(key), self._ttl_s))

    @asynccontextmanager
    async def alone_with(self, digest: str) -> AsyncGenerator[bool]:
        """Wait until nobody else gives or takes references to the bytes; whether copies of them went a moment ago."""
        sets = self._sets("", digest)
        async with self._held(self._redis.lock(sets.lock, timeout=self._turn_s, sleep=0.02)):
            with _translated():
                dropped = bool(await self._redis.exists(sets.dropped))
            yield dropped

    async def run(self, script: str, keys: Sequence[str], *values: str | bytes | float) -> Any:
        """Run a Lua script, which the store does as one step."""
        with _translated():
            return await self._redis.eval(script, len(keys), *keys, *values)

    async def save_session(self, session: Session, followed_up: bool) -> None:
        """Keep a session; most are never followed up on, and are not kept for long. A forgotten one does not return."""
        ttl_s = self._ttl_s if followed_up else self._first_ttl_s
        with _translated():
            await self._redis.set(f"session:{session.id}", _SESSION.dump_json(session), ex=ttl_s, xx=followed_up)

    async def session(self, session_id: str, tenant: str) -> tuple[Session, float]:
        """A session and the Unix time at which it ends; NotFound if this tenant has none, or its video is gone."""
        with _translated():
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.get(f"session:{session_id}")
            pipeline.pttl(f"session:{session_id}")
            raw, left_ms = await pipeline.execute()
            session = _owned(raw, _SESSION, tenant, "session")
            if session.video_id is not None and not await self._redis.exists(f"video:{session.video_id}"):
                raise _not_found("session")
        return session, time.time() + left_ms / 1000

    async def delete_session(self, session_id: str, tenant: str) -> None:
        """Forget a session; NotFound if this tenant has none."""
        await self.session(session_id, tenant)
        with _translated():
            await self._redis.delete(f"session:{session_id}", f"evidence:{session_id}")

    async def save_evidence(self, session_id: str, turn: int, evidence: bytes | None, followed_up: bool) -> None:
        """Keep a turn's evidence, if it has any, and that of the turns before it, for as long as their session."""
        names = (f"session:{session_id}", f"evidence:{session_id}")
        ttl_s = self._ttl_s if followed_up else self._first_ttl_s
        await self.run(_SAVE_EVIDENCE, names, turn, turn - KEPT_TURNS, evidence or b"", ttl_s)

    async def evidence(self, session_id: str, turn: int) -> bytes | None:
        """The kept evidence of a turn."""
        with _translated():
            return cast(bytes | None, await self._redis.hget(f"evidence:{session_id}", str(turn)))

    @asynccontextmanager
    async def turn_of(self, session_id: str, tenant: str) -> AsyncGenerator[Session]:
        """The session, held for one turn; SessionBusy while another turn holds it, NotFound if this tenant has none."""
        # By tenant: what others try must neither hold the session up nor learn that it is there.
        lock = self._redis.lock(f"turn:{tenant}:{session_id}", timeout=self._turn_s, blocking=False)
        async with self._held(lock) as held:
            if not held:
                raise SessionBusy("Another question of this session is being answered. Ask one after the other.")
            yield await self._load(f"session:{session_id}", _SESSION, tenant, "session")

    @asynccontextmanager
    async def _held(self, lock: Lock) -> AsyncGenerator[bool]:
        """While this lasts the lock is ours, or not if it would not wait for it."""
        with _translated():
            held = await lock.acquire()
        try:
            yield held
        finally:
            # Shielded: the response to a client that hung up is cancelled again at every await of its clean-up.
            # A lock that is no longer ours has timed out: whoever held it was taken to have died.
            if held:
                with CancelScope(shield=True), _translated(), suppress(LockError):
                    await lock.release()

    async def _released(self, video_id: str, tenant: str, digest: str, remove: bool) -> Last:
        sets = self._sets(tenant, digest)
        names = (sets.states, sets.keys, sets.copies, sets.dropped)
        states, copies, keys = await self.run(RELEASE, names, video_id, ceil(self._turn_s), int(remove))
        return Last(states=bool(states), copies=bool(copies), keys=tuple(_KEY.validate_json(key) for key in keys))

    def _sets(self, tenant: str, digest: str) -> Sets:
        return Sets(self._salt(tenant), digest)

    async def _load(self, name: str, kind: TypeAdapter[Owned], tenant: str, what: str) -> Owned:
        with _translated():
            raw = await self._redis.getex(name, ex=self._ttl_s)
        return _owned(raw, kind, tenant, what)


def _owned(raw: bytes | str | None, kind: TypeAdapter[Owned], tenant: str, what: str) -> Owned:
    """The record that was read; NotFound, and nothing else, if it is another tenant's or another version's."""
    record = _read(raw, kind)
    if record is None or record.tenant != tenant:
        raise _not_found(what)
    return record


def _read(raw: bytes | str | None, kind: TypeAdapter[Owned]) -> Owned | None:
    """The record, if there is one that this version can read."""
    if raw is not None:
        with suppress(ValidationError):
            return kind.validate_json(raw)
    return None


def _not_found(what: str) -> NotFound:
    return NotFound(f"There is no {what} with this id.", f"{what}_id")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise StoreUnavailable("The store of sessions and videos is full. Try again later.") from error
    except ResponseError as error:
        raise StoreUnavailable("The store of sessions and videos refuses to be written to.") from error
    except RedisError as error:
        raise StoreUnavailable("The store of sessions and videos does not answer. Try again shortly.") from error
