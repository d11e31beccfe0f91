"""A user's own clips and questions: what a checkpoint is calibrated for, where rendered clips would say little."""

from collections.abc import Iterator
from pathlib import Path

from occam.errors import InvalidInput, OccamError
from occam.types import FrameBatch
from pipelines.evaluation.budgets import Sample
from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import open_local
from pipelines.ingest.probe import probe
from pipelines.ingest.sample import Sampling, sample

SUFFIX = ".txt"


def read_footage(folder: Path, frames: int, limits: Limits) -> list[Sample]:
    """Every clip of `folder` that has its questions beside it: `NAME.mp4` and `NAME.txt`, a question a line.

    frames: to take of each, evenly. InvalidInput for a folder without such pairs, or questions without a clip; what a
    clip is wrong with is said with its name.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder.", "videos")
    samples = [
        Sample(frames=_frames(clip, frames, limits), questions=_questions(text))
        for text in sorted(folder.glob(f"*{SUFFIX}"))
        for clip in _clip_of(text)
    ]
    if not samples:
        raise InvalidInput(f"{folder} holds no clip with its questions in a {SUFFIX} file of the same name.", "videos")
    return samples


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


def _frames(clip: Path, count: int, limits: Limits) -> FrameBatch:
    try:
        video = open_local(clip, limits)
        facts = probe(video, limits)
        indices = sample(facts.pts_seconds, Sampling(frames=count))
        with FrameStream(video, facts, indices, limits, chunk_frames=len(indices)) as stream:
            return next(stream)
    except OccamError as error:
        raise InvalidInput(f"{clip.name}: {error.message}", "videos") from error
