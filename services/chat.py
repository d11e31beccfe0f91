"""The OpenAI dialect of a question: the request of `POST /v1/chat/completions`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from occam.config import SEEDS, SamplingParams
from occam.errors import InvalidInput
from services.errors import MalformedRequest
from services.messages import Question, Source
from services.schemas import MAX_NAME, MAX_TEXT, Options, Unicode

Piece = TypeVar("Piece")

MAX_MESSAGES = 1024
"""Messages of a conversation, and parts of a message: more than any has."""

_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "stop": ("", []),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
"""Parameters of OpenAI's that are not supported, each with the values that ask for nothing."""

_EXAMPLES: list[Any] = [
    {
        "model": "tiny-video-llava",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": "https://example.org/clip.mp4"}},
                    {"type": "text", "text": "What color is the circle?"},
                ],
            }
        ],
        "occam": {"strategy": "occam", "evidence": True},
    },
    {
        "model": "qwen3-vl",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://example.org/before.jpg"}},
                    {"type": "image_url", "image_url": {"url": "https://example.org/after.jpg"}},
                    {"type": "text", "text": "What has changed?"},
                ],
            }
        ],
    },
]


def _nullable(schema: dict[str, Any]) -> None:
    """Say in the schema that a field which may be left out may be null."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            described = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **described}


def _described(schema: dict[str, Any]) -> None:
    _nullable(schema)
    schema["examples"] = _EXAMPLES


class Nullable(BaseModel):
    """An object of OpenAI's: a null means what leaving the field out does."""

    model_config = ConfigDict(strict=True, json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class Exact(BaseModel):
    """An object whose fields have JSON's types: text is no number, however it reads."""

    model_config = ConfigDict(strict=True)


class VideoUrl(Exact):
    """Where a video is."""

    url: str = Field(min_length=1, max_length=8192)


class ImageUrl(Exact):
    """Where an image is, or the image itself. JPEG, PNG and WebP are taken, still ones."""

    url: Unicode = Field(min_length=1, description="An address, or `data:image/...;base64,...`.")


class TextPart(Exact):
    """Text of a message."""

    type: Literal["text"]
    text: Unicode


class VideoPart(Exact):
    """A video of a message."""

    type: Literal["video_url"]
    video_url: VideoUrl

    @property
    def source(self) -> Source:
        """The medium that the part brings."""
        return Source(url=self.video_url.url, kind="video")


class ImagePart(Exact):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl

    @property
    def source(self) -> Source:
        """The medium that the part brings."""
        return Source(url=self.image_url.url, kind="image")


ContentPart = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]
"""One part of a message's content. Media stand before the text in the prompt, in the order they are given."""


class Message(Nullable):
    """One message of the conversation. A system message becomes the prompt's system text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Unicode | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES)] = ""

    @property
    def text(self) -> str:
        """The text parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart) and part.text)

    @property
    def sources(self) -> list[Source]:
        """The media that the message brings."""
        if isinstance(self.content, str):
            return []
        return [part.source for part in self.content if not isinstance(part, TextPart)]


class StreamOptions(Nullable):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(Nullable):
    """OpenAI's request; `occam` is our extension.

    Fields that this service does not know are ignored, but not those of OpenAI's that would change the answer, and not
    those of `occam` beside it.
    """

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra=_described,
    )

    model: str = Field(max_length=MAX_NAME)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2, description="0 (unlike OpenAI's): the likeliest answer.")
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=SEEDS[0], le=SEEDS[1])
    n: int = Field(default=1, ge=1, le=1)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    occam: Options = Field(default_factory=Options)

    def question(self, tenant: str) -> Question:
        """The request as a question; InvalidInput where it asks for more than an answer about media."""
        _check_supported(self.model_extra or {})
        _check_text(self.messages)
        system, history, text = _turns(self.messages)
        return Question(
            text=text,
            tenant=tenant,
            model=self.model,
            sources=_sources(self.messages),
            session_id=self.occam.session_id,
            frames=self.occam.frame_choice,
            pruning=self.occam.pruning_choice,
            system=system,
            history=history,
            sampling=SamplingParams(
                max_new_tokens=self.max_completion_tokens or self.max_tokens or SamplingParams().max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
            ),
            evidence=self.occam.evidence,
            streamed=self.stream,
            deadline_s=self.occam.deadline_s,
        )


async def as_sent(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """The pieces of an answer; what is wrong with one of our options is said of it where this dialect has it."""
    async with aclosing(pieces):
        try:
            async for piece in pieces:
                yield piece
        except InvalidInput as error:
            if error.param in Options.model_fields:
                raise type(error)(error.message, f"occam.{error.param}") from error
            raise


def _check_supported(given: dict[str, Any]) -> None:
    """InvalidInput for a parameter that would change the answer and that nothing here obeys."""
    for name in Options.model_fields:
        if name in given:
            raise MalformedRequest(f'{name} belongs into the object occam: {{"occam": {{"{name}": ...}}}}.', name)
    for name, harmless in _WITHOUT_EFFECT.items():
        if name in given and given[name] not in harmless:
            raise InvalidInput(f"{name} is not supported.", name)


def _check_text(messages: list[Message]) -> None:
    length = sum(len(message.text) for message in messages)
    if length > MAX_TEXT:
        raise InvalidInput(f"The messages have {length} characters of text, over the limit of {MAX_TEXT}.", "messages")


def _sources(messages: list[Message]) -> tuple[Source, ...]:
    """The media of the first turn, in order; a later message may repeat them, InvalidInput if it brings others."""
    roles = [message.role for message in messages]
    first = roles.index("assistant") if "assistant" in roles else len(messages)
    sources = tuple(source for message in messages[:first] for source in message.sources)
    known = set(sources)
    if any(source not in known for message in messages[first:] for source in message.sources):
        raise InvalidInput(
            "All media of a conversation come with its first turn. Begin a new one to show more.", "messages"
        )
    return sources


def _turns(messages: list[Message]) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """System text, finished (question, answer) turns, and the open question; InvalidInput for any other order."""
    system = "\n".join(message.text for message in messages if message.role in ("system", "developer"))
    history: list[tuple[str, str]] = []
    question: list[str] = []
    for message in messages:
        if message.role == "user":
            question.append(message.text)
        elif message.role == "assistant":
            if not question:
                raise InvalidInput("An assistant message must follow a user message.", "messages")
            history.append(("\n".join(filter(None, question)), message.text))
            question = []
    text = "\n".join(filter(None, question))
    if not text:
        raise InvalidInput("The last message must be a user message with text.", "messages")
    return system, tuple(history), text
