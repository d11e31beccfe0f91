"""Frames to pixels without torchvision: the stock CLIP-style processors' arithmetic, on the CPU, bit for bit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from occam.errors import InvalidInput
from occam.models.checkpoint import CROPPED_PIXELS, Settings, check_pixels, processor_settings
from occam.types import Framing, MediaKind

VERSION = "clip-1"
"""Goes into the cache key: a change of these pixels is a change of every state."""

ROWS = 64
"""Rows of an image that are padded to a square's width at once."""

LONGEST = 200
"""Largest ratio of an image's edges: beyond it, a resize by the shortest edge takes all memory for a crop of it."""


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """Shortest edge to `size` (bicubic, antialiased, on uint8), centre crop to `crop`, scale, normalise.

    pad: first pad to a square, in the mean colour
    """

    size: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: bool = False

    @classmethod
    def load(cls, directory: Path, kind: MediaKind) -> "ClipPixels":
        """From the checkpoint's configuration of its image or video processor; InvalidInput for other arithmetic."""
        content = processor_settings(directory, kind)
        check_pixels(content, CROPPED_PIXELS)
        crop = content["crop_size"]
        pads = str(content.get("image_processor_type")).startswith("LlavaImageProcessor")
        return cls(
            size=content.typed("size", Settings)["shortest_edge"],
            crop=crop["height"] if isinstance(crop, dict) else crop,
            mean=tuple(content.typed("image_mean", list)),
            std=tuple(content.typed("image_std", list)),
            pad=pads and content.get("do_pad", False),
        )

    @property
    def framing(self) -> Framing:
        """The part of a frame that is left of it."""
        return Framing(size=self.size, crop=self.crop, pad=self.pad)

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        """float32 [T, 3, crop, crop] of uint8 [T, H, W, 3]; InvalidInput for an image that is all edge."""
        height, width = frames.shape[1:3]
        if max(height, width) > LONGEST * min(height, width):
            raise InvalidInput(
                f"The image's edges are {width} x {height}; the longer may be {LONGEST} times the shorter.", "image"
            )
        images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        if self.pad:
            images = _resize_padded(images, self.size, self.mean)
        else:
            short = min(height, width)
            images = resize(images, (int(height * self.size / short), int(width * self.size / short)))
        return normalise(_centre_crop(images, self.crop), self.mean, self.std)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [T, 3, H, W] to (height, width) `size`: bicubic and antialiased, as the stock processors do it."""
    if size == tuple(images.shape[2:]):
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """float32 of uint8 [T, 3, H, W]; the scale is folded into mean and std, and the order decides the last bits."""
    scaled_mean, scaled_std = (torch.tensor(v).view(1, 3, 1, 1) * 255.0 for v in (mean, std))
    return (images.float() - scaled_mean) / scaled_std


def _resize_padded(images: Tensor, size: int, mean: tuple[float, ...]) -> Tensor:
    """uint8 [T, 3, size, size]: the images in the middle of a square of the mean colour, and that square resized.

    The square of a long image would be gigabytes, so rows are padded and narrowed `ROWS` at a time. A resize of the
    whole does the same: rows first, rounded to uint8, then columns.
    """
    count, channels, height, width = images.shape
    edge = max(height, width)
    top, left = (edge - height) // 2, (edge - width) // 2
    colour = torch.tensor([int(value * 255) for value in mean], dtype=torch.uint8).view(1, channels, 1, 1)

    def narrowed(rows: Tensor) -> Tensor:
        padded = colour.expand(count, channels, rows.shape[2], edge).clone()
        padded[..., left : left + width] = rows
        return resize(padded, (rows.shape[2], size))

    empty = narrowed(colour.expand(count, channels, 1, width))
    narrow = empty.expand(count, channels, edge, size).clone()
    for start in range(0, height, ROWS):
        rows = images[:, :, start : start + ROWS]
        narrow[:, :, top + start : top + start + rows.shape[2]] = narrowed(rows)
    return resize(narrow, (size, size))


def _centre_crop(images: Tensor, crop: int) -> Tensor:
    height, width = images.shape[2:]
    top, left = (height - crop) // 2, (width - crop) // 2
    return images[:, :, top : top + crop, left : left + crop]
