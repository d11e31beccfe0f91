"""The HTTP models of the OpenAI dialect's answer: OpenAI's fields, and ours in `occam` and `usage`."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.answer_schemas import (
    EXAMPLE_ANSWER,
    EXAMPLE_USAGE,
    FINISH_REASON,
    EvidenceBody,
    OccamBody,
    TimingsBody,
    UsageBody,
)

_SESSION: dict[str, Any] = {"session_id": EXAMPLE_ANSWER["session_id"], **EXAMPLE_ANSWER["occam"]}
_EXTENSION: dict[str, Any] = {**_SESSION, "timings": EXAMPLE_ANSWER["timings"], "evidence": None}
_COMMON: dict[str, Any] = {"id": "chatcmpl-Qm1x0cV7aZ", "created": 1780000000, "model": "tiny-video-llava"}
EXAMPLE_COMPLETION: dict[str, Any] = {
    **_COMMON,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "red", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {**EXAMPLE_USAGE, "total_tokens": 94, "prompt_tokens_details": {"cached_tokens": 74}},
    "occam": _EXTENSION,
}


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}


EXAMPLE_CHUNKS = [
    _chunk({"role": "assistant", "content": "red"}),
    {**_chunk({}, "stop"), "occam": _EXTENSION},
    {**_COMMON, "object": "chat.completion.chunk", "choices": [], "usage": EXAMPLE_COMPLETION["usage"]},
]
"""A streamed answer; the last chunk comes with `stream_options: {include_usage: true}`."""


class AssistantMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str = Field(description="Empty where the model said nothing: see `finish_reason`.")
    refusal: None = None


class Choice(BaseModel):
    """The one choice that there is."""

    index: Literal[0]
    message: AssistantMessage
    finish_reason: Literal["stop", "length"] = Field(description=FINISH_REASON)
    logprobs: None = None


class PromptTokens(BaseModel):
    """Of the prompt's tokens, as OpenAI counts them."""

    cached_tokens: int


class ChatUsage(UsageBody):
    """OpenAI's usage, and ours beside it."""

    total_tokens: int
    prompt_tokens_details: PromptTokens


class Extension(OccamBody):
    """What our own dialect says of an answer beyond OpenAI's fields."""

    session_id: str = Field(description="For `occam.session_id` of a follow-up, which then needs only its question.")
    timings: TimingsBody
    evidence: EvidenceBody | None = Field(default=None, description="Where `occam.evidence` asked for it.")


class ChatCompletion(BaseModel):
    """An answer as OpenAI's clients expect it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_COMPLETION]})

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Unix time.")
    model: str
    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: ChatUsage
    occam: Extension
