"""What a task is: clips, and questions about them whose answers are known."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from occam.models.base import ModelInfo
from pipelines.evaluation.material import Sample

TUNING_SHARE = 5
"""At most one clip of so many is set aside for tuning."""
TUNING_QUESTIONS = 3
"""Asked about a tuning clip at most."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    id: unique in its task; question: as the model is asked, choices included
    answer: the right choice's letter where there are choices, else the text; kind: what is reported apart
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] | None
    kind: str


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip with its questions.

    content: stands for what is seen, in the task's digest; open: finds the frames that a model takes, reading none yet
    """

    id: str
    content: str
    items: tuple[Item, ...]
    open: Callable[[ModelInfo], Sample]

    def sample(self, info: ModelInfo) -> Sample:
        """The frames that a model takes, with the questions; InvalidInput for a clip that cannot be read."""
        return replace(self.open(info), questions=tuple(item.question for item in self.items))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked, and the clips that budgets are set on, none of which is asked about.

    missing: questions left out because their clip is not there
    """

    name: str
    clips: tuple[Clip, ...]
    tuning: tuple[Clip, ...]
    max_new_tokens: int
    missing: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of all that is asked and tuned on, in its order."""
        content = [
            [[clip.id, clip.content, [[item.question, item.answer, item.kind] for item in clip.items]] for clip in part]
            for part in (self.clips, self.tuning)
        ]
        return hashlib.sha256(json.dumps([content, self.max_new_tokens]).encode()).hexdigest()


def divided(
    clips: Sequence[Clip], limit: int | None, tuning: int, seed: int
) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """A seeded draw of clips to ask about, in their order, up to `limit` questions; and `tuning` others, or a fifth."""
    order = np.random.default_rng([seed, 0]).permutation(len(clips))
    apart = min(tuning, max(1, len(clips) // TUNING_SHARE)) if len(clips) > 1 else 0
    asked = up_to([clips[index] for index in order[apart:]], limit)
    place = {clip.id: index for index, clip in enumerate(clips)}
    return (
        tuple(sorted(asked, key=lambda clip: place[clip.id])),
        thinned([clips[index] for index in sorted(order[:apart])], seed),
    )


def up_to(clips: Sequence[Clip], limit: int | None) -> list[Clip]:
    """The first clips, with `limit` questions together."""
    taken: list[Clip] = []
    left = sum(len(clip.items) for clip in clips) if limit is None else limit
    for clip in clips:
        if left <= 0:
            break
        taken.append(replace(clip, items=clip.items[:left]))
        left -= len(clip.items)
    return taken


def thinned(clips: Sequence[Clip], seed: int) -> tuple[Clip, ...]:
    """Clips to tune on: `TUNING_QUESTIONS` drawn of each one's, since a budget is an average over questions."""
    rng = np.random.default_rng([seed, 1])
    return tuple(
        replace(clip, items=tuple(clip.items[i] for i in sorted(rng.permutation(len(clip.items))[:TUNING_QUESTIONS])))
        for clip in clips
    )
