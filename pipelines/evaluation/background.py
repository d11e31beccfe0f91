"""What lies behind a scene's objects: texture, grain and lines, dull enough that the objects stand out."""

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def draw_background(rng: np.random.Generator, side: int, clutter: int) -> npt.NDArray[np.uint8]:
    """Soft dull colours, grain and `clutter` lines, uint8 [side, side, 3]."""
    coarse = rng.uniform(30, 130) + rng.uniform(-16, 16, 3) + rng.uniform(4, 22) * rng.standard_normal((7, 7, 3))
    blend = _blend_matrix(side, 7)
    image: Floats = np.einsum("yi,ijc->yjc", blend, coarse.astype(np.float32))
    image = np.einsum("xj,yjc->yxc", blend, image, optimize=True)
    image += rng.uniform(2, 9) * _noise(side, int(rng.integers(64)))[..., None]
    for _ in range(clutter):
        _draw_line(rng, image)
    return np.clip(image, 0, 255).astype(np.uint8)


def _draw_line(rng: np.random.Generator, image: Floats) -> None:
    side = image.shape[0]
    (x0, y0), (x1, y1) = start, end = rng.uniform(0, 1, (2, 2))
    width = rng.uniform(0.004, 0.012)
    shade = (rng.uniform(30, 200) + rng.uniform(-25, 25, 3)).astype(np.float32)
    length = float(np.hypot(*(end - start))) + 1e-6
    top, bottom = (int(v * side) for v in (min(y0, y1), max(y0, y1)))
    left, right = (int(v * side) for v in (min(x0, x1), max(x0, x1)))
    x = (np.arange(left, right + 1, dtype=np.float32)[None, :] + 0.5) / side
    y = (np.arange(top, bottom + 1, dtype=np.float32)[:, None] + 0.5) / side
    distance = np.abs((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length
    alpha = np.clip((width - distance) * side + 0.5, 0, 1).astype(np.float32)[..., None]
    window = image[top : bottom + 1, left : right + 1]
    window += alpha[: window.shape[0], : window.shape[1]] * (shade - window)


@cache
def _blend_matrix(side: int, knots: int) -> Floats:
    """Linear interpolation from `knots` values to `side` pixels, [side, knots]."""
    at = np.linspace(0, knots - 1, side, dtype=np.float32)[:, None]
    weights: Floats = np.maximum(0, 1 - np.abs(at - np.arange(knots, dtype=np.float32)))
    return weights.astype(np.float32)


@cache
def _noise(side: int, index: int) -> Floats:
    """One of 64 fixed noise images: drawing fresh noise would cost more than the rest of a clip."""
    return np.random.default_rng([97, side, index]).standard_normal((side, side), dtype=np.float32)
