"""The request ledger: one entry per request when its last byte is out, whatever became of it."""

import asyncio
import time

from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services import logs, metrics

OUTCOME = "occam_outcome"
"""Key of the request's state under which a stream that failed after its start leaves its outcome."""


class Ledger:
    """ASGI middleware that counts and times requests by route and outcome."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and enter it once it has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                logs.note(status=status)
            await send(message)

        async def heard() -> Message:
            try:
                return await receive()
            except TaskCancelledError:  # how Ray's proxy sometimes says that the client has gone
                state[OUTCOME] = "cancelled"
                return {"type": "http.disconnect"}

        started = time.monotonic()
        outcome = "cancelled"
        try:
            await self._app(scope, heard, watched)
            outcome = state.get(OUTCOME) or outcome_of(status)
        except asyncio.CancelledError:
            raise
        except BaseException:
            outcome = outcome_of(500)
            logs.note(status=500)
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            metrics.REQUESTS.labels(route, outcome).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(seconds)
            logs.note(route=route, outcome=outcome, seconds=round(seconds, 6))


def outcome_of(status: int) -> str:
    """The outcome's name for a response status: one of a small fixed set."""
    if status < 400:
        return "ok"
    if status == 503:
        return "unavailable"
    if status == 504:
        return "deadline"
    return "client_error" if status < 500 else "server_error"
