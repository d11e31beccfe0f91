"""Clips as the engine gets them: rendered, through H.264 or not, in chunks."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from occam.config import Pruning
from occam.engine import Engine
from occam.tensors import PrefixState
from occam.types import FrameBatch, MediaKind
from pipelines.evaluation.renderer import Scene, SceneConfig, draw_scene, render

CRF = 18
"""The quality that `write_mp4` uses, and so the demo's."""


def scenes(first_seed: int, config: SceneConfig | None = None) -> Iterator[Scene]:
    """Scenes of consecutive seeds, without end."""
    seed = first_seed
    while True:
        yield draw_scene(seed, config)
        seed += 1


def frames_of(scene: Scene, media: Sequence[MediaKind] = ("video",)) -> FrameBatch:
    """The scene's frames after an H.264 round trip, one a second; its first as an image for what takes no video."""
    # PyAV only where a clip is encoded: whatever else asks an engine runs without it.
    from pipelines.evaluation.codec import through_h264

    return _batch(scene, through_h264(render(scene), CRF), "video" if "video" in media else "image")


def clean_frames_of(scene: Scene, kind: MediaKind = "video") -> FrameBatch:
    """The scene's frames as they were rendered, one a second; its first as an image."""
    return _batch(scene, render(scene), kind)


def _batch(scene: Scene, frames: npt.NDArray[np.uint8], kind: MediaKind) -> FrameBatch:
    count = len(frames) if kind == "video" else 1
    return FrameBatch(
        kind=kind,
        frames=frames[:count],
        pts_seconds=np.arange(count, dtype=np.float64),
        indices=np.arange(count, dtype=np.int64),
        digest=f"scene-{scene.seed}",
    )


def states_of(engine: Engine, frames: FrameBatch, prunings: Sequence[Pruning]) -> Iterator[tuple[int, PrefixState]]:
    """The place of every pruning, and the clip's state for it: one for all that can share it, one at a time."""
    names = [state_name(engine, pruning) for pruning in prunings]
    for name in dict.fromkeys(names):
        alike = [place for place, other in enumerate(names) if other == name]
        state = engine.state_of(frames, prunings[alike[0]])
        for place in alike:
            yield place, state


def state_name(engine: Engine, pruning: Pruning) -> str:
    """The same for prunings whose states of a clip are interchangeable."""
    return repr(sorted(engine.key_facts(pruning).items()))
