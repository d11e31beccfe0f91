"""Decoding in a child process that can be killed, chunk by chunk: the first is there long before the last.

decord decodes where it is right and most of a video is looked at, PyAV elsewhere (`route`); where decord fails, a new
child goes on with PyAV. An image is a video of one frame, which Pillow decodes.
"""

import logging
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from occam.errors import UnsupportedVideo
from occam.types import FrameBatch
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.probe import VideoFacts
from pipelines.ingest.process import Child, ChildDied, in_reader
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.wire import BackendFailed, Kind

_LOG = logging.getLogger(__name__)

Backend = Literal["decord", "pyav", "pillow"]
_DECORD_CODECS = {"h264", "hevc", "mpeg4", "vp8", "vp9", "libvpx", "libvpx-vp9"}
_DECORD_FORMATS = {"yuv420p", "yuvj420p"}
_USUAL_FPS = 60.0


def route(video: LocalFile, facts: VideoFacts, indices: npt.NDArray[np.int64]) -> Backend:
    """Name the backend that decodes these frames of the video correctly, and in time that they alone take.

    decord has no AV1 and no GIF, fails below a width of 32, and gives wrong frames with edit lists, in open groups of
    pictures, in transport streams and in AVI with B-frames; beyond 8 bits its colours are off. It reads the whole file
    before the first frame, so frames that lie in less than half of it are PyAV's, which seeks.
    """
    if video.kind == "image":
        return "pillow"
    if 2 * (int(indices[-1]) - int(indices[0]) + 1) < len(facts):
        return "pyav"
    right = (
        video.reader in ("mov", "matroska")
        and facts.codec in _DECORD_CODECS
        and facts.pix_fmt in _DECORD_FORMATS
        and min(facts.width, facts.height) >= 32
        and facts.plain
    )
    return "decord" if right else "pyav"


def walked_s(video: LocalFile, facts: VideoFacts, indices: npt.NDArray[np.int64]) -> float:
    """Seconds of the video that decoding of these frames walks through, from key frames to them; an image has none.

    No fewer than the frames on the way, hidden ones among them, take at 60 a second: the file's clock says what its
    author likes, and few cameras and screens are faster. `_Walk` in `pyav_backend` is the walk.
    """
    if video.kind == "image":
        return 0.0
    stamps, wanted = facts.stamps, facts.stamps[indices]
    stored = np.sort(np.append(stamps, facts.hidden))
    begins = facts.keys_of(indices) - _lead(video, facts)
    # What lies behind `before`, up to the wanted frame: either a seek leads there, or the walk has come so far.
    before = np.where(begins > np.append(stamps[0], wanted[:-1]), begins - 1, np.append(stored[0] - 1, wanted[:-1]))
    frames = np.searchsorted(stored, wanted, "right") - np.searchsorted(stored, before, "right")
    edges = np.append(stamps, stamps[-1] + facts.last_duration)
    units = (edges[indices + 1] - edges[np.searchsorted(stamps, before, "right")]).sum(dtype=np.float64)
    return max(float(int(units) * facts.time_base), int(frames.sum()) / _USUAL_FPS)


def _lead(video: LocalFile, facts: VideoFacts) -> int:
    """Units that a seek starts ahead of a key frame: a second where decoding time, which runs ahead, is searched."""
    return round(1 / facts.time_base) if video.reader == "mpegts" else 0


@dataclass
class DecodeStats:
    """How a decoding went, on the caller's monotonic clock.

    backends: those that were tried, in order, with the frames that each gave
    chunk_ended_s: when the last frame of each chunk left the decoder; frames: how many were given in all
    """

    started_s: float
    backends: dict[Backend, int] = field(default_factory=dict)
    chunk_ended_s: list[float] = field(default_factory=list)
    sandbox: Sandbox | None = None

    @property
    def frames(self) -> int:
        """Frames decoded and handed over so far."""
        return sum(self.backends.values())


class FrameStream:
    """Chunks of the frames `indices` of one video, as they are decoded; iterate once, and close (or use `with`).

    indices: int64 [T], strictly increasing, as `sample` gives them
    deadline_s: seconds that decoding may keep the caller waiting in all; the caller's own time between chunks is free
    Decoding begins at once. Iterating raises UnsupportedVideo, VideoTooLarge, DecodeTimeout; closing, which is safe
    from any thread and at any time, ends it.
    """

    def __init__(
        self,
        video: LocalFile,
        facts: VideoFacts,
        indices: npt.NDArray[np.int64],
        limits: Limits,
        *,
        chunk_frames: int,
        deadline_s: float = 60.0,
    ) -> None:
        self.stats = DecodeStats(started_s=time.monotonic())
        self._video, self._facts, self._limits = video, facts, limits
        self._indices, self._chunk_frames = indices, chunk_frames
        self._done = 0
        self._last_stamp = int(facts.stamps[0]) - 1
        self._closed = False
        self._guard = threading.Lock()  # of `_closed` and `_child` together
        self._reading = threading.Lock()
        self._child = self._start(route(video, facts, indices), deadline_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FrameBatch:
        with self._reading:
            count = min(self._chunk_frames, len(self._indices) - self._done)
            if self._closed or count == 0:
                self._child.close()
                raise StopIteration
            try:
                return self._chunk(count)
            except BaseException:
                self._child.close()
                raise

    async def chunks(self) -> AsyncIterator[FrameBatch]:
        """Iterate from an event loop, reading in a thread; cancelling it, or closing the iterator, kills the child."""
        try:
            while (chunk := await in_reader(next, self, None)) is not None:
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Kill the child and end the iteration."""
        with self._guard:
            self._closed = True
            self._child.kill()
        with self._reading:
            self._child.close()

    def _chunk(self, count: int) -> FrameBatch:
        offset = self._done
        frames = np.empty((count, self._facts.height, self._facts.width, 3), np.uint8)
        places = np.array([self._receive(frame) for frame in frames])
        return FrameBatch(
            frames=frames,
            pts_seconds=self._facts.pts_seconds[places],
            indices=places,
            digest=self._video.digest,
            kind=self._video.kind,
            planned=len(self._indices),
            offset=offset,
        )

    def _receive(self, frame: npt.NDArray[np.uint8]) -> int:
        """Fill `frame` with the next one, from this backend or the one behind it, and return its index in the video."""
        while True:
            try:
                return self._receive_from_child(frame)
            except (BackendFailed, ChildDied) as failure:
                self._fall_back(failure)
            except UnsupportedVideo as error:
                raise UnsupportedVideo(f"{error.message} {self._progress}") from None

    def _receive_from_child(self, frame: npt.NDArray[np.uint8]) -> int:
        message = self._child.receive()
        index = int(np.searchsorted(self._facts.stamps, message.stamp))
        known = index < len(self._facts) and self._facts.stamps[index] == message.stamp
        if message.kind != Kind.FRAME or not known or message.stamp <= self._last_stamp:
            raise ChildDied("the child sent a frame that was not asked for")
        self._child.receive_into(frame, message.size)
        self._last_stamp = message.stamp
        self._record(message.sent_s)
        return index

    def _record(self, sent_s: float) -> None:
        self._done += 1
        self.stats.backends[self._backend] += 1
        self.stats.sandbox = self._child.sandbox
        if self._done % self._chunk_frames == 0 or self._done == len(self._indices):
            now = time.monotonic()
            self.stats.chunk_ended_s.append(sent_s if self.stats.started_s <= sent_s <= now else now)

    def _fall_back(self, failure: BackendFailed | ChildDied) -> None:
        """Go on with PyAV in a new child, if it was decord that failed."""
        _LOG.warning("%s failed after %d frames: %s", self._backend, self._done, failure)
        with self._guard:
            self._child.close()
            if self._closed:
                raise StopIteration
            if self._backend != "decord":
                raise UnsupportedVideo(f"The {self._video.kind} makes the decoder crash. {self._progress}") from None
            self._child = self._start("pyav", self._child.left_s)

    @property
    def _progress(self) -> str:
        return f"{self._done} of {len(self._indices)} sampled frames were found."

    def _start(self, backend: Backend, budget_s: float) -> Child:
        self._backend = backend
        self.stats.backends[backend] = 0
        facts, left = self._facts, self._indices[self._done :]
        return Child(
            backend,
            self._video,
            self._limits,
            budget_s,
            targets=np.stack([left, facts.stamps[left], facts.keys_of(left)], axis=1).tolist(),
            start=int(facts.stamps[0]),
            lead=_lead(self._video, facts),
            frames=len(facts),
            chunk_frames=self._chunk_frames,
            width=facts.width,
            height=facts.height,
            turns=facts.turns,
        )
