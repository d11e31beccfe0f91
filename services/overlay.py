"""What an answer rests on, drawn over a frame: kept patches clear, pruned ones dimmed, what was cut off hatched."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw

from occam.types import Framing

View = Literal["kept", "scores"]

LONGEST = 1280
"""Pixels of an overlay's longest side."""
_DIM, _UNSEEN = 0.3, 0.12
_HATCH, _STEP, _EDGE = (90, 90, 90), 12, (235, 235, 235)
# From little to much: dark blue, teal, green, yellow; brightness grows with the score, so that grey shows the same.
_RAMP = np.array([[40, 20, 90], [40, 100, 140], [70, 180, 110], [250, 230, 60]], np.float64)
_HEAT = 0.65


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """The patches of one view of a frame.

    kept: bool [rows, columns]; levels: uint8 [rows, columns], from 1 for a score of 0 to 255, and 0 where there is none
    """

    kept: npt.NDArray[np.bool_]
    levels: npt.NDArray[np.uint8]


def path_of(session_id: str, turn: int, medium: int, index: int) -> str:
    """Where an overlay is."""
    path = f"/v1/sessions/{session_id}/turns/{turn}/frames/{index}.png"
    return f"{path}?medium={medium}" if medium else path


def draw(frame: npt.NDArray[np.uint8], views: Sequence[Patches], framing: Framing, view: View) -> bytes:
    """A PNG of the frame, at most LONGEST pixels long.

    frame: uint8 [H, W, 3]; views: all that the model had of it, which say together what was kept
    framing: which part of the frame each view's grid covers
    """
    image = Image.fromarray(frame)
    box = framing.box(image.height, image.width)
    image.thumbnail((LONGEST, LONGEST))
    scale = image.width / frame.shape[1], image.height / frame.shape[0]
    left, top, right, bottom = (round(edge * scale[axis % 2]) for axis, edge in enumerate(box))
    area = left, top, max(right, left + 1), max(bottom, top + 1)
    grey = image.convert("L").convert("RGB")
    drawn = _hatched(_darker(grey, _UNSEEN))
    drawn.paste(_darker(grey, _DIM), mask=_over(np.ones((1, 1), bool), image.size, area))
    if view == "kept":
        drawn.paste(image, mask=_union([_over(patches.kept, image.size, area) for patches in views]))
    else:
        for patches in views:
            heat = _over(patches.levels, image.size, area)
            coloured = Image.fromarray(_coloured(np.asarray(heat)))
            drawn.paste(Image.blend(grey, coloured, _HEAT), mask=_over(patches.levels > 0, image.size, area))
    if area != (0, 0, *image.size):
        ImageDraw.Draw(drawn).rectangle((area[0], area[1], area[2] - 1, area[3] - 1), outline=_EDGE)
    png = io.BytesIO()
    drawn.save(png, "PNG", compress_level=3)
    return png.getvalue()


def _over(
    values: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], size: tuple[int, int], area: tuple[int, int, int, int]
) -> Image.Image:
    """A grid's values over the area, 0 around it, as one plane of `size`; true is 255."""
    plane = Image.fromarray(values.astype(np.uint8) * 255 if values.dtype == bool else values)
    over = Image.new("L", size)
    over.paste(plane.resize((area[2] - area[0], area[3] - area[1]), Image.Resampling.NEAREST), area[:2])
    return over


def _union(masks: Sequence[Image.Image]) -> Image.Image:
    whole = masks[0]
    for mask in masks[1:]:
        whole = ImageChops.lighter(whole, mask)
    return whole


def _darker(image: Image.Image, share: float) -> Image.Image:
    return image.point(lambda value: value * share)


def _hatched(image: Image.Image) -> Image.Image:
    """Strokes from the lower left to the upper right, over all of it."""
    pen = ImageDraw.Draw(image)
    for at in range(0, image.width + image.height, _STEP):
        pen.line((at - image.height, image.height, at, 0), fill=_HATCH)
    return image


def _coloured(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] of uint8 [H, W]."""
    anchors = np.linspace(0, 255, len(_RAMP))
    table = np.stack([np.interp(np.arange(256), anchors, channel) for channel in _RAMP.T], axis=1)
    return table.astype(np.uint8)[values]
