"""What a stage did, as plain data: the library returns it, and only the services record it."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["fetch", "probe", "decode", "encode", "prefill_lower", "prefill_upper", "generate"]


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """One stage of one request: `started_s` and `ended_s` on the caller's monotonic clock, tokens in and out.

    shared_s: its share of the seconds of passes that it took with other requests; None where it had them alone
    """

    stage: Stage
    started_s: float
    ended_s: float
    tokens_in: int = 0
    tokens_out: int = 0
    shared_s: float | None = None

    @property
    def seconds(self) -> float:
        """Wall seconds the stage took."""
        return self.ended_s - self.started_s

    @property
    def work_s(self) -> float:
        """Seconds of work, which over all requests come to what was worked."""
        return self.seconds if self.shared_s is None else self.shared_s


@dataclass(frozen=True, kw_only=True)
class VisualTokenCounts:
    """Patch tokens of the media in context: what the tower produced, what stage I and what stage II kept.

    CLS and register tokens are counted nowhere. Without pruning all three are equal.
    """

    encoded: int
    stage1: int
    stage2: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one answer cost; the answer metrics are recorded from this object alone.

    `prompt_tokens` are the tokens that enter the language model (text and stage I survivors, the register not
    counted), `cached_tokens` those of them whose lower layers came from a cache or from the session.
    """

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: VisualTokenCounts
    cached_tokens: int
    video_seconds: float
    gpu_seconds: float
