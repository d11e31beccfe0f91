"""What a checkpoint is calibrated on: clips with their questions, and the digest that names all of it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from occam.types import FrameBatch, MediaKind
from pipelines.evaluation.accuracy import questions_about
from pipelines.evaluation.clips import CRF, frames_of, scenes
from pipelines.evaluation.questions import Question
from pipelines.evaluation.renderer import FIRST_TUNING_SEED, Scene, SceneConfig

QUESTIONS = 3

Progress = Callable[[str, int, int], None]
"""Told a phase, how many of its clips are done, and how many it has."""


def ignore(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
    del phase, done, total


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is known of a clip that was rendered: its scene, and the questions with the objects they name."""

    scene: Scene
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip with the questions asked about it; whoever needs frames reads them, and lets them go.

    digest: stands for the clip's bytes, or for what it was rendered from; count: its frames
    read: gives frames start..stop-1; truth: None for a clip that nobody knows it of
    """

    digest: str
    count: int
    questions: tuple[str, ...]
    read: Callable[[int, int], FrameBatch]
    truth: Truth | None = None

    @classmethod
    def of(cls, frames: FrameBatch, questions: Sequence[str]) -> "Sample":
        """A clip that is in memory already."""
        return cls(digest=frames.digest, count=len(frames), questions=tuple(questions), read=frames.chunk)

    @classmethod
    def known(
        cls, frames: FrameBatch, scene: Scene, questions: Sequence[Question], digest: str | None = None
    ) -> "Sample":
        """A rendered clip that is in memory already, and questions about its scene."""
        texts = [question.text for question in questions]
        return replace(
            cls.of(frames, texts),
            digest=digest or frames.digest,
            truth=Truth(scene=scene, questions=tuple(questions)),
        )

    def frames(self) -> FrameBatch:
        """The whole clip."""
        return self.read(0, self.count)

    def middle(self) -> FrameBatch:
        """Its middle frame."""
        return self.read(self.count // 2, self.count // 2 + 1)


def rendered(count: int, media: Sequence[MediaKind]) -> list[Sample]:
    """Rendered clips of the tuning seeds, as a model that takes `media` gets them."""
    config = SceneConfig()
    return [
        Sample.known(
            frames_of(scene, media),
            scene,
            questions_about(scene, QUESTIONS),
            digest=f"seed {scene.seed}, {config}, crf {CRF}",
        )
        for scene in islice(scenes(FIRST_TUNING_SEED, config), count)
    ]


def digest_of(samples: Sequence[Sample]) -> str:
    """SHA-256 of the clips, the number of frames taken of each, and the questions, in their order."""
    content = [[sample.digest, sample.count, sample.questions] for sample in samples]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def counted(phase: str, samples: Sequence[Sample], progress: Progress) -> Iterator[Sample]:
    """The samples; `progress` is told how many are done."""
    progress(phase, 0, len(samples))
    for done, sample in enumerate(samples, start=1):
        yield sample
        progress(phase, done, len(samples))
