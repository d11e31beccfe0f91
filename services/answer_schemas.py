"""The HTTP models of an answer: what it cost, how long it took, what it rests on. Both dialects share them."""

import math
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from occam.types import FrameEvidence
from services.messages import Reply, Tier
from services.overlay import path_of

FINISH_REASON = (
    "`stop`: the model ended its answer, which may be before the first word: the answer is empty then, and the one "
    "completion token is that end. `length`: the limit of tokens ended it."
)
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
    "occam": {
        "cache": "memory",
        "approximate": False,
        "strategy": "occam",
        "lambda1": 1.0,
        "lambda2": 1.0,
        "options": {"lambda1": 1.0, "lambda2": 1.0, "cut": 2, "register": "neurons"},
        "finish_reason": "stop",
    },
}


class VisualTokensBody(BaseModel):
    """Patch tokens of the media: what the tower produced, what stage I kept, what stage II kept for this question."""

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
    video_seconds: float = Field(description="Length of the range of the video that was looked at; images have none.")
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

    medium: int = Field(description="Which of the conversation's videos and images it shows, from 0.")
    index: int
    pts_s: float
    kept: int
    of: int
    threshold: float | None
    mask: list[list[bool]]
    scores: list[list[float | None]]
    overlay: str | None = Field(
        description="Path of a picture of the frame with what was kept of it; with `view=scores` of its scores."
    )

    @classmethod
    def of_frame(cls, frame: FrameEvidence, threshold: float, overlay: str | None) -> "FrameBody":
        """The body that shows one frame's evidence."""
        return cls(
            medium=frame.medium,
            index=frame.index,
            pts_s=frame.pts_s,
            kept=frame.kept,
            of=frame.of,
            threshold=_finite(threshold),
            mask=frame.stage2.tolist(),
            scores=[[_finite(score) for score in row] for row in frame.scores.astype(np.float64).tolist()],
            overlay=overlay,
        )


class Span(BaseModel):
    """A stretch of a video, or an image, of which something was kept."""

    medium: int
    start_s: float
    end_s: float
    kept: int


class EvidenceBody(BaseModel):
    """What an answer rests on."""

    frames: list[FrameBody]
    spans: list[Span]

    @classmethod
    def of(cls, reply: Reply) -> "EvidenceBody":
        """The body that shows an answer's evidence; neighbouring frames with kept patches make one span."""
        evidence, turn = reply.finished.answer.evidence, len(reply.finished.turns) - 1

        def overlay(frame: FrameEvidence) -> str | None:
            return path_of(reply.session_id, turn, frame.medium, frame.index) if reply.drawable else None

        spans: list[Span] = []
        before: FrameEvidence | None = None
        for frame in evidence.frames:
            if frame.kept and before and before.kept and before.medium == frame.medium:
                spans[-1].end_s = frame.pts_s
                spans[-1].kept += frame.kept
            elif frame.kept:
                spans.append(Span(medium=frame.medium, start_s=frame.pts_s, end_s=frame.pts_s, kept=frame.kept))
            before = frame
        frames = [FrameBody.of_frame(frame, evidence.threshold, overlay(frame)) for frame in evidence.frames]
        return cls(frames=frames, spans=spans)


class OccamBody(BaseModel):
    """What Occam did for an answer: where the video's state came from, and how it was pruned."""

    cache: Tier = Field(
        description="Tier that had the media's state; `embeddings`: the shared tier had what the vision tower gives of "
        "all of them, and the state was computed on that; `none`: it was computed for this answer."
    )
    approximate: bool = Field(description="Whether that state once came over a lossy wire (`OCCAM_KV_WIRE=int8`).")
    strategy: str
    lambda1: float | None
    lambda2: float | None
    options: dict[str, Any] = Field(description="All settings of the strategy, as they were used.")
    finish_reason: Literal["stop", "length"] = Field(description=FINISH_REASON)

    @classmethod
    def of(cls, reply: Reply) -> "OccamBody":
        """The body that shows a reply."""
        finished, pruning = reply.finished, reply.finished.pruning
        return cls(
            cache=finished.cache,
            approximate=finished.approximate,
            strategy=pruning.strategy or "",
            lambda1=pruning.number("lambda1"),
            lambda2=pruning.number("lambda2"),
            options=dict(pruning.options),
            finish_reason=finished.answer.finish_reason,
        )


class AnswerBody(BaseModel):
    """An answer with what it cost, how long it took, and (if asked for) what it rests on."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ANSWER]})

    answer: str = Field(description="Empty where the model said nothing: see `occam.finish_reason`.")
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
            evidence=EvidenceBody.of(reply) if evidence else None,
        )


def _finite(value: float) -> float | None:
    """JSON has no NaN: what was not tested has no number."""
    return value if math.isfinite(value) else None
