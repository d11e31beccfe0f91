"""The HTTP models of estimates."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.schemas import MAX_NAME, MAX_QUESTION, Asking, one_of

EXAMPLE_ESTIMATE: dict[str, Any] = {"url": "https://example.org/clip.mp4", "question": "What color is it?"}
Basis = Literal["measured", "default"]


class EstimateRequest(Asking):
    """A query, and what it is about: a posted video, or the address of a video or an image."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [EXAMPLE_ESTIMATE], **one_of("video_id", "url")},
    )

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    stream: bool = Field(default=False, description="As in a query; it costs the same.")
    video_id: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    url: str | None = Field(default=None, min_length=1, max_length=8192)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.video_id is None) == (self.url is None):
            raise ValueError("A video is named by video_id or by url, and by one of them")
        return self


class ExpectedTokens(BaseModel):
    """Patch tokens. `encoded` is exact; what stages keep is known afterwards, and expected from earlier answers."""

    encoded: int = Field(description="As `usage.visual_tokens.encoded` will say, over all questions of a job.")
    stage1: int | None = Field(description="By the average of this model with this pruning; null before there is one.")
    stage2: int | None


class ExpectedSeconds(BaseModel):
    """Seconds of work until answers begin, waiting for other requests not counted."""

    fetch: float = Field(description="What fetching and probing took just now; a query finds the video here.")
    decode: float
    encode: float
    prefill: float = Field(description="Of the layers below the cut.")
    total: float = Field(description="Decoding and encoding overlap, so the parts may add up to more.")


class EstimateBody(BaseModel):
    """What a question, or a whole job, would cost."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "tiny-video-llava",
                    "frames": 8,
                    "visual_tokens": {"encoded": 288, "stage1": 71, "stage2": 19},
                    "prompt_tokens": 92,
                    "cached": False,
                    "tokens_now": 288,
                    "seconds": {"fetch": 0.02, "decode": 0.03, "encode": 0.05, "prefill": 0.01, "total": 0.08},
                    "kv_bytes": 147456,
                    "basis": "measured",
                    "requests": None,
                }
            ]
        }
    )

    model: str | None = Field(description="Null for a job whose questions go to several.")
    frames: int = Field(description="Frames that would be looked at; of a job, of all its videos once.")
    visual_tokens: ExpectedTokens
    prompt_tokens: int = Field(description="By the tokens that stage I is expected to keep; all where that is unknown.")
    cached: bool = Field(description="Whether the video's state is in a cache: nothing would be decoded or encoded.")
    tokens_now: int = Field(description="Patch tokens that would be encoded for this, at most; none where cached.")
    seconds: ExpectedSeconds
    kv_bytes: int = Field(description="Bytes in memory of the states of the videos.")
    basis: Basis = Field(description="`measured`: seconds by what this worker took lately; `default`: a rough guess.")
    requests: int | None = Field(default=None, description="Questions of a job.")
