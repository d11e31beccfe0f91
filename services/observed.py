"""What is seen of every request from outside: its line in the log, and its span."""

import logging
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from services import logs, origin, tracing
from services.middleware import REQUEST_ID_HEADER

_LOG = logging.getLogger(__name__)
_NAMES = {"route": "http.route", "status": "http.response.status_code", "error": "error.type"}
_PROBES = {"/healthz", "/readyz", "/startupz", "/metrics"}


class Observed:
    """ASGI middleware round the ledger: the request's origin is settled, and what was noted of it is written down."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; when it has ended, one line and one span say how."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers[REQUEST_ID_HEADER.encode()]
        origin.adopt(origin.Origin(request_id=request_id, traceparent=headers.get(b"traceparent", "")))
        notes = logs.begin_notes()
        with tracing.span(scope["method"], kind="server", occam__request_id=request_id) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                span.rename(f"{scope['method']} {notes.get('route')}")
                span.note(**_attributes(notes))
                _write(scope["method"], notes)


def _write(method: str, notes: dict[str, Any]) -> None:
    level = logging.INFO
    if notes.get("outcome") == "server_error":
        level = logging.ERROR
    elif notes.get("route") in _PROBES and notes.get("outcome") == "ok":
        level = logging.DEBUG
    _LOG.log(level, "request", extra={"fields": {"method": method} | notes})


def _attributes(notes: dict[str, Any]) -> dict[str, tracing.Attribute]:
    """What was noted, by OpenTelemetry's names where it has some."""
    flat = notes | {f"{stage}_tokens": count for stage, count in notes.get("visual_tokens", {}).items()}
    return {
        _NAMES.get(name, f"occam.{name}"): value
        for name, value in flat.items()
        if isinstance(value, str | bool | int | float)
    }
