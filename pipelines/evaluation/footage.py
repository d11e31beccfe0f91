"""A user's own clips and questions: what a checkpoint is calibrated for, where rendered clips would say little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from occam.errors import InvalidInput, OccamError, SourceUnavailable
from occam.models.base import ModelInfo
from occam.types import FrameBatch
from pipelines.evaluation.material import Sample
from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.probe import VideoFacts, probe
from pipelines.ingest.sample import Sampling, sample

SUFFIX = ".txt"


def open_footage(folder: Path, limits: Limits) -> Callable[[ModelInfo], list[Sample]]:
    """Every clip of `folder` that has its questions beside it: `NAME.mp4` and `NAME.txt`, a question a line.

    Clips are probed here, and decoded anew whenever a sample is read: none of their frames is held. InvalidInput for a
    folder without such pairs, or questions without a clip; what a clip is wrong with is said with its name.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder.", "videos")
    clips = [_Clip.open(clip, text, limits) for text in sorted(folder.glob(f"*{SUFFIX}")) for clip in _clip_of(text)]
    if not clips:
        raise InvalidInput(f"{folder} holds no clip with its questions in a {SUFFIX} file of the same name.", "videos")
    return lambda info: [clip.sample(info) for clip in clips]


@dataclass(frozen=True, kw_only=True)
class _Clip:
    name: str
    video: LocalFile
    facts: VideoFacts
    questions: tuple[str, ...]
    limits: Limits

    @classmethod
    def open(cls, clip: Path, text: Path, limits: Limits) -> "_Clip":
        with _named(clip.name):
            video = open_local(clip, limits)
            facts = probe(video, limits)
        return cls(name=clip.name, video=video, facts=facts, questions=_questions(text), limits=limits)

    def sample(self, info: ModelInfo) -> Sample:
        """As many frames as the model takes, evenly."""
        if self.video.kind not in info.media:
            taken = " and ".join(info.media)
            raise InvalidInput(f"{self.name}: {info.name} takes {taken} input, not {self.video.kind}.", "videos")
        indices = sample(self.facts.pts_seconds, Sampling(frames=info.frames))

        def read(start: int, stop: int) -> FrameBatch:
            wanted = indices[start:stop]
            with (
                _named(self.name),
                FrameStream(self.video, self.facts, wanted, self.limits, chunk_frames=len(wanted)) as stream,
            ):
                frames = replace(next(stream), planned=len(indices))
                if not self.video.is_current:
                    raise SourceUnavailable("The file changed while it was read.")
                return frames

        return Sample(digest=self.video.digest, count=len(indices), questions=self.questions, read=read)


@contextmanager
def _named(clip: str) -> Iterator[None]:
    """Errors with the clip's name."""
    try:
        yield
    except OccamError as error:
        raise InvalidInput(f"{clip}: {error.message}", "videos") from error


def _clip_of(text: Path) -> Iterator[Path]:
    clips = [path for path in text.parent.iterdir() if path.stem == text.stem and path.suffix != SUFFIX]
    if len(clips) != 1:
        raise InvalidInput(f"{text.name} must lie beside exactly one clip of that name, found {len(clips)}.", "videos")
    yield from clips


def _questions(text: Path) -> tuple[str, ...]:
    try:
        lines = text.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{text.name} is not UTF-8.", "videos") from error
    questions = tuple(line.strip() for line in lines if line.strip())
    if not questions:
        raise InvalidInput(f"{text.name} holds no question.", "videos")
    return questions
