"""The OpenAI dialect of an answer: what `POST /v1/chat/completions` gives back, whole or in chunks."""

import time
from typing import Any

from services.answer_schemas import EXAMPLE_USAGE, EvidenceBody, OccamBody, TimingsBody, UsageBody
from services.messages import Reply
from services.state import new_id

EXAMPLE_COMPLETION = {
    "id": "chatcmpl-Qm1x0cV7aZ",
    "object": "chat.completion",
    "created": 1780000000,
    "model": "tiny-video-llava",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "red", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {**EXAMPLE_USAGE, "total_tokens": 94, "prompt_tokens_details": {"cached_tokens": 74}},
    "occam": {
        "session_id": "session-3KfLq0mZ5cV1bY8d",
        "cache": "memory",
        "approximate": False,
        "strategy": "occam",
        "finish_reason": "stop",
    },
}


class Completion:
    """One answer's identity, and the bodies that carry it, whole or in chunks."""

    def __init__(self, model: str) -> None:
        self._common: dict[str, Any] = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model}

    def whole(self, reply: Reply, evidence: bool) -> dict[str, Any]:
        """The answer as one body."""
        message = {"role": "assistant", "content": reply.finished.answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.finished.answer.finish_reason,
            "logprobs": None,
        }
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(reply),
            "occam": _extension(reply, evidence),
        }

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """One piece of the answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def last(self, reply: Reply, delta: dict[str, str], evidence: bool) -> dict[str, Any]:
        """The chunk that ends the answer; it carries our extension."""
        end = self.chunk(delta, reply.finished.answer.finish_reason)
        return {**end, "occam": _extension(reply, evidence)}

    def usage(self, reply: Reply) -> dict[str, Any]:
        """The chunk behind the end that `stream_options.include_usage` asks for."""
        return {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)}


def _usage(reply: Reply) -> dict[str, Any]:
    """OpenAI's usage, and ours beside it."""
    usage = UsageBody.model_validate(reply.finished.usage, from_attributes=True)
    return {
        **usage.model_dump(),
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _extension(reply: Reply, evidence: bool) -> dict[str, Any]:
    return {
        "session_id": reply.session_id,
        **OccamBody.of(reply).model_dump(),
        "timings": TimingsBody.of(reply).model_dump(),
        "evidence": EvidenceBody.of(reply.finished.answer.evidence).model_dump() if evidence else None,
    }
