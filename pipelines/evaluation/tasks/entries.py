"""From the questions of a file to clips: those about the same stretch of the same video belong together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from pipelines.evaluation.local_clip import LocalClip, pictures_in, sample_of_pictures
from pipelines.evaluation.material import Sample
from pipelines.evaluation.tasks.scoring import Prompt, plain_choices, right_answer
from pipelines.evaluation.tasks.task import Clip, Item, Task, divided
from pipelines.ingest.limits import Limits

LONGEST_LETTER, LONGEST_TEXT = 16, 32
"""Tokens of an answer: where there are choices, and where there are none."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One question as a file has it.

    videos: where the clip may lie, the first that is there counts; a folder holds pictures, `fps` a second
    start_s, end_s: the stretch that is asked about
    """

    id: str
    videos: tuple[Path, ...]
    question: str
    answer: object
    choices: tuple[str, ...] | None = None
    kind: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    fps: float = 1.0

    @property
    def video(self) -> Path | None:
        """The clip, None where it is not there."""
        return next((path for path in self.videos if path.exists()), None)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How much of a task is asked: up to `limit` questions of clips drawn by `seed`, `tuning` clips set aside."""

    limit: int | None
    tuning: int
    seed: int


def task_of(name: str, entries: Sequence[Entry], root: Path, prompt: Prompt, choice: Choice, limits: Limits) -> Task:
    """The task of a file's questions; InvalidInput where none of their clips is there, or an id comes twice."""
    present = [(entry, video) for entry in entries if (video := entry.video) is not None]
    if not present:
        looked = f": {entries[0].videos[0]} is not there" if entries else ""
        raise InvalidInput(f"{name} holds {len(entries)} questions, and the clip of none{looked}.", "task")
    if len({entry.id for entry in entries}) < len(entries):
        raise InvalidInput(f"{name} holds two questions of one id.", "task")
    groups: dict[tuple[Path, float, float | None], list[Entry]] = {}
    for entry, video in present:
        groups.setdefault((video, entry.start_s, entry.end_s), []).append(entry)
    clips = [_clip(video, group, root, prompt, limits) for (video, _, _), group in groups.items()]
    asked, tuned = divided(clips, choice.limit, choice.tuning, choice.seed)
    closed = all(entry.choices for entry, _ in present)
    return Task(
        name=name,
        clips=asked,
        tuning=tuned,
        max_new_tokens=LONGEST_LETTER if closed else LONGEST_TEXT,
        missing=len(entries) - len(present),
    )


def _clip(video: Path, entries: Sequence[Entry], root: Path, prompt: Prompt, limits: Limits) -> Clip:
    start_s, end_s, fps = entries[0].start_s, entries[0].end_s, entries[0].fps

    def open_(info: ModelInfo) -> Sample:
        if video.is_dir():
            return sample_of_pictures(video, fps, limits, info, start_s, end_s)
        return LocalClip.open(video, limits).sample(info, start_s=start_s, end_s=end_s)

    name = str(video.relative_to(root)) if video.is_relative_to(root) else str(video)
    stretch = "" if (start_s, end_s) == (0.0, None) else f" {start_s:g}..{'' if end_s is None else f'{end_s:g}'} s"
    # Hundreds of gigabytes are not read for a digest: a name and a size stand for a file.
    size = len(pictures_in(video)) if video.is_dir() else video.stat().st_size
    return Clip(id=name + stretch, content=f"{size}", items=tuple(_items(entries, prompt)), open=open_)


def _items(entries: Sequence[Entry], prompt: Prompt) -> Iterator[Item]:
    for entry in entries:
        choices = entry.choices and plain_choices(entry.choices)
        try:
            answer = right_answer(entry.answer, choices)
            question = prompt.ask(entry.question, choices)
        except InvalidInput as error:
            raise InvalidInput(f"{entry.id}: {error.message}", "task") from error
        yield Item(id=entry.id, question=question, answer=answer, choices=choices, kind=entry.kind)
