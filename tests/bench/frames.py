"""Frames to measure on."""

import numpy as np

from occam.types import FrameBatch


def noise(count: int, size: tuple[int, int]) -> FrameBatch:
    """Random frames of so many rows and columns."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return FrameBatch(frames=pixels, pts_seconds=np.arange(float(count)), indices=np.arange(count), digest="noise")
