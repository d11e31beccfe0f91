"""Frames to patches without torchvision: Qwen3-VL's stock image and video processors' arithmetic, bit for bit.

Legend: T frames, G temporal groups, P patches of a group, K values of a patch (channels x temporal x patch x patch).
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from occam.errors import InvalidInput
from occam.models.checkpoint import STOCK_PIXELS, Settings, check_pixels, processor_settings
from occam.models.preprocess import normalise, resize
from occam.types import FrameBatch, MediaKind

VERSION = "qwen3-vl-1"
MOST_ASPECT = 200
FRAME_TOKENS = 768
"""Visual tokens that a frame of a video may take, as in qwen-vl-utils, where the checkpoint names no number."""


@dataclass(frozen=True, kw_only=True)
class QwenPixels:
    """Fits one kind of media into its budget of pixels (bicubic, antialiased, on uint8), normalises, cuts patches.

    patch: pixels of a patch's side; merge: patches of a merge group's side; temporal: frames of a group
    least, most: pixels of an image, or of all frames of a video together
    frame_tokens: visual tokens that a frame may take (stock `cap_pixels_per_frame`), None without a cap
    """

    kind: MediaKind
    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    least: int
    most: int
    frame_tokens: int | None

    @classmethod
    def load(cls, directory: Path, kind: MediaKind) -> "QwenPixels":
        """From the checkpoint's configuration of its image or video processor.

        Frames are capped, which is what qwen-vl-utils does, unless the video processor's says otherwise.
        InvalidInput for other arithmetic.
        """
        content = processor_settings(directory, kind)
        check_pixels(content, STOCK_PIXELS)
        size = content.typed("size", Settings)
        capped = kind == "video" and content.get("cap_pixels_per_frame") is not False
        return cls(
            kind=kind,
            patch=content["patch_size"],
            merge=content["merge_size"],
            temporal=content["temporal_patch_size"],
            mean=tuple(content.typed("image_mean", list)),
            std=tuple(content.typed("image_std", list)),
            least=size["shortest_edge"],
            most=size["longest_edge"],
            frame_tokens=content.get("max_video_tokens", FRAME_TOKENS) if capped else None,
        )

    @property
    def side(self) -> int:
        """Pixels of a merge group's side: resized media are whole groups."""
        return self.patch * self.merge

    def __call__(self, media: FrameBatch) -> tuple[Tensor, tuple[int, int, int]]:
        """float32 [G * P, K], merge groups together, and the grid of patches (G, rows, columns); raises as `size`."""
        size = self.size(media)
        images = resize(torch.from_numpy(media.frames).permute(0, 3, 1, 2), size)
        return cut_patches(normalise(images, self.mean, self.std), self.patch, self.merge, self.temporal)

    def size(self, media: FrameBatch) -> tuple[int, int]:
        """Height and width after the resize, of an image or of each frame of the planned video (stock `smart_resize`).

        InvalidInput where one side is more than 200 times the other.
        """
        height, width = media.frames.shape[1:3]
        frames, counted, side, most = 1, 1, self.side, self.most
        if self.kind == "video":
            # A video of one frame is that frame twice, here as in the padding of an odd end.
            frames = max(media.planned or len(media), self.temporal)
            counted = round(frames / self.temporal) * self.temporal
            if self.frame_tokens is not None:
                share = min(self.frame_tokens * side * side, most // frames)
                most = max(share, int(self.least * 1.05)) * frames
            if height < side or width < side:
                scale = max(side / height, side / width)
                height, width = int(height * scale), int(width * scale)
        aspect = max(height, width) / min(height, width)
        if aspect > MOST_ASPECT:
            raise InvalidInput(
                f"The longer side may be {MOST_ASPECT} times the shorter one, it is {aspect:.0f} times.", self.kind
            )
        rows, columns = round(height / side), round(width / side)
        if counted * rows * columns * side * side > most:
            shrink = math.sqrt(frames * height * width / most)
            rows = max(1, math.floor(height / shrink / side))
            columns = max(1, math.floor(width / shrink / side))
        elif counted * rows * columns * side * side < self.least:
            grow = math.sqrt(self.least / (frames * height * width))
            rows, columns = math.ceil(height * grow / side), math.ceil(width * grow / side)
        return rows * side, columns * side

    @property
    def digest(self) -> str:
        """Stands for all of these settings in the cache key."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def cut_patches(images: Tensor, patch: int, merge: int, temporal: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Patches [G * P, K] of [T, 3, H, W] in the order of their merge groups, and the grid (G, rows, columns).

    An odd end is filled up with the last frame. H and W are whole merge groups.
    """
    missing = -len(images) % temporal
    images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
    groups, rows, columns = len(images) // temporal, images.shape[2] // patch, images.shape[3] // patch
    cut = images.view(groups, temporal, images.shape[1], rows // merge, merge, patch, columns // merge, merge, patch)
    # [group, merged row, merged column, row in it, column in it, channel, frame, y, x]
    ordered = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return ordered.reshape(groups * rows * columns, -1), (groups, rows, columns)
