"""Batches for the trainer, drawn and rendered on the fly in a loader's worker."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.evaluation.codec import through_h264
from pipelines.evaluation.questions import Question, draw_questions, names_unseen_pair
from pipelines.evaluation.renderer import Scene, SceneConfig, draw_scene, render
from pipelines.training.labels import DOT, ClipLabels, PatchLabels
from pipelines.training.packing import PackedText, pack, split_turns
from pipelines.training.student import FRAMES, Student, shrink

Batch = TypeVar("Batch")
MAX_FRAMES = 2 * FRAMES
SEEDS_A_RUN = 100_000
SEEDS_A_CLIP = 3
"""A batch of images has three times as many as one of the usual clips."""

SOURCES = ((192, False, 0.55), (192, True, 0.20), (384, False, 0.15), (384, True, 0.10))
"""Rendered side, through H.264 or not, and how often: what a user's file has been through before it is shrunk."""

LENGTHS = ((FRAMES, 1.0, 0.86), (1, 3.0, 0.08), (MAX_FRAMES, 0.5, 0.06))
"""Frames of a clip (one is an image), clips of a batch as a share of the usual, and how often."""

WEIGHTS = {
    "exists": 3.5,
    "color": 1.4,
    "shape": 1.8,
    "size": 1.0,
    "direction": 1.5,
    "moves": 1.2,
    "count": 2.0,
    "count_of": 2.2,
    "first": 2.5,
    "before": 4.0,
    "when": 1.2,
    "vanishes": 1.2,
    "which_vanishes": 2.4,
    "side": 0.8,
    "half": 0.8,
    "corner": 1.4,
    "dot": 1.0,
    "dot_color": 1.8,
}
"""How often each kind is drawn: telling objects apart comes first, and kinds that are learned late come more often."""

ABOUT_DOTS, COMPARING = ("dot", "dot_color"), ("first", "before")
NAMELESS = ("count", "moves", "which_vanishes")
"""Kinds whose objects only the answer tells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """frames: uint8 [B, F, 3, 96, 96]; labels: of the unpruned visual tokens, [B, V]

    named: bool [questions, 1 + DOT], what each question names, in the order of `text.kinds`, by `labels.owner`
    opening, closing: the same of what to look at where it is first on screen, and where it is last; of two that are
    compared, the second is in `closing` and `compared` [questions] tells that its first sight is meant too
    """

    frames: Tensor
    text: PackedText
    labels: ClipLabels
    named: Tensor
    opening: Tensor
    closing: Tensor
    compared: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchBatch:
    """frames: uint8 [B, F, 3, 96, 96] with what each of their patches shows."""

    frames: Tensor
    labels: PatchLabels


class ClipBatches(Dataset[ClipBatch]):
    """Batch i of a run: about `clips` clips of its own seeds, each with `questions` questions.

    register: True, False, or None for either with equal chance
    lengths: as `LENGTHS`
    """

    def __init__(
        self,
        student: type[Student],
        first_seed: int,
        clips: int,
        questions: int,
        register: bool | None = None,
        lengths: tuple[tuple[int, float, float], ...] = LENGTHS,
    ) -> None:
        self.student = student
        self.first_seed = first_seed
        self.clips = clips
        self.questions = questions
        self.register = register
        self.lengths = lengths

    def __getitem__(self, index: int) -> ClipBatch:
        first = self.first_seed + index * self.clips * SEEDS_A_CLIP
        rng = np.random.default_rng([first, 3])
        frames, share, _ = self.lengths[int(rng.choice(len(self.lengths), p=[chance for *_, chance in self.lengths]))]
        config = SceneConfig(frames=frames, unseen_pairs=False)
        scenes = [draw_scene(seed, config) for seed in range(first, first + max(1, round(self.clips * share)))]
        register = bool(rng.random() < 0.5) if self.register is None else self.register
        conversations = [conversations_about(scene, self.questions) for scene in scenes]
        questions = [question for clip in conversations for turns in clip for question in turns]
        words, layout = self.student.words, self.student.layout(frames)
        return ClipBatch(
            frames=torch.stack([shrink(show(scene, rng)) for scene in scenes]),
            text=pack(words, conversations, layout.start, register),
            labels=ClipLabels.stacked(
                [ClipLabels.of(scene, words, self.student.group) for scene in scenes], layout.patch
            ),
            named=torch.stack([_owners(_named(question)) for question in questions]),
            opening=torch.stack([_owners(_decisive(question, 0)) for question in questions]),
            closing=torch.stack([_owners(_decisive(question, 1)) for question in questions]),
            compared=torch.tensor([question.kind in COMPARING for question in questions]),
        )


def conversations_about(scene: Scene, questions: int) -> list[list[Question]]:
    """The scene's own conversations, none of which names an unseen pair: they follow from its seed."""
    rng = np.random.default_rng([scene.seed, 2])
    drawn = draw_questions(scene, rng, questions, WEIGHTS)
    return split_turns([question for question in drawn if not names_unseen_pair(question.text)], rng)


def show(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The scene as one of `SOURCES`."""
    side, codec, _ = SOURCES[int(rng.choice(len(SOURCES), p=[share for *_, share in SOURCES]))]
    frames = render(scene, side)
    return through_h264(frames, crf=int(rng.integers(16, 31))) if codec else frames


class PatchBatches(Dataset[PatchBatch]):
    """Batch i: the frames of `scenes` short crowded scenes with what each of their patches shows."""

    CROWDED = SceneConfig(frames=4, objects=(1, 6), dot_probability=0.9, unseen_pairs=False)

    def __init__(self, student: type[Student], first_seed: int, scenes: int) -> None:
        self.student = student
        self.first_seed = first_seed
        self.scenes = scenes

    def __getitem__(self, index: int) -> PatchBatch:
        first = self.first_seed + index * self.scenes
        rng = np.random.default_rng([first, 4])
        scenes = [draw_scene(seed, self.CROWDED) for seed in range(first, first + self.scenes)]
        return PatchBatch(
            frames=torch.stack([shrink(show(scene, rng)) for scene in scenes]),
            labels=PatchLabels.joined([PatchLabels.of(scene, self.student.group) for scene in scenes]),
        )


def load(batches: Dataset[Batch], first: int, stop: int) -> DataLoader[Batch]:
    """Batches first..stop-1 from one worker: on two cores a second one would take the trainer's."""
    return DataLoader(batches, batch_size=None, sampler=range(first, stop), num_workers=1, prefetch_factor=4)


def _owners(owners: tuple[int, ...]) -> Tensor:
    row = torch.zeros(1 + DOT, dtype=torch.bool)
    row[list(owners)] = True
    return row


def _named(question: Question) -> tuple[int, ...]:
    """Owners that a question names."""
    if question.kind in ABOUT_DOTS:
        return (DOT,)
    return () if question.kind in NAMELESS else tuple(1 + index for index in question.objects)


def _decisive(question: Question, side: int) -> tuple[int, ...]:
    """Owners whose first (side 0) or last (1) sight decides the answer; of two compared, one for each side."""
    owners = tuple(1 + index for index in question.objects)
    if question.kind in COMPARING:
        return owners[side : side + 1]
    return _named(question) if question.kind in ABOUT_DOTS else () if question.kind == "count" else owners
