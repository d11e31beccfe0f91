"""What every request passes before it reaches a route, as plain ASGI."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


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
