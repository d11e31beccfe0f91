"""An engine without a model for the evaluation harness: it keeps what its budget says, and answers by a rule."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np

from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from occam.stats import VisualTokenCounts
from occam.types import Answer, Evidence, FrameBatch, FrameEvidence, Turn

GRID = 4
INFO = ModelInfo(
    name="judged",
    family="fake",
    digest="0" * 64,
    config_digest="1" * 64,
    text_digest="2" * 64,
    preprocessing="",
    frames=4,
    media=("video",),
    layers=2,
    cut=1,
    max_positions=512,
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A strategy that keeps a share."""

    name: str
    share: float
    options: tuple[tuple[str, Any], ...] = ()


class JudgedEngine:
    """`answer(question, share kept, frames)` is what it says; `answered` counts its questions, `built` its states."""

    config = EngineConfig(model="judged", threads=1)
    info = INFO
    lm = None
    state_of = Engine.state_of

    def __init__(self, answer: Callable[[str, float, FrameBatch], str]) -> None:
        self.answer = answer
        self.answered = 0
        self.built = 0

    def pruning(self, strategy: str, **options: Any) -> Kept:
        shares = {
            "none": lambda: 1.0,
            "nothing": lambda: 0.0,
            "random": lambda: options["budget"],
            "late": lambda: options["budget"],
            "dtd": lambda: ((options["tau"] + 1) / 2) ** 2,
        }
        if strategy not in shares:
            raise InvalidInput(f"There is no strategy {strategy!r}.", "strategy")
        return Kept(name=strategy, share=shares[strategy](), options=tuple(sorted(options.items())))

    def key_facts(self, pruning: Kept) -> dict[str, Any]:
        return {"strategy": pruning.name, "share": 0.0 if pruning.name == "late" else pruning.share}

    def cuts(self, pruning: Kept) -> tuple[int, ...]:
        return tuple(value for name, value in pruning.options if name == "cut")

    def asked(self, pruning: Kept, question: str) -> Kept:
        return pruning

    def chunk(self, pruning: Kept, frames: int) -> int:
        return self.config.chunk_frames

    def begin(self, pruning: Kept) -> Any:
        self.built += 1
        return None

    def append(self, state: Any, frames: FrameBatch, pruning: Kept) -> Any:
        return SimpleNamespace(frames=frames if state is None else state.frames, count=len(frames)), ()

    def over(self, lm: Any) -> "JudgedEngine":
        return self

    def generation(self, state: Any, question: str, pruning: Kept, sampling: SamplingParams) -> Any:
        return state, question, pruning, sampling

    def answers(self, generations: list[Any]) -> list[Answer]:
        return [self.ask(*each) for each in generations]

    def ask(self, state: Any, question: str, pruning: Kept, sampling: SamplingParams) -> Answer:
        self.answered += 1
        encoded = self.info.frames * GRID**2
        kept = np.zeros(GRID**2, bool)
        kept[: round(pruning.share * GRID**2)] = True
        view = kept.reshape(GRID, GRID)
        frames = tuple(
            FrameEvidence(
                medium=0,
                index=int(index),
                pts_s=0.0,
                of=GRID**2,
                grid=(GRID, GRID),
                stage1=view,
                stage2=view,
                scores=np.zeros((GRID, GRID), np.float32),
            )
            for index in state.frames.indices
        )
        return Answer(
            text=self.answer(question, pruning.share, state.frames),
            turn=Turn(suffix_ids=(), generated_ids=()),
            finish_reason="stop",
            prompt_tokens=0,
            reused_tokens=0,
            completion_tokens=1,
            visual_tokens=VisualTokenCounts(encoded=encoded, stage1=encoded, stage2=round(pruning.share * encoded)),
            evidence=Evidence(threshold=0.0, frames=frames),
        )


def drawn(question: str, share: float, frames: FrameBatch) -> str:
    """One of the embedded task's commonest words, the more often another the less was kept; seeded by the question."""
    words = ("yes", "no", "red", "one", "big")
    seed = sha256(f"{question} {share:.2f} {frames.digest}".encode()).digest()[0]
    return words[seed % len(words)]
