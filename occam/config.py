"""What can be chosen: frozen keyword-only dataclasses, validated when made, mutated by nobody."""

from dataclasses import dataclass
from typing import Literal, get_args

from occam.errors import InvalidInput

RegisterMode = Literal["neurons", "zero_token", "mean_threshold"]
Evaluators = Literal["question", "turn"]
RegisterPlacement = Literal["after_norm", "before_norm"]

_MODES = {
    "register": get_args(RegisterMode),
    "evaluators": get_args(Evaluators),
    "placement": get_args(RegisterPlacement),
}


@dataclass(frozen=True, kw_only=True)
class NoPruning:
    """Strategy `none`: every visual token is kept, CLS tokens included, exactly as the stock model does."""

    name: str = "none"


@dataclass(frozen=True, kw_only=True)
class OccamToken:
    """Strategy `occam` (arXiv 2605.29657): keep a token iff its score reaches lambda times the register's.

    lambda1: stage I, per frame, in the vision tower (eq. 6); 0 keeps all
    lambda2: stage II, per question, before decoder layer `cut` (eq. 17); 0 keeps all
    cut: decoder layers that run on all stage I survivors; layer cut - 1 (0-based) scores
    register: where the reference comes from; a model without register neurons names its fallback here
    evaluators: text tokens that score: the question's own, or all of the turn's (template tokens included)
    min_tokens: stage II keeps at least so many, by score
    keep_cls: pass CLS tokens to the language model as the stock model does (they are then never pruned)
    placement: where the tower's register token enters: behind `pre_layrnorm` (a zero there) or in front of it
    """

    lambda1: float
    lambda2: float
    cut: int
    register: RegisterMode
    evaluators: Evaluators = "turn"
    min_tokens: int = 1
    keep_cls: bool = False
    placement: RegisterPlacement = "after_norm"
    name: str = "occam"

    def __post_init__(self) -> None:
        for field_name in ("lambda1", "lambda2"):
            value = getattr(self, field_name)
            if not 0 <= value < float("inf"):
                raise InvalidInput(f"{field_name} must be a finite number of at least 0, got {value}.", field_name)
        if self.cut < 1:
            raise InvalidInput(f"cut must be at least 1, got {self.cut}.", "cut")
        if self.min_tokens < 0:
            raise InvalidInput(f"min_tokens must be at least 0, got {self.min_tokens}.", "min_tokens")
        for field_name, known in _MODES.items():
            value = getattr(self, field_name)
            if value not in known:
                raise InvalidInput(f"{field_name} must be one of {', '.join(known)}, got {value!r}.", field_name)


Pruning = NoPruning | OccamToken


LEAST_TEMPERATURE = 1e-3
SEEDS = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How an answer is decoded: greedy at temperature 0, else seeded nucleus sampling.

    temperature: 0, or from `LEAST_TEMPERATURE` (below it, logits divided by it overflow) to 2; seed: within `SEEDS`
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.", "max_tokens")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 2:
            raise InvalidInput(
                f"temperature must be 0 or lie in {LEAST_TEMPERATURE:g}..2, got {self.temperature:g}.", "temperature"
            )
        if not 0 < self.top_p <= 1:
            raise InvalidInput(f"top_p must lie in (0, 1], got {self.top_p}.", "top_p")
        if not SEEDS[0] <= self.seed <= SEEDS[1]:
            raise InvalidInput(f"seed must lie in {SEEDS[0]}..{SEEDS[1]}, got {self.seed}.", "seed")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Which model runs, and how.

    model: the name of an embedded model, or a path or hub name of a checkpoint
    chunk_frames: frames that one `append` takes; part of the cache key, since batching moves the last bits
    threads: torch threads; part of what makes warm and cold runs bitwise equal
    """

    model: str = "tiny-video-llava"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    chunk_frames: int = 2
    threads: int = 2
