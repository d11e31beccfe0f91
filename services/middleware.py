"""What every request passes before it reaches a route, as plain ASGI."""

import asyncio
import re
import secrets
from collections.abc import Callable, Iterable

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import DeadlineExceeded

REQUEST_ID_HEADER = "x-request-id"

_NAME = REQUEST_ID_HEADER.encode()
_RAYS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)
_SILENCE_S = 30.0  # a proxy out of breath hands on late what a client sent at once
_HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Gives every request an id: the client's or the proxy's own if its form is harmless, else a fresh one.

    The response carries it once, whatever stands behind has put there: Ray's proxy adds it to what the service sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its response back, with exactly one id in the headers of each."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == _NAME]
        request_id = given[0] if len(given) == 1 and _HARMLESS.fullmatch(given[0]) else _fresh()
        scope["headers"] = _with_id(scope["headers"], request_id)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_id(message.get("headers", ()), request_id)
            await send(message)

        await self._app(scope, receive, answer)


def _fresh() -> bytes:
    return secrets.token_hex(16).encode()


def _with_id(headers: Iterable[tuple[bytes, bytes]], request_id: bytes) -> list[tuple[bytes, bytes]]:
    return [*((name, value) for name, value in headers if name.lower() != _NAME), (_NAME, request_id)]


class NotForRay:
    """Drops the headers by which a client would tell Ray what to do.

    With them anybody could have a request go on that nobody waits for, or be cut, or choose its replica; and Ray fails
    on those that are no text, and keeps what it had of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without them."""
        if "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if _spelt(name) not in _RAYS]
            scope["headers"] = kept
        await self._app(scope, receive, send)


def _spelt(name: bytes) -> bytes:
    """As Ray compares names."""
    return name.lower().replace(b"_", b"-")


def in_front_of_ray() -> list[Middleware]:
    """For Ray's HTTP proxies, which decode the id and send it back, and fail on one that is no text."""
    return [Middleware(NotForRay), Middleware(RequestIds)]


class BodyLimit:
    """Refuses a body with 413 as soon as more than `max_bytes` of it have come, whatever its headers say.

    It must all come within max_s seconds, something of it every 10 s: who sends none would hold a place for ever.
    bounded_elsewhere: says of a request that its body is looked after by whoever takes it
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_s: float, bounded_elsewhere: Callable[[Scope], bool]) -> None:
        self._app = app
        self._bounded_elsewhere = bounded_elsewhere
        self._max_bytes = max_bytes
        self._max_s = max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body counted."""
        if scope["type"] == "http" and self._bounded_elsewhere(scope):
            await self._app(scope, receive, send)
            return
        taken, whole = 0, scope["type"] != "http"
        clock = asyncio.get_running_loop().time
        until = clock() + self._max_s

        async def counted() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is the client's end
                return await receive()
            try:
                async with asyncio.timeout_at(min(until, clock() + _SILENCE_S)):
                    message = await receive()
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"The body did not come: {taken} bytes of it, with the limits of {self._max_s:g} s for all of it "
                    f"and {_SILENCE_S:g} s without any."
                ) from error
            whole = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                # The one exception that FastAPI lets through from a body.
                raise HTTPException(413, f"The body has more than the limit of {self._max_bytes} bytes")
            return message

        await self._app(scope, counted, send)
