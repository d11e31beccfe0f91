"""Which frames of a video to look at: pure functions of its timeline.

Uniform n picks index floor(i * N / n), as the stock Video-LLaVA example's `np.arange(0, N, N / n).astype(int)` does.
Frames are never repeated: a video of 3 frames asked for 8 gives its 3, and a model that needs 8 decides what then.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from occam.errors import InvalidInput

MAX_FPS = 1000.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What to sample: `frames` of them evenly by index, or `fps` a second (at most `max_frames`), from a range of time.

    fps: at most MAX_FPS
    start_s, end_s: seconds from the start of the video; the whole video by default
    """

    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.fps is None):
            raise InvalidInput("Exactly one of frames and fps must be given.", "fps")
        for name in ("frames", "fps", "max_frames"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InvalidInput(f"{name} must be positive, got {value}.", name)
        if self.fps is not None and self.fps > MAX_FPS:
            raise InvalidInput(f"fps is {self.fps:g}, more than the limit of {MAX_FPS:g}.", "fps")
        if not 0 <= self.start_s < float("inf"):
            raise InvalidInput(f"start_s must be at least 0, got {self.start_s}.", "start_s")
        if self.end_s is not None and not self.end_s > self.start_s:
            raise InvalidInput(f"end_s must be larger than start_s ({self.start_s}), got {self.end_s}.", "end_s")


def sample(pts_seconds: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.int64]:
    """Return the indices [T] of the frames to decode, strictly increasing, at least one.

    pts_seconds: float64 [N], presentation times of all frames, increasing. Raises InvalidInput for a range that
    begins behind the last of them.
    """
    first, stop = _range(pts_seconds, sampling)
    if sampling.fps is not None:
        indices = _by_rate(pts_seconds, first, stop, sampling.fps, max(sampling.start_s, float(pts_seconds[first])))
        if sampling.max_frames is None or len(indices) <= sampling.max_frames:
            return indices
    wanted = min(n for n in (sampling.frames, sampling.max_frames) if n is not None)
    return np.unique(first + np.arange(wanted) * (stop - first) // wanted)


def _range(pts_seconds: npt.NDArray[np.float64], sampling: Sampling) -> tuple[int, int]:
    """Frames first..stop-1 are on display within the range; the first may have appeared before it."""
    length = float(pts_seconds[-1])
    if sampling.start_s > length:
        raise InvalidInput(f"start_s is {sampling.start_s}, and the last frame appears at {length:.3f} s.", "start_s")
    first = max(int(np.searchsorted(pts_seconds, sampling.start_s, "right")) - 1, 0)
    if sampling.end_s is None:
        return first, len(pts_seconds)
    return first, max(int(np.searchsorted(pts_seconds, sampling.end_s, "left")), first + 1)


def _by_rate(
    pts_seconds: npt.NDArray[np.float64], first: int, stop: int, fps: float, start_s: float
) -> npt.NDArray[np.int64]:
    """Frames on display at start_s, start_s + 1 / fps, ... until the last frame of the range has appeared.

    A frame is one of them iff a tick falls between its appearance and the next frame's: as many steps as frames,
    however many ticks there are.
    """
    ticks_before = np.ceil((pts_seconds[first + 1 : stop] - 1e-6 - start_s) * fps).clip(0)
    ticks = int(max(pts_seconds[stop - 1] - start_s, 0) * fps + 1e-6) + 1
    return first + np.flatnonzero(np.diff(ticks_before, prepend=0, append=ticks) > 0)
