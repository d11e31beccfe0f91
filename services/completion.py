"""The OpenAI dialect of an answer: what `POST /v1/chat/completions` gives back, whole or in chunks."""

import time
from dataclasses import asdict
from typing import Any

from services.answer_schemas import EvidenceBody, OccamBody, TimingsBody, UsageBody
from services.messages import Progress, Reply
from services.state import new_id


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

    def progress(self, progress: Progress) -> dict[str, Any]:
        """A piece that adds nothing to the answer, and says in our extension how far the work on it is."""
        return {**self.chunk({}), "occam": {"progress": asdict(progress)}}

    def last(self, reply: Reply, delta: dict[str, str], evidence: bool) -> dict[str, Any]:
        """The chunk that ends the answer; it carries our extension, with the usage that OpenAI's dialect leaves out."""
        end = self.chunk(delta, reply.finished.answer.finish_reason)
        return {**end, "occam": {**_extension(reply, evidence), "usage": _usage(reply)}}

    def usage(self, reply: Reply) -> dict[str, Any]:
        """The chunk behind the end that `stream_options.include_usage` asks for."""
        occam = {"timings": TimingsBody.of(reply).model_dump()}
        chunk = {**self._common, "object": "chat.completion.chunk", "choices": []}
        return {**chunk, "usage": _usage(reply), "occam": occam}


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
        "evidence": EvidenceBody.of(reply).model_dump() if evidence else None,
    }
