"""What every request passes before it reaches a route, as plain ASGI."""

import re
import secrets

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "x-request-id"

_NAME = REQUEST_ID_HEADER.encode()
_HARMLESS = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIds:
    """Gives every request an id: the client's or the proxy's own if its form is harmless, else a fresh one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with exactly one id in its headers."""
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == _NAME]
            if len(given) != 1 or not _HARMLESS.fullmatch(given[0]):
                others = [(name, value) for name, value in scope["headers"] if name != _NAME]
                scope["headers"] = [*others, (_NAME, secrets.token_hex(16).encode())]
        await self._app(scope, receive, send)


def in_front_of_ray() -> list[Middleware]:
    """For Ray's HTTP proxies, which decode the id and send it back, and fail on one that is no text."""
    return [Middleware(RequestIds)]


class BodyLimit:
    """Refuses a body with 413 as soon as more than `max_bytes` of it have come, whatever its headers say."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body counted."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                # The one exception that FastAPI lets through from a body.
                raise HTTPException(413, f"The body has more than the limit of {self._max_bytes} bytes")
            return message

        await self._app(scope, counted, send)
