"""A user's own clips and questions: what a checkpoint is calibrated for, where rendered clips would say little."""

from collections.abc import Callable, Iterator
from pathlib import Path

from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from pipelines.evaluation.local_clip import LocalClip
from pipelines.evaluation.material import Sample
from pipelines.ingest.limits import Limits

SUFFIX = ".txt"


def open_footage(folder: Path, limits: Limits) -> Callable[[ModelInfo], list[Sample]]:
    """Every clip of `folder` that has its questions beside it: `NAME.mp4` and `NAME.txt`, a question a line.

    Clips are probed here, and decoded anew whenever a sample is read: none of their frames is held. InvalidInput for a
    folder without such pairs, or questions without a clip; what a clip is wrong with is said with its name.
    """
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder.", "videos")
    clips = [
        (LocalClip.open(clip, limits), _questions(text))
        for text in sorted(folder.glob(f"*{SUFFIX}"))
        for clip in _clip_of(text)
    ]
    if not clips:
        raise InvalidInput(f"{folder} holds no clip with its questions in a {SUFFIX} file of the same name.", "videos")
    return lambda info: [clip.sample(info, questions) for clip, questions in clips]


def _clip_of(text: Path) -> Iterator[Path]:
    beside = (path for path in text.parent.iterdir() if path.stem == text.stem and path.is_file())
    clips = [path for path in beside if path.suffix != SUFFIX]
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
