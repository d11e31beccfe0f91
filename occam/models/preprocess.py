"""Frames to pixels without torchvision: the stock CLIP-style processors' arithmetic, on the CPU, bit for bit."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

VERSION = "clip-1"
"""Goes into the cache key: a change of these pixels is a change of every state."""


@dataclass(frozen=True, kw_only=True)
class ClipPixels:
    """Shortest edge to `size` (bicubic, antialiased, on uint8), centre crop to `crop`, scale, normalise."""

    size: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def load(cls, directory: Path) -> "ClipPixels":
        """From the checkpoint's `preprocessor_config.json`."""
        content = json.loads((directory / "preprocessor_config.json").read_text())
        crop = content["crop_size"]
        return cls(
            size=content["size"]["shortest_edge"],
            crop=crop["height"] if isinstance(crop, dict) else crop,
            mean=tuple(content["image_mean"]),
            std=tuple(content["image_std"]),
        )

    def __call__(self, frames: NDArray[np.uint8]) -> Tensor:
        """float32 [T, 3, crop, crop] of uint8 [T, H, W, 3]."""
        height, width = frames.shape[1:3]
        short = min(height, width)
        target = (int(height * self.size / short), int(width * self.size / short))
        images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        if target != (height, width):
            images = F.interpolate(images, size=target, mode="bicubic", antialias=True)
        images = _centre_crop(images, self.crop)
        # The stock processors fold the scale into mean and std; the order decides the last bits.
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255.0 for v in (self.mean, self.std))
        return (images.float() - mean) / std


def _centre_crop(images: Tensor, crop: int) -> Tensor:
    height, width = images.shape[2:]
    top, left = (height - crop) // 2, (width - crop) // 2
    return images[:, :, top : top + crop, left : left + crop]
