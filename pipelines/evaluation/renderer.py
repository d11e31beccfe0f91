"""Clips with known truth: a few moving, appearing and vanishing shapes on a textured, cluttered background.

A scene is drawn from a seed and is independent of resolution; lengths are fractions of the frame's side. Seeds from 0
are for training, those from `FIRST_TUNING_SEED` for calibration, those from `FIRST_TEST_SEED` for evaluation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluation.background import draw_background

FIRST_TUNING_SEED = 900_000
FIRST_TEST_SEED = 1_000_000

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (222, 38, 38),
    "green": (40, 190, 60),
    "blue": (45, 75, 235),
    "yellow": (240, 220, 40),
    "purple": (160, 50, 200),
    "cyan": (40, 215, 225),
    "white": (245, 245, 245),
}
UNSEEN_PAIRS = frozenset(
    (color, shape) for i, color in enumerate(COLORS) for j, shape in enumerate(SHAPES) if (i + j) % 5 == 0
)
"""Nine of the 42 pairs of colour and shape: no training clip shows them and no training question names them."""
SIZES = {"small": (0.075, 0.09), "big": (0.13, 0.15)}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "nowhere": (0.0, 0.0)}
DOT_RADIUS = 0.032
MIN_VISIBLE_FRAMES = 3

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What a scene is drawn from; ranges include both ends.

    objects: range of the number of objects; clutter: range of the number of background lines
    unseen_pairs: whether objects may be of `UNSEEN_PAIRS`
    """

    frames: int = 8
    objects: tuple[int, int] = (1, 4)
    clutter: tuple[int, int] = (0, 6)
    dot_probability: float = 0.35
    unseen_pairs: bool = True


BUSY = SceneConfig(objects=(4, 4), clutter=(6, 6))
EMPTY = SceneConfig(objects=(1, 1), clutter=(0, 0), dot_probability=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneObject:
    """One object: visible in frames start..stop-1, at `centers` [T, 2] (x, y), as large as `radius`."""

    shape: str
    color: str
    size: str
    direction: str
    start: int
    stop: int
    radius: float
    centers: Floats

    def visible(self, frame: int) -> bool:
        """Whether the object is on screen in this frame."""
        return self.start <= frame < self.stop


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A clip before it is drawn; `dot` is on screen for one frame and has the shape "dot"."""

    seed: int
    frames: int
    objects: tuple[SceneObject, ...]
    dot: SceneObject | None
    clutter: int

    def boxes(self, index: int) -> Floats:
        """Boxes (x0, y0, x1, y1) [T, 4] of one object, NaN where it is not on screen."""
        item = self.objects[index]
        boxes = np.concatenate([item.centers - item.radius, item.centers + item.radius], axis=1)
        boxes[: item.start] = boxes[item.stop :] = np.nan
        return boxes

    def patch_cover(self, item: SceneObject, grid: int, samples: int = 8) -> Floats:
        """Share of every patch that the object covers, [T, grid, grid], from samples x samples points a patch."""
        cover = np.zeros((self.frames, grid, grid), np.float32)
        for frame in range(item.start, item.stop):
            alpha, top, left = _stamp(item, frame, grid * samples)
            canvas = np.zeros((grid * samples, grid * samples), np.float32)
            canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
            cover[frame] = canvas.reshape(grid, samples, grid, samples).mean(axis=(1, 3))
        return cover


def draw_scene(seed: int, config: SceneConfig | None = None) -> Scene:
    """The scene of a seed: the same seed and configuration always give the same scene."""
    config = config or SceneConfig()
    rng = np.random.default_rng([seed, 0])
    objects: list[SceneObject] = []
    wanted = int(rng.integers(config.objects[0], config.objects[1] + 1))
    for _ in range(60 * wanted):
        if len(objects) == wanted:
            break
        candidate = _draw_object(rng, config.frames, objects)
        allowed = config.unseen_pairs or (candidate.color, candidate.shape) not in UNSEEN_PAIRS
        if allowed and all(_apart(candidate, other) for other in objects):
            objects.append(candidate)
    dot = _draw_dot(rng, config.frames, objects) if rng.random() < config.dot_probability else None
    clutter = int(rng.integers(config.clutter[0], config.clutter[1] + 1))
    return Scene(seed=seed, frames=config.frames, objects=tuple(objects), dot=dot, clutter=clutter)


def render(scene: Scene, side: int = 384) -> npt.NDArray[np.uint8]:
    """The scene's frames, uint8 RGB [T, side, side, 3]."""
    rng = np.random.default_rng([scene.seed, 1])
    background = draw_background(rng, side, scene.clutter)
    frames = np.repeat(background[None], scene.frames, axis=0)
    items = (*scene.objects, *((scene.dot,) if scene.dot else ()))
    for item in items:
        tint = np.clip(np.array(COLORS[item.color]) + rng.uniform(-14, 14, 3), 0, 255).astype(np.float32)
        for frame in range(item.start, item.stop):
            alpha, top, left = _stamp(item, frame, side)
            window = frames[frame, top : top + alpha.shape[0], left : left + alpha.shape[1]]
            window[:] = window + alpha[..., None] * (tint - window)
    return frames


def _draw_object(rng: np.random.Generator, frames: int, others: list[SceneObject]) -> SceneObject:
    color = str(rng.choice(list(COLORS)))
    if others and rng.random() < 0.25:
        color = others[-1].color
    size = str(rng.choice(list(SIZES)))
    radius = float(rng.uniform(*SIZES[size]))
    start, stop = _draw_span(rng, frames)
    direction = "nowhere" if frames == 1 or rng.random() < 0.4 else str(rng.choice(list(DIRECTIONS)[:4]))
    heading = np.array(DIRECTIONS[direction])
    pace = rng.uniform(0.07, 0.09) * min(1.0, 7 / max(frames - 1, 1))
    travel = pace * (stop - start - 1) * heading
    low, high = radius + 0.01 + np.maximum(0, -travel), 0.99 - radius - np.maximum(0, travel)
    origin = rng.uniform(low, high)
    steps = (np.arange(frames) - start)[:, None] / max(stop - start - 1, 1)
    return SceneObject(
        shape=str(rng.choice(SHAPES)),
        color=color,
        size=size,
        direction=direction,
        start=start,
        stop=stop,
        radius=radius,
        centers=(origin + steps * travel).astype(np.float32),
    )


def _draw_span(rng: np.random.Generator, frames: int) -> tuple[int, int]:
    shortest = min(MIN_VISIBLE_FRAMES, frames)
    start, stop = 0, frames
    if rng.random() < 0.45:
        start = int(rng.integers(0, frames - shortest + 1))
    if rng.random() < 0.3:
        stop = int(rng.integers(start + shortest, frames + 1))
    return start, stop


def _draw_dot(rng: np.random.Generator, frames: int, others: list[SceneObject]) -> SceneObject | None:
    for _ in range(30):
        frame = int(rng.integers(frames))
        center = rng.uniform(0.05, 0.95, 2).astype(np.float32)
        dot = SceneObject(
            shape="dot",
            color=str(rng.choice(list(COLORS))),
            size="small",
            direction="nowhere",
            start=frame,
            stop=frame + 1,
            radius=DOT_RADIUS,
            centers=np.tile(center, (frames, 1)),
        )
        if all(_apart(dot, other) for other in others):
            return dot
    return None


def _apart(one: SceneObject, other: SceneObject) -> bool:
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    gaps = np.abs(one.centers[start:stop] - other.centers[start:stop]).max(axis=1, initial=0.0)
    return stop <= start or bool(np.all(gaps > one.radius + other.radius + 0.01))


def _stamp(item: SceneObject, frame: int, side: int) -> tuple[Floats, int, int]:
    """Opacity of the object on the pixels of its box, with the box's top row and left column."""
    x, y = item.centers[frame] * side
    radius = item.radius * side
    left, top = (int(np.clip(np.floor(c - radius), 0, side - 1)) for c in (x, y))
    right, bottom = (int(np.clip(np.ceil(c + radius), 1, side)) for c in (x, y))
    columns = (np.arange(left, right, dtype=np.float32) + 0.5 - x) / radius
    rows = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y) / radius
    inside = -_outline(item.shape, columns[None, :], rows[:, None]) * radius
    return np.clip(inside + 0.5, 0.0, 1.0).astype(np.float32), top, left


def _outline(shape: str, x: Reals, y: Reals) -> Reals:
    """Signed distance to the outline in radii, negative inside; y grows downwards."""
    radius: Reals = np.hypot(x, y)
    across: Reals = np.abs(x)
    along: Reals = np.abs(y)
    match shape:
        case "circle" | "dot":
            return radius - 0.95
        case "square":
            box: Reals = np.maximum(across, along)
            return box - 0.82
        case "triangle":
            edges: Reals = np.maximum(y - 0.65, 0.866 * across - 0.5 * y - 0.48)
            return edges
        case "star":
            spoke: Reals = np.abs((np.arctan2(x, -y) / (2 * np.pi / 5)) % 1.0 - 0.5) * 2
            return (radius - 0.36 - 0.64 * spoke**1.6) * 0.7
        case "cross":
            wide: Reals = np.maximum(across - 0.95, along - 0.28)
            tall: Reals = np.maximum(along - 0.95, across - 0.28)
            return np.minimum(wide, tall)
        case "ring":
            band: Reals = np.abs(radius - 0.72)
            return band - 0.22
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
