"""What every patch of every view shows: the truth behind the dense heads and the taught attention.

Legend: F frames, M views of `group` frames, G * G patches (or merge groups) in a view.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.evaluation.renderer import COLORS, DIRECTIONS, SHAPES, SIZES, Scene, SceneConfig, SceneObject
from pipelines.training.packing import IGNORE
from pipelines.training.student import GRID
from pipelines.training.tokenizer import Words

SHAPE_LABELS = ("background", *SHAPES, "dot")
COLOR_LABELS = tuple(COLORS)
DOT = 1 + SceneConfig().objects[1]
COVERED = 0.12
"""Share of a patch from which on it counts as showing an object; below it even the colour is a guess."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipLabels:
    """Of the patches of a clip, int64 [M * G * G]; IGNORE off the objects and the dot.

    owner: 1 + the index of the object, `DOT` for the dot, 0 for background; shape, color: ids of the words for it
    motion: its direction; onset: its first frame; opens, closes: 1 where the view is the first or last that shows it
    view: the patch's own view, everywhere
    """

    owner: Tensor
    shape: Tensor
    color: Tensor
    motion: Tensor
    onset: Tensor
    opens: Tensor
    closes: Tensor
    view: Tensor

    @classmethod
    def of(cls, scene: Scene, words: Words, group: int) -> "ClipLabels":
        """The truth about a scene."""
        items = _items(scene)
        owner = _owners(scene, items, group)
        views = np.arange(len(owner))[:, None]
        first = np.array([IGNORE, *(item.start // group for item in items)])
        last = np.array([IGNORE, *((item.stop - 1) // group for item in items)])
        values = {
            "owner": [0, *(DOT if item is scene.dot else 1 + index for index, item in enumerate(items))],
            "shape": [IGNORE, *(words.id(item.shape) for item in items)],
            "color": [IGNORE, *(words.id(item.color) for item in items)],
            "motion": [IGNORE, *(list(DIRECTIONS).index(item.direction) for item in items)],
            "onset": [IGNORE, *(item.start for item in items)],
        }
        planes = {name: np.array(column)[owner] for name, column in values.items()}
        planes |= {"view": np.broadcast_to(views, owner.shape)}
        planes |= {"opens": first[owner] == views, "closes": last[owner] == views}
        return cls(**{name: torch.tensor(plane.reshape(-1).astype(np.int64)) for name, plane in planes.items()})

    @classmethod
    def stacked(cls, clips: list["ClipLabels"], patch_V: Tensor) -> "ClipLabels":
        """Several clips' labels at their visual tokens [B, V]; a CLS token (patch -1) has only IGNORE."""

        def place(name: str) -> Tensor:
            plane = torch.stack([getattr(clip, name) for clip in clips])
            return torch.where(patch_V < 0, IGNORE, plane[:, patch_V.clamp(min=0)])

        return cls(**{field.name: place(field.name) for field in fields(cls)})

    def at(self, index_BV: Tensor) -> "ClipLabels":
        """The labels of these visual tokens."""
        return ClipLabels(**{field.name: getattr(self, field.name).gather(1, index_BV) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchLabels:
    """Of the patches of M views, int64 [M, G * G]; IGNORE where there is nothing to tell.

    place: the patch's own row and column as one number; seen: bit k set where the object shows in frame k of the view
    offset: fp32 [M, G * G, 2 * group], the object's centre in patches from the patch's, NaN where it is not on screen
    """

    shape: Tensor
    color: Tensor
    size: Tensor
    place: Tensor
    seen: Tensor
    offset: Tensor

    @classmethod
    def of(cls, scene: Scene, group: int) -> "PatchLabels":
        """The truth about a scene."""
        items = _items(scene)
        owner = _owners(scene, items, group)
        values = (
            [0, *(SHAPE_LABELS.index(item.shape) for item in items)],
            [IGNORE, *(COLOR_LABELS.index(item.color) for item in items)],
            [IGNORE, *(IGNORE if item is scene.dot else list(SIZES).index(item.size) for item in items)],
        )
        shape, color, size = (torch.tensor(np.array(column)[owner]) for column in values)
        seen, offset = _sightings(scene, items, owner, group)
        place = torch.arange(GRID * GRID).expand(len(owner), -1)
        return cls(shape=shape, color=color, size=size, place=place, seen=seen, offset=offset)

    @classmethod
    def joined(cls, scenes: list["PatchLabels"]) -> "PatchLabels":
        """Several scenes' labels, views one behind the other."""
        return cls(**{f.name: torch.cat([getattr(scene, f.name) for scene in scenes]) for f in fields(cls)})


def _sightings(
    scene: Scene, items: tuple[SceneObject, ...], owner_MP: npt.NDArray[np.int64], group: int
) -> tuple[Tensor, Tensor]:
    """In which frames of its view a patch's object is on screen, and where; see `PatchLabels`."""
    frames = np.minimum(np.arange(len(owner_MP) * group), scene.frames - 1).reshape(-1, 1, group)
    nowhere = np.full((scene.frames, 2), np.nan, np.float32)
    centers = np.stack([nowhere, *(np.where(_on_screen(item)[:, None], item.centers, np.nan) for item in items)])
    at = centers[owner_MP[..., None], frames]
    middle = np.stack(np.meshgrid(*[(np.arange(GRID) + 0.5) / GRID] * 2), axis=-1).reshape(-1, 1, 2)
    bits = (~np.isnan(at[..., 0]) * (1 << np.arange(group))).sum(axis=-1)
    offset = torch.tensor(((at - middle) * GRID).reshape(*owner_MP.shape, 2 * group), dtype=torch.float32)
    return torch.tensor(np.where(owner_MP > 0, bits, IGNORE)), offset


def _on_screen(item: SceneObject) -> npt.NDArray[np.bool_]:
    frames = np.arange(len(item.centers))
    return (item.start <= frames) & (frames < item.stop)


def _items(scene: Scene) -> tuple[SceneObject, ...]:
    """The objects, and the dot behind them where there is one."""
    return (*scene.objects, *((scene.dot,) if scene.dot else ()))


def _owners(scene: Scene, items: tuple[SceneObject, ...], group: int) -> npt.NDArray[np.int64]:
    """1 + the index of the item that covers most of each patch in any frame of a view, 0 for background, [M, G * G]."""
    covers = [np.full((scene.frames, GRID, GRID), COVERED, np.float32)]
    covers += [scene.patch_cover(item, GRID) * (9 if item.shape == "dot" else 1) for item in items]
    cover = np.stack(covers)
    cover = np.concatenate([cover, cover[:, -1:].repeat(-scene.frames % group, axis=1)], axis=1)
    most = cover.reshape(len(covers), -1, group, GRID * GRID).max(axis=2)
    owner: npt.NDArray[np.int64] = np.argmax(most, axis=0)
    return owner
