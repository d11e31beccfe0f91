"""Frames to measure on."""

import numpy as np

from occam.types import FrameBatch


def noise(count: int, size: tuple[int, int], seed: int = 0) -> FrameBatch:
    """Random frames of so many rows and columns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    times = np.arange(float(count))
    digest = f"noise {seed}: {count} frames of {size}"
    return FrameBatch(frames=pixels, pts_seconds=times, indices=np.arange(count), digest=digest)
