"""The HTTP models of our own dialect, and what both dialects share. Field names are the contract with users."""

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from occam.types import Evidence, FrameEvidence
from services.messages import FrameChoice, PruningChoice, Reply, ServedModel, Tier
from services.records import VideoRecord

EXAMPLE_USAGE: dict[str, Any] = {
    "prompt_tokens": 92,
    "completion_tokens": 2,
    "visual_tokens": {"encoded": 288, "stage1": 71, "stage2": 19},
    "cached_tokens": 74,
    "video_seconds": 4.0,
    "gpu_seconds": 0.041,
}
EXAMPLE_ANSWER: dict[str, Any] = {
    "answer": "red",
    "session_id": "session-3KfLq0mZ5cV1bY8d",
    "model": "tiny-video-llava",
    "usage": EXAMPLE_USAGE,
    "timings": {
        "fetch_s": 0.0,
        "decode_s": 0.0,
        "encode_s": 0.0,
        "prefill_s": 0.012,
        "ttft_s": 0.046,
        "total_s": 0.071,
    },
    "occam": {"cache": "memory", "strategy": "occam", "lambda1": 1.0, "lambda2": 1.0, "finish_reason": "stop"},
}


class Request(BaseModel):
    """A request body of our own: unknown fields are errors, since a misspelt option would be ignored in silence."""

    model_config = ConfigDict(extra="forbid")


class Options(Request):
    """How a question is put to the video; what is left out is the model's default."""

    strategy: Literal["occam", "none"] | None = Field(default=None, description="Pruning strategy.")
    lambda1: float | None = Field(default=None, ge=0, description="Stage I threshold factor; 0 keeps every token.")
    lambda2: float | None = Field(default=None, ge=0, description="Stage II threshold factor; 0 keeps every token.")
    start_s: float | None = Field(default=None, ge=0, description="Begin of the range that is looked at, in seconds.")
    end_s: float | None = Field(default=None, gt=0, description="End of the range that is looked at, in seconds.")
    fps: float | None = Field(default=None, gt=0, description="Frames a second, instead of the model's fixed number.")
    max_frames: int | None = Field(default=None, ge=1, le=1024, description="At most so many frames.")
    session_id: str | None = Field(default=None, description="Session of an earlier answer, to ask a follow-up.")
    evidence: bool = Field(default=False, description="Whether the answer shall say which patches it rests on.")

    @property
    def frame_choice(self) -> FrameChoice:
        """The frames that are asked for."""
        return FrameChoice(fps=self.fps, max_frames=self.max_frames, start_s=self.start_s, end_s=self.end_s)

    @property
    def pruning_choice(self) -> PruningChoice:
        """The pruning that is asked for."""
        return PruningChoice(strategy=self.strategy, lambda1=self.lambda1, lambda2=self.lambda2)


class QueryRequest(Options):
    """A question about a posted video."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"question": "What color is the circle?"}]},
    )

    question: str = Field(min_length=1, max_length=8192)
    model: str | None = Field(default=None, description="One of `GET /v1/models`; the first one if left out.")
    max_tokens: int = Field(default=64, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = 0
    stream: bool = Field(
        default=False, description="Server-sent events: `text` pieces, then the whole `answer`."
    )


class VideoRequest(Request):
    """A video to be fetched."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.org/clip.mp4"}]})

    url: str = Field(min_length=1, max_length=8192)


class VideoBody(BaseModel):
    """A posted video. Questions may be asked while it is still `processing` (its frames are being encoded)."""

    id: str = Field(examples=["video-9hT2xQ7LrW0aBcDe"])
    status: Literal["processing", "ready", "failed"]
    duration_s: float = Field(examples=[4.0])
    frames: int = Field(description="Frames in the file.", examples=[64])
    digest: str = Field(description="SHA-256 of the file.")
    error: "ErrorDetail | None" = Field(default=None, description="Why the frames cannot be had, where `failed`.")

    @classmethod
    def of(cls, record: VideoRecord) -> "VideoBody":
        """The body that shows a record."""
        video = record.video
        error = None
        if record.status == "failed":
            error = ErrorDetail(type="invalid_request_error", code=record.error_code, message=record.error)
        return cls(
            id=record.id,
            status=record.status,
            duration_s=video.duration_s,
            frames=video.frames,
            digest=video.digest,
            error=error,
        )


class VisualTokensBody(BaseModel):
    """Patch tokens of the video: what the tower produced, what stage I kept, what stage II kept for this question."""

    encoded: int
    stage1: int
    stage2: int


class UsageBody(BaseModel):
    """What an answer cost. The answer metrics on `/metrics` are the sums of exactly these numbers."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [EXAMPLE_USAGE]})

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: VisualTokensBody
    cached_tokens: int = Field(description="Prompt tokens whose lower layers came from a cache.")
    video_seconds: float = Field(description="Length of the range of the video that was looked at.")
    gpu_seconds: float = Field(description="Seconds of encoding, prefill and decoding on the device.")


class TimingsBody(BaseModel):
    """Where the seconds went; decoding and encoding overlap, so that the parts may add up to more than the whole."""

    fetch_s: float
    decode_s: float
    encode_s: float
    prefill_s: float
    ttft_s: float
    total_s: float

    @classmethod
    def of(cls, reply: Reply) -> "TimingsBody":
        """The timings of a reply."""
        seconds: dict[str, float] = {}
        for stage in reply.stats:
            seconds[stage.stage] = seconds.get(stage.stage, 0.0) + stage.seconds
        return cls(
            fetch_s=seconds.get("fetch", 0.0) + seconds.get("probe", 0.0),
            decode_s=seconds.get("decode", 0.0),
            encode_s=seconds.get("encode", 0.0),
            prefill_s=seconds.get("prefill_lower", 0.0) + seconds.get("prefill_upper", 0.0),
            ttft_s=reply.ttft_s,
            total_s=reply.total_s,
        )


class FrameBody(BaseModel):
    """What was kept of one frame. `mask` and `scores` are rows of patches; what stage I dropped has no score."""

    index: int
    pts_s: float
    kept: int
    of: int
    threshold: float | None
    mask: list[list[bool]]
    scores: list[list[float | None]]

    @classmethod
    def of_frame(cls, frame: FrameEvidence, threshold: float) -> "FrameBody":
        """The body that shows one frame's evidence."""
        return cls(
            index=frame.index,
            pts_s=frame.pts_s,
            kept=frame.kept,
            of=frame.of,
            threshold=_finite(threshold),
            mask=frame.stage2.tolist(),
            scores=[[_finite(score) for score in row] for row in frame.scores.astype(np.float64).tolist()],
        )


class Span(BaseModel):
    """A stretch of the video of which something was kept."""

    start_s: float
    end_s: float
    kept: int


class EvidenceBody(BaseModel):
    """What an answer rests on."""

    frames: list[FrameBody]
    spans: list[Span]

    @classmethod
    def of(cls, evidence: Evidence) -> "EvidenceBody":
        """The body that shows an answer's evidence; neighbouring frames with kept patches make one span."""
        spans: list[Span] = []
        open_span = False
        for frame in evidence.frames:
            if frame.kept and open_span:
                spans[-1].end_s = frame.pts_s
                spans[-1].kept += frame.kept
            elif frame.kept:
                spans.append(Span(start_s=frame.pts_s, end_s=frame.pts_s, kept=frame.kept))
            open_span = frame.kept > 0
        return cls(frames=[FrameBody.of_frame(frame, evidence.threshold) for frame in evidence.frames], spans=spans)


class OccamBody(BaseModel):
    """What Occam did for an answer: where the video's state came from, and how it was pruned."""

    cache: Tier = Field(description="Tier that had the video's state; `none`: it was computed for this answer.")
    strategy: str
    lambda1: float | None
    lambda2: float | None
    finish_reason: str = Field(description="`stop`: the model ended; `length`: the limit did.")

    @classmethod
    def of(cls, reply: Reply) -> "OccamBody":
        """The body that shows a reply."""
        finished, pruning = reply.finished, reply.finished.pruning
        return cls(
            cache=finished.cache,
            strategy=pruning.strategy or "",
            lambda1=pruning.lambda1,
            lambda2=pruning.lambda2,
            finish_reason=finished.answer.finish_reason,
        )


class AnswerBody(BaseModel):
    """An answer with what it cost, how long it took, and (if asked for) what it rests on."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ANSWER]})

    answer: str
    session_id: str
    model: str
    usage: UsageBody
    timings: TimingsBody
    occam: OccamBody
    evidence: EvidenceBody | None = None

    @classmethod
    def of(cls, reply: Reply, evidence: bool) -> "AnswerBody":
        """The body that shows a reply."""
        return cls(
            answer=reply.finished.answer.text,
            session_id=reply.session_id,
            model=reply.model,
            usage=UsageBody.model_validate(reply.finished.usage, from_attributes=True),
            timings=TimingsBody.of(reply),
            occam=OccamBody.of(reply),
            evidence=EvidenceBody.of(reply.finished.answer.evidence) if evidence else None,
        )


class ModelBody(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "occam"
    family: str
    digest: str = Field(description="SHA-256 of the weights.")
    frames: int = Field(description="Frames sampled by default.")
    max_positions: int
    calibrated: bool = Field(description="Whether strategy `occam` can run.")
    defaults: dict[str, str | float | None] = Field(description="Pruning of questions that choose none.")

    @classmethod
    def of(cls, name: str, served: ServedModel) -> "ModelBody":
        """The body that shows a model."""
        pruning = served.pruning
        return cls(
            id=name,
            family=served.family,
            digest=served.digest,
            frames=served.frames,
            max_positions=served.max_positions,
            calibrated=served.calibrated,
            defaults={"strategy": pruning.strategy, "lambda1": pruning.lambda1, "lambda2": pruning.lambda2},
        )


class ModelList(BaseModel):
    """Every served model, the default one first."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class Ready(BaseModel):
    """What is live: models, the cache tiers, and how durable sessions and videos are."""

    status: Literal["ready"] = "ready"
    models: list[str]
    kv: str = Field(examples=["memory, private redis"])
    state: str = Field(examples=["private redis, lost when the service stops"])


class ErrorDetail(BaseModel):
    """What went wrong: `code` for programs, `message` for people, `param` the field at fault."""

    type: str = Field(examples=["invalid_request_error"])
    code: str = Field(examples=["forbidden_source"])
    message: str = Field(examples=["The host example.org is not among the hosts that may be fetched."])
    param: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


def _finite(value: float) -> float | None:
    """JSON has no NaN: what was not tested has no number."""
    return value if math.isfinite(value) else None
