"""LLaVA-NeXT's tiles ("anyres"): an image once whole and once in tiles of the tower's size, as the stock code does.

Sizes are (height, width), in pixels or in patches.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from occam.errors import InvalidInput
from occam.models.checkpoint import CROPPED_PIXELS, Settings, check_pixels, processor_settings, read_settings
from occam.models.compact import Layout
from occam.models.preprocess import normalise, resize

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AnyRes:
    """Pixels and token layout of an image whose tiles fill the best of the `pinpoints` resolutions.

    edge: of a tile, in pixels
    """

    pinpoints: tuple[Size, ...]
    edge: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def load(cls, directory: Path) -> "AnyRes":
        """From the checkpoint's configurations of model and image processor.

        InvalidInput where they disagree or ask for other arithmetic; do_pad only fills up batches of several images.
        """
        config = read_settings(directory / "config.json")
        content = processor_settings(directory, "image")
        check_pixels(content, CROPPED_PIXELS)
        pinpoints = config.typed("image_grid_pinpoints", list)
        edge = config.typed("vision_config", Settings)["image_size"]
        sizes = (content.typed("size", Settings)["shortest_edge"], content.typed("crop_size", Settings)["height"])
        if content["image_grid_pinpoints"] != pinpoints or sizes != (edge, edge):
            raise InvalidInput(
                f"Model and image processor disagree: pinpoints {pinpoints} and {content['image_grid_pinpoints']}, "
                f"edges {edge} and {sizes}.",
                "model",
            )
        return cls(
            pinpoints=tuple((height, width) for height, width in pinpoints),
            edge=edge,
            mean=tuple(content.typed("image_mean", list)),
            std=tuple(content.typed("image_std", list)),
        )

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        """float32 [1 + tiles, 3, edge, edge] of uint8 [1, H, W, 3]: the whole image, then its tiles row by row."""
        image = torch.from_numpy(frames).permute(0, 3, 1, 2)
        size = image.shape[2], image.shape[3]
        best = self.best_resolution(size)
        fitted = resize(image, _fit(size, best))
        missing = [best[axis] - fitted.shape[2 + axis] for axis in (0, 1)]
        before = [count // 2 for count in missing]
        padded = F.pad(fitted, (before[1], missing[1] - before[1], before[0], missing[0] - before[0]))
        tiles = padded.reshape(3, best[0] // self.edge, self.edge, best[1] // self.edge, self.edge)
        tiles = tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)
        return normalise(torch.cat([resize(image, (self.edge, self.edge)), tiles]), self.mean, self.std)

    def layout(self, size: Size, side: int) -> Layout:
        """View 0: the whole image's patches; view 1: the tiles' as one grid, cut to the image, a newline behind rows.

        size: of the image in pixels; side: patches along a tile
        """
        down, across = (length // self.edge for length in self.best_resolution(size))
        passes, patches = 1 + down * across, side * side
        index_FP = torch.arange(passes * (1 + patches)).view(passes, 1 + patches)[:, 1:]
        grid = index_FP[1:].view(down, across, side, side).transpose(1, 2).reshape(down * side, across * side)
        fine = unpad(grid, size)
        rows, columns = fine.shape
        newline = torch.full((rows, 1), -1)
        fine_patch = torch.cat([torch.arange(fine.numel()).view(rows, columns), newline], dim=1).flatten()
        view = torch.cat([torch.zeros(patches, dtype=torch.int64), torch.ones_like(fine_patch)])
        return Layout(
            tower=(passes, patches),
            source=torch.cat([index_FP[0], torch.cat([fine, newline], dim=1).flatten()]),
            view=view,
            patch=torch.cat([torch.arange(patches), fine_patch]),
            grid=torch.tensor([[side, side], [rows, columns]]),
            frame=torch.zeros(2, dtype=torch.int64),
        )

    def best_resolution(self, size: Size) -> Size:
        """The pinpoint that keeps most of the image's pixels and, among those, wastes the fewest of its own."""

        def merit(pinpoint: Size) -> tuple[int, int]:
            scale = min(pinpoint[1] / size[1], pinpoint[0] / size[0])
            effective = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
            return effective, effective - pinpoint[0] * pinpoint[1]

        return max(self.pinpoints, key=merit)


def unpad(grid: Tensor, size: Size) -> Tensor:
    """The middle of a patch grid [rows, columns] that shows an image of `size` pixels; the rest is padding."""
    rows, columns = grid.shape
    if size[1] / size[0] > columns / rows:
        padding = (rows - _rounded(size[0] * (columns / size[1]))) // 2
        return grid[padding : rows - padding]
    padding = (columns - _rounded(size[1] * (rows / size[0]))) // 2
    return grid[:, padding : columns - padding]


def _rounded(length: float) -> int:
    """Whole patches of a length; rounding to seven places first undoes what floats put a hair below a whole one."""
    return int(round(length, 7))


def _fit(size: Size, best: Size) -> Size:
    """The largest size of the image's aspect ratio within `best`."""
    down, across = best[0] / size[0], best[1] / size[1]
    if across < down:
        return min(math.ceil(size[0] * across), best[0]), best[1]
    return best[0], min(math.ceil(size[1] * down), best[1])
