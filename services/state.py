"""What must not be lost: videos and sessions, as JSON in a Redis of their own that evicts nothing."""

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from anyio import CancelScope
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import LockError, OutOfMemoryError, RedisError, ResponseError

from occam.errors import StoreUnavailable
from occam.kv.key import KVKey
from services.errors import NotFound, SessionBusy
from services.records import Session, VideoRecord

T = TypeVar("T")

TIMEOUT_S = 2.0


_VIDEO = TypeAdapter(VideoRecord)
_SESSION = TypeAdapter(Session)
_KEY = TypeAdapter(KVKey)


def new_id(kind: str) -> str:
    """An identifier that cannot be guessed: whoever knows it may use it."""
    return f"{kind}-{secrets.token_urlsafe(18)}"


class State:
    """Videos and sessions by id. An outage is StoreUnavailable."""

    def __init__(self, url: str, ttl_s: float, first_ttl_s: float, turn_s: float) -> None:
        """What is not used is kept for ttl_s seconds, a session that nobody has followed up on for first_ttl_s.

        turn_s: after which a turn is taken to have died
        """
        # One retry: a pooled connection may be older than the server behind it.
        retry = Retry(NoBackoff(), 1)
        self._redis = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=retry)
        self._ttl_s = int(ttl_s)
        self._first_ttl_s = int(min(first_ttl_s, ttl_s))
        self._turn_s = turn_s

    async def check(self) -> None:
        """Raise StoreUnavailable unless the server takes what is written: one that is full still answers."""
        with _translated():
            await self._redis.set("check", b"", ex=self._first_ttl_s)

    async def save_video(self, record: VideoRecord) -> None:
        """Keep a video's record."""
        with _translated():
            await self._redis.set(f"video:{record.id}", _VIDEO.dump_json(record), ex=self._ttl_s)

    async def video(self, video_id: str) -> VideoRecord:
        """The record of a video; NotFound if there is none."""
        return await self._load(f"video:{video_id}", _VIDEO, "video")

    async def update_video(self, record: VideoRecord) -> bool:
        """Keep a video's record if the video has not been forgotten; whether that was so."""
        with _translated():
            return bool(await self._redis.set(f"video:{record.id}", _VIDEO.dump_json(record), ex=self._ttl_s, xx=True))

    async def delete_video(self, video_id: str) -> None:
        """Forget a video."""
        with _translated():
            await self._redis.delete(f"video:{video_id}", f"keys:{video_id}")

    async def keys(self, video_id: str) -> list[KVKey]:
        """The keys of the states that were cached for a video."""
        with _translated():
            keys = await self._redis.smembers(f"keys:{video_id}")
        return [_KEY.validate_json(key) for key in keys]

    async def note_key(self, video_id: str, key: KVKey) -> None:
        """Remember that a state was cached for a video."""
        with _translated():
            await self._redis.sadd(f"keys:{video_id}", _KEY.dump_json(key))
            await self._redis.expire(f"keys:{video_id}", self._ttl_s)

    async def save_session(self, session: Session, followed_up: bool) -> None:
        """Keep a session; most are never followed up on, and are not kept for long."""
        ttl_s = self._ttl_s if followed_up else self._first_ttl_s
        with _translated():
            await self._redis.set(f"session:{session.id}", _SESSION.dump_json(session), ex=ttl_s)

    @asynccontextmanager
    async def turn_of(self, session_id: str) -> AsyncGenerator[Session]:
        """The session, held for one turn; SessionBusy while another turn holds it, NotFound if there is none."""
        lock = self._redis.lock(f"turn:{session_id}", timeout=self._turn_s, blocking=False)
        with _translated():
            if not await lock.acquire():
                raise SessionBusy("Another question of this session is being answered. Ask one after the other.")
        try:
            yield await self._load(f"session:{session_id}", _SESSION, "session")
        finally:
            # Shielded: the response to a client that hung up is cancelled again at every await of its clean-up.
            # A lock that is no longer ours has timed out: the turn was taken to have died.
            with CancelScope(shield=True), _translated(), suppress(LockError):
                await lock.release()

    async def _load(self, name: str, kind: TypeAdapter[T], what: str) -> T:
        with _translated():
            raw = await self._redis.getex(name, ex=self._ttl_s)
        if raw is None:
            raise NotFound(f"There is no {what} with this id.", f"{what}_id")
        return kind.validate_json(raw)


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
