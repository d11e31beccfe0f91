"""What a container says about its video, read by a child process: a stranger's file is hostile to a prober too."""

import asyncio
import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from occam.errors import UnsupportedVideo, VideoTooLarge
from occam.types import MediaKind
from pipelines.ingest.limits import Limits, check_aspect, check_pixels
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.process import Child, ChildDied, in_reader
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.wire import Kind

_LOG = logging.getLogger(__name__)
_MAX_UNITS = 2**53  # sums and differences of so many are exact in every type that follows


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFacts:
    """One video stream and its timeline.

    width, height: pixels of an upright frame; turns: quarter turns to the left that make a stored frame upright
    stamps: int64 [N], presentation stamps of all frames in units of `time_base` seconds, strictly increasing
    keys: int64 [K], stamps that decoding can start from; origin: stamp that is second 0, the start of the container
    last_duration: units that the last frame is shown
    hidden: int64 [H], stamps of stored frames beside those, which are decoded like them and not shown
    plain: every stored frame is shown and no group of pictures is open, so a frame's number is its index
    """

    codec: str
    pix_fmt: str
    width: int
    height: int
    turns: int
    time_base: Fraction
    origin: int
    last_duration: int
    plain: bool
    stamps: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int64]
    sandbox: Sandbox

    def __len__(self) -> int:
        return len(self.stamps)

    def __repr__(self) -> str:
        return (
            f"VideoFacts({self.codec} {self.pix_fmt} {self.width}x{self.height}, "
            f"{len(self)} frames, {self.duration_s:.3f} s)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the timeline takes."""
        return self.stamps.nbytes + self.keys.nbytes + self.hidden.nbytes

    @property
    def pts_seconds(self) -> npt.NDArray[np.float64]:
        """float64 [N]: presentation times of all frames, from the start of the container."""
        units = (self.stamps - self.origin).astype(np.float64)
        return units * self.time_base.numerator / self.time_base.denominator

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame's appearance to the last one's end."""
        return float((int(self.stamps[-1] - self.stamps[0]) + self.last_duration) * self.time_base)

    def keys_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [T]: stamps of the key frames that decoding of these frames can start from."""
        return self.keys[np.maximum(np.searchsorted(self.keys, self.stamps[indices], "right") - 1, 0)]

    @property
    def fps(self) -> float:
        """Mean frames per second; 0 where nothing says how long a frame is shown."""
        return len(self) / self.duration_s if self.duration_s > 0 else 0.0


def probe(video: LocalFile, limits: Limits, *, deadline_s: float = 30.0) -> VideoFacts:
    """Read the timeline of the video's best video stream, and decode one frame; an image is a video of one.

    Raises UnsupportedVideo, VideoTooLarge, DecodeTimeout.
    """
    return _facts(_start(video, limits, deadline_s), video.kind, limits)


async def probe_async(video: LocalFile, limits: Limits, *, deadline_s: float = 30.0) -> VideoFacts:
    """`probe` for an event loop; cancelling it kills the child."""
    child = _start(video, limits, deadline_s)
    reading = asyncio.ensure_future(in_reader(_facts, child, video.kind, limits))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        child.kill()
        await asyncio.gather(reading, return_exceptions=True)  # its reader cannot be cancelled, and ends with it
        raise


def _start(video: LocalFile, limits: Limits, deadline_s: float) -> Child:
    return Child("pillow" if video.kind == "image" else "pyav", video, limits, deadline_s, targets=[])


def _facts(child: Child, kind: MediaKind, limits: Limits) -> VideoFacts:
    try:
        facts = _receive(child, limits)
    except ChildDied as death:
        _LOG.warning("probe: %s", death)
        raise UnsupportedVideo(f"The {kind} makes the decoder crash.") from None
    finally:
        child.close()
    check_pixels(kind, facts.width, facts.height, limits.pixels_of(kind))
    check_aspect(kind, facts.width, facts.height, limits.max_aspect)
    if facts.duration_s > limits.max_seconds:
        raise VideoTooLarge(
            f"The video lasts {facts.duration_s:.1f} s, longer than the limit of {limits.max_seconds:g} s."
        )
    return facts


def _receive(child: Child, limits: Limits) -> VideoFacts:
    message = child.receive()
    fields = child.receive_json(message.size) if message.kind == Kind.FACTS else {}
    stamps = _receive_timeline(child, Kind.STAMPS, limits)
    keys = _receive_timeline(child, Kind.KEYS, limits)
    hidden = _receive_stamps(child, Kind.HIDDEN, limits)
    if child.sandbox is None:
        raise ChildDied("the child did not say which walls stand")
    try:
        return VideoFacts(**_typed(fields), stamps=stamps, keys=keys, hidden=hidden, sandbox=child.sandbox)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ChildDied(f"the child sent facts that are none: {error}") from None


def _receive_timeline(child: Child, kind: Kind, limits: Limits) -> npt.NDArray[np.int64]:
    stamps = _receive_stamps(child, kind, limits)
    if not len(stamps) or (np.diff(stamps) <= 0).any():
        raise ChildDied("the child sent a timeline that does not increase")
    return stamps


def _receive_stamps(child: Child, kind: Kind, limits: Limits) -> npt.NDArray[np.int64]:
    message = child.receive()
    count = message.size // 8
    if message.kind != kind or count > limits.max_frames:
        raise ChildDied("the child sent no stamps, or too many")
    stamps = np.empty(count, np.int64)
    child.receive_into(stamps, message.size)
    if (stamps < -_MAX_UNITS).any() or (stamps > _MAX_UNITS).any():
        raise ChildDied("the child sent stamps out of all proportion")
    return stamps


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    numbers = {name: int(fields[name]) for name in ("width", "height", "turns", "origin", "last_duration")}
    names = {name: str(fields[name])[:40] for name in ("codec", "pix_fmt")}
    base = Fraction(int(fields["time_base"][0]), int(fields["time_base"][1]))
    if min(numbers["width"], numbers["height"]) < 1 or numbers["last_duration"] < 0 or base <= 0:
        raise ValueError("a size, a duration or the time base is not positive")
    if max(*map(abs, numbers.values()), base.numerator, base.denominator) > _MAX_UNITS:
        raise ValueError("a number is out of all proportion")
    return {**numbers, **names, "time_base": base, "plain": bool(fields["plain"])}
