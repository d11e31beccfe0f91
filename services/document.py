"""The OpenAPI document: what FastAPI derives from the routes, and what is true of every response."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

DESCRIPTION = """
Questions about videos and images, answered from pruned tokens.

Every error has one shape, `{"error": {"type", "code", "message", "param", "request_id"}}`: `code` is for programs,
`message` is a sentence that names the limit and the value, `param` is the field as it was sent. A path that is not here
answers 404, a method that a path does not take 405 with `Allow`, both in that shape.

Every response carries `X-Request-Id`: the client's own, if it sent one of 1 to 64 letters, digits, dots, underscores or
dashes, else a fresh one. 429 and 503 carry `Retry-After`.

A streamed answer (`stream: true`) is `text/event-stream`: lines `data: JSON`, the last one `data: [DONE]`. What fails
before the first of them has a status of its own; what fails later comes as an event `{"type": "error", "error": ...}`.

JSON is read strictly: UTF-8, every name once in an object, at most 32 levels, no `NaN` or `Infinity`; text is no
number.
""".strip()

_TAGS = {
    "videos": "Videos, and questions about them: our own dialect.",
    "sessions": "Conversations, as they are remembered.",
    "chat": "OpenAI's dialect.",
    "evidence": "What answers rest on, as pictures.",
    "jobs": "Many questions about many videos, and what they would cost.",
    "operation": "Probes and metrics.",
}
_REQUEST_ID = {
    "description": "Id of the request, in the log too.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    "example": "6f1d1f6ab5e94b6f8a4f3c2f6f0f9a51",
}
_RETRY_AFTER = {
    "description": "Seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1},
    "example": 1,
}
_WAITING = ("429", "503")


class Api(FastAPI):
    """FastAPI with our document."""

    def openapi(self) -> dict[str, Any]:
        """The document of whatever routes there are; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    """The headers that every response has, and what the groups of routes are."""
    document["components"]["headers"] = {"X-Request-Id": _REQUEST_ID, "Retry-After": _RETRY_AFTER}
    used: dict[str, None] = {}
    for operation in _operations(document):
        used |= dict.fromkeys(operation["tags"])
        for status, response in operation["responses"].items():
            names = ["X-Request-Id", *(["Retry-After"] if status in _WAITING else [])]
            referred = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
            response["headers"] = response.get("headers", {}) | referred
    document["tags"] = [{"name": name, "description": _TAGS[name]} for name in used]
    return document


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()
