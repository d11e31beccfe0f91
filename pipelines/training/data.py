"""Batches for training and evaluation, drawn and rendered on the fly in a loader's worker."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from pipelines.evaluation.codec import through_h264
from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import COLORS, DIRECTIONS, SHAPES, SIZES, Scene, SceneConfig, draw_scene, render
from pipelines.training.model import FRAMES, GRID, shrink
from pipelines.training.packing import IGNORE, PackedText, pack, split_turns
from pipelines.training.tokenizer import encode

SHAPE_LABELS = ("background", *SHAPES, "dot")
COLOR_LABELS = tuple(COLORS)
COVERED = 0.12
"""Share of a patch from which on it counts as showing an object; below it even the colour is a guess."""

MAX_OBJECTS = SceneConfig().objects[1]
NAMELESS = ("count", "moves", "which_vanishes")
"""Kinds whose objects only the answer tells."""

SOURCES = ((192, False, 0.55), (192, True, 0.20), (384, False, 0.15), (384, True, 0.10))
"""Rendered side, through H.264 or not, and how often: what a user's file has been through before it is shrunk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipBatch:
    """frames: uint8 [B, F, 3, 96, 96]; motion, onset: int64 [B, F * patches], IGNORE off the objects

    owner: int64 [B, F * patches], 1 + the index of the object on each patch, 0 for background
    shape, color: int64 [B, F * patches], ids of the words for what each patch shows, IGNORE off the objects
    named: bool [questions, 1 + MAX_OBJECTS], which objects each question names, in the order of `text.kinds`
    """

    frames: torch.Tensor
    text: PackedText
    owner: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    named: torch.Tensor
    motion: torch.Tensor
    onset: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchBatch:
    """frames: uint8 [B, 3, 96, 96]; labels int64 [B, patches]; offset: fp32 [B, patches, 2] in patches, NaN off."""

    frames: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    size: torch.Tensor
    offset: torch.Tensor


class ClipBatches(Dataset[ClipBatch]):
    """Batch i holds the clips of seeds first_seed + i * clips and on; each with `questions` questions.

    register: True, False, or None for either with equal chance
    h264_only: show every clip as the product's demonstration does, 384 pixels through H.264
    """

    def __init__(
        self, first_seed: int, clips: int, questions: int, register: bool | None, h264_only: bool = False
    ) -> None:
        self.first_seed = first_seed
        self.clips = clips
        self.questions = questions
        self.register = register
        self.h264_only = h264_only

    def __getitem__(self, index: int) -> ClipBatch:
        first = self.first_seed + index * self.clips
        rng = np.random.default_rng([first, 3])
        scenes = [draw_scene(seed) for seed in range(first, first + self.clips)]
        register = bool(rng.random() < 0.5) if self.register is None else self.register
        labels = zip(*map(_clip_labels, scenes), strict=True)
        owner, shape, color, motion, onset = (torch.stack(part) for part in labels)
        conversations = [conversations_about(scene, self.questions) for scene in scenes]
        return ClipBatch(
            frames=torch.stack([shrink(self._show(scene, rng)) for scene in scenes]),
            text=pack(conversations, FRAMES, register),
            owner=owner,
            shape=shape,
            color=color,
            named=torch.stack([_named(question) for clip in conversations for turns in clip for question in turns]),
            motion=motion,
            onset=onset,
        )

    def _show(self, scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        if self.h264_only:
            return through_h264(render(scene, 384), crf=23)
        return show(scene, rng)


def conversations_about(scene: Scene, questions: int) -> list[list[Question]]:
    """The scene's own conversations: they follow from its seed."""
    rng = np.random.default_rng([scene.seed, 2])
    return split_turns(draw_questions(scene, rng, questions), rng)


def show(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The scene as one of `SOURCES`."""
    side, codec, _ = SOURCES[int(rng.choice(len(SOURCES), p=[share for *_, share in SOURCES]))]
    frames = render(scene, side)
    return through_h264(frames, crf=int(rng.integers(16, 31))) if codec else frames


class PatchBatches(Dataset[PatchBatch]):
    """Batch i: the frames of `scenes` short crowded scenes with what each of their patches shows."""

    CROWDED = SceneConfig(frames=4, objects=(1, 6), dot_probability=0.9)

    def __init__(self, first_seed: int, scenes: int) -> None:
        self.first_seed = first_seed
        self.scenes = scenes

    def __getitem__(self, index: int) -> PatchBatch:
        first = self.first_seed + index * self.scenes
        rng = np.random.default_rng([first, 4])
        scenes = [draw_scene(seed, self.CROWDED) for seed in range(first, first + self.scenes)]
        shape, color, size, offset = (torch.cat(part) for part in zip(*map(_patch_labels, scenes), strict=True))
        frames = torch.cat([shrink(show(scene, rng)) for scene in scenes])
        return PatchBatch(frames=frames, shape=shape, color=color, size=size, offset=offset)


def load(batches: Dataset, first: int, stop: int) -> DataLoader:
    """Batches first..stop-1 from one worker: on two cores a second one would take the trainer's."""
    return DataLoader(batches, batch_size=None, sampler=range(first, stop), num_workers=1, prefetch_factor=4)


def _named(question: Question) -> torch.Tensor:
    """Owners that the question names outright, bool [1 + MAX_OBJECTS]; 0, the background, never is."""
    named = torch.zeros(1 + MAX_OBJECTS, dtype=torch.bool)
    if question.kind not in NAMELESS:
        named[[1 + index for index in question.objects]] = True
    return named


def _clip_labels(scene: Scene) -> tuple[torch.Tensor, ...]:
    """Owner, shape word, colour word, direction and first frame of what is on each patch, int64 [F * patches]."""
    owner = _owners(scene, scene.objects)
    columns = [[IGNORE], [IGNORE], [IGNORE], [IGNORE]]
    for item in scene.objects:
        motion = list(DIRECTIONS).index(item.direction)
        values = (encode(item.shape)[0], encode(item.color)[0], motion, item.start)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return torch.tensor(owner.reshape(-1)), *(torch.tensor(np.array(c)[owner].reshape(-1)) for c in columns)


def _patch_labels(scene: Scene) -> tuple[torch.Tensor, ...]:
    """Shape, colour, size [F, patches] and offset [F, patches, 2] of what the patches show."""
    items = (*scene.objects, *((scene.dot,) if scene.dot else ()))
    owner = _owners(scene, items)
    shape = [0, *(SHAPE_LABELS.index(item.shape) for item in items)]
    color = [IGNORE, *(COLOR_LABELS.index(item.color) for item in items)]
    size = [IGNORE, *(IGNORE if item is scene.dot else list(SIZES).index(item.size) for item in items)]
    centers = np.stack([np.full((scene.frames, 2), np.nan, np.float32), *(item.centers for item in items)])
    middle = np.stack(np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2), axis=-1).reshape(-1, 2)
    labels = (torch.tensor(np.array(values)[owner]) for values in (shape, color, size))
    offset = (centers[owner, np.arange(scene.frames)[:, None]] - middle) * GRID
    return (*labels, torch.tensor(offset, dtype=torch.float32))


def _owners(scene: Scene, items: tuple[object, ...]) -> npt.NDArray[np.int64]:
    """1 + the index of the item that covers most of each patch, 0 for background, [F, patches]."""
    covers = [np.full((scene.frames, GRID, GRID), COVERED, np.float32)]
    covers += [scene.patch_cover(item, GRID) * (9 if item.shape == "dot" else 1) for item in items]
    return np.argmax(covers, axis=0).reshape(scene.frames, -1)
