"""What routes say of their responses in the OpenAPI document."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from services.schemas import ErrorBody
from services.statuses import STATUSES, error_body

# Of each status: what it means, and an example's code, message and param.
_KINDS: dict[int, tuple[str, str, str, str | None]] = {
    400: ("The request does not have the shape of the API.", "malformed", "question is missing.", "question"),
    401: ("The request carries no key that is known.", "invalid_api_key", "The request carries no API key.", None),
    403: (
        "Without keys: the request may come from a page of another site.",
        "cross_site",
        "A page of another site sent the request, and without OCCAM_API_KEYS none of those is taken.",
        None,
    ),
    404: ("There is no such thing for this caller.", "not_found", "There is no video with this id.", "video_id"),
    409: (
        "Something else is going on with it.",
        "session_busy",
        "Another question of this session is being answered. Ask one after the other.",
        None,
    ),
    413: (
        "A limit on sizes is passed.",
        "video_too_large",
        "The video has 2147483648 bytes, more than the limit of 1073741824.",
        None,
    ),
    415: (
        "The bytes are no video or image that can be decoded.",
        "unsupported_video",
        "The file is a playlist or a description of a stream, and not a video.",
        None,
    ),
    422: (
        "The request is well formed and cannot be served.",
        "source_unavailable",
        "The source answered with status 404.",
        "url",
    ),
    429: (
        "A quota is used up.",
        "quota_exceeded",
        "The key's quota of 600 requests a minute (OCCAM_QUOTA_REQUESTS) is used up. Try again in 12 s.",
        None,
    ),
    500: ("The service failed.", "internal", "The service failed on this request.", None),
    503: (
        "The service takes no more at present.",
        "overloaded",
        "All workers are busy and their queue is full. Try again shortly.",
        None,
    ),
    504: ("A deadline has passed.", "deadline_exceeded", "The request took more than 120 s.", None),
}


def only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route that has just these."""
    return {status: _error(status) for status in statuses}


def _error(status: int) -> dict[str, Any]:
    description, code, message, param = _KINDS[status]
    body = error_body(status, code, message, param, "6f1d1f6ab5e94b6f8a4f3c2f6f0f9a51")
    return {
        "model": ErrorBody,
        "description": description,
        "content": {"application/json": {"example": body.model_dump()}},
    }


ERRORS = only(*sorted({status for _, status in STATUSES}))
"""The errors of a route that takes bodies, ids or media."""


def events_like(examples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of a response that is a stream of server-sent events: `data:` lines of JSON, then `[DONE]`."""
    lines = [f"data: {json.dumps(example)}\n\n" for example in examples]
    return {
        "text/event-stream": {
            "itemSchema": {
                "type": "object",
                "description": "`data` is JSON, of the last event `[DONE]`.",
                "properties": {"data": {"type": "string"}},
                "required": ["data"],
            },
            "example": "".join([*lines, "data: [DONE]\n\n"]),
        }
    }
