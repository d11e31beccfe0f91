"""Clips on this disk: a video file, or a folder of pictures taken at a fixed rate, sampled as a model takes them."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from occam.errors import InvalidInput, OccamError, SourceUnavailable
from occam.models.base import ModelInfo
from occam.types import FrameBatch
from pipelines.evaluation.material import Sample
from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.probe import VideoFacts, probe
from pipelines.ingest.sample import Sampling, sample

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class LocalClip:
    """A video file that has been probed; its frames are decoded anew whenever a sample is read."""

    name: str
    video: LocalFile
    facts: VideoFacts
    limits: Limits

    @classmethod
    def open(cls, path: Path, limits: Limits) -> "LocalClip":
        """InvalidInput, with the clip's name, for a file that cannot be used."""
        with named(path.name):
            video = open_local(path, limits)
            return cls(name=path.name, video=video, facts=probe(video, limits), limits=limits)

    def sample(
        self, info: ModelInfo, questions: tuple[str, ...] = (), start_s: float = 0.0, end_s: float | None = None
    ) -> Sample:
        """As many frames as the model takes, evenly over the range."""
        if self.video.kind not in info.media:
            taken = " and ".join(info.media)
            raise InvalidInput(f"{self.name}: {info.name} takes {taken} input, not {self.video.kind}.", "videos")
        with named(self.name):
            sampling = Sampling(frames=info.frames, start_s=start_s, end_s=end_s)
            indices = sample(self.facts.pts_seconds, sampling)

        def read(start: int, stop: int) -> FrameBatch:
            wanted = indices[start:stop]
            with (
                named(self.name),
                FrameStream(self.video, self.facts, wanted, self.limits, chunk_frames=len(wanted)) as stream,
            ):
                frames = replace(next(stream), planned=len(indices))
                if not self.video.is_current:
                    raise SourceUnavailable("The file changed while it was read.")
                return frames

        return Sample(digest=self.video.digest, count=len(indices), questions=questions, read=read)


def sample_of_pictures(
    folder: Path, fps: float, limits: Limits, info: ModelInfo, start_s: float = 0.0, end_s: float | None = None
) -> Sample:
    """A video whose frames lie as pictures in a folder, in the order of their names, `fps` of them a second."""
    files = pictures_in(folder)
    if not files:
        raise InvalidInput(f"{folder.name} holds no pictures.", "videos")
    with named(folder.name):
        pts_seconds = np.arange(len(files)) / fps
        indices = sample(pts_seconds, Sampling(frames=info.frames, start_s=start_s, end_s=end_s))
    digest = hashlib.sha256(json.dumps([[file.name, file.stat().st_size] for file in files]).encode()).hexdigest()

    def read(start: int, stop: int) -> FrameBatch:
        wanted = indices[start:stop]
        with named(folder.name):
            frames = [_picture(files[index], limits) for index in wanted]
        if len({frame.shape for frame in frames}) > 1:
            raise InvalidInput(f"{folder.name}: the pictures are of different sizes.", "videos")
        return FrameBatch(
            frames=np.stack(frames),
            pts_seconds=pts_seconds[wanted],
            indices=wanted,
            digest=digest,
            planned=len(indices),
        )

    return Sample(digest=digest, count=len(indices), questions=(), read=read)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


@contextmanager
def named(clip: str) -> Iterator[None]:
    """Errors with the clip's name."""
    try:
        yield
    except OccamError as error:
        raise InvalidInput(f"{clip}: {error.message}", "videos") from error


def _picture(path: Path, limits: Limits) -> npt.NDArray[np.uint8]:
    file = open_local(path, limits, "image")
    with FrameStream(file, probe(file, limits), np.zeros(1, np.int64), limits, chunk_frames=1) as stream:
        picture: npt.NDArray[np.uint8] = next(stream).frames[0]
        return picture
