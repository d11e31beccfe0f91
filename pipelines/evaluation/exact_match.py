"""Exact match by question kind, each question asked by itself over a fresh state of its clip."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from occam.config import NoPruning, OccamToken, Pruning, SamplingParams
from occam.engine import Engine
from occam.models.base import ModelInfo
from occam.stats import VisualTokenCounts
from occam.tensors import PrefixState
from occam.types import Answer, FrameBatch
from pipelines.evaluation.accuracy import LONGEST_ANSWER, is_right
from pipelines.evaluation.clips import clean_frames_of
from pipelines.evaluation.local_clip import LocalClip
from pipelines.evaluation.material import Progress
from pipelines.evaluation.questions import TEMPLATES, Question
from pipelines.evaluation.renderer import Scene, render
from pipelines.evaluation.shares import Asked, Blind
from pipelines.evaluation.statistics import Estimate, estimate, estimate_columns
from pipelines.ingest.limits import Limits

LAMBDA2_FACTORS = (0.5, 1.0, 2.0)
"""Of the calibrated lambda2."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Right answers when asked in one way: by kind, and the mean of the kinds.

    patches: encoded, kept by stage I, kept by stage II, a question; None where no model was asked
    """

    name: str
    kinds: dict[str, Estimate]
    mean: Estimate
    patches: tuple[float, float, float] | None


@dataclass(kw_only=True)
class Sheet:
    """The answers of one column, scene by scene, as they come in."""

    name: str
    right: list[dict[str, bool]] = field(default_factory=list)
    counts: list[VisualTokenCounts] = field(default_factory=list)

    def mark(self, questions: Sequence[Question], answers: Sequence[str]) -> None:
        """Take a scene's answers; it has at most one question of a kind."""
        pairs = zip(questions, answers, strict=True)
        self.right.append({question.kind: is_right(answer, question.answer) for question, answer in pairs})

    def take(self, questions: Sequence[Question], answers: Sequence[Answer]) -> None:
        """Take what a model answered about a scene."""
        self.mark(questions, [answer.text for answer in answers])
        self.counts += [answer.visual_tokens for answer in answers]

    def of(self, kinds: Sequence[str]) -> Estimate:
        """Mean of these kinds; scenes are drawn again, since the questions of one hang together."""
        return estimate_columns([[row.get(kind, np.nan) for kind in kinds] for row in self.right])

    def column(self) -> Column:
        """All kinds that were asked."""
        kinds = [kind for kind in TEMPLATES if any(kind in row for row in self.right)]
        encoded, stage1, stage2 = (
            sum(getattr(count, name) for count in self.counts) / max(1, len(self.counts))
            for name in ("encoded", "stage1", "stage2")
        )
        return Column(
            name=self.name,
            kinds={kind: estimate([row[kind] for row in self.right if kind in row]) for kind in kinds},
            mean=self.of(kinds),
            patches=(encoded, stage1, stage2) if self.counts else None,
        )


def sheets_of_ways(
    engine: Engine, asked: Sequence[Asked], pruning: OccamToken, blind: Blind, progress: Progress
) -> list[Sheet]:
    """Every question asked in all ways: unpruned, from a file, pruned by `LAMBDA2_FACTORS`, shuffled, blind.

    Shuffled asks over the next scene's clip, unpruned; behind the last comes the first.
    """
    none = NoPruning()
    strategies = [replace(pruning, lambda2=factor * pruning.lambda2) for factor in LAMBDA2_FACTORS]
    unpruned, from_file = Sheet(name="unpruned"), Sheet(name="H.264 file")
    pruned = [Sheet(name=f"lambda2 {each.lambda2:.3g}") for each in strategies]
    shuffled, guessed = Sheet(name="shuffled"), Sheet(name="blind")
    state = engine.state_of(clean_frames_of(asked[0].scene), none)
    following = itertools.islice(itertools.cycle(asked), 1, None)
    for done, (each, after) in enumerate(zip(asked, following, strict=False), start=1):
        questions = each.questions
        unpruned.take(questions, ask_each(engine, state, questions, none))
        state = engine.state_of(clean_frames_of(after.scene), none)
        shuffled.take(questions, ask_each(engine, state, questions, none))
        filed = engine.state_of(file_frames_of(each.scene, engine.info), none)
        from_file.take(questions, ask_each(engine, filed, questions, none))
        # One state for all: lambda2 is no part of it.
        thinned = engine.state_of(clean_frames_of(each.scene), pruning)
        for sheet, strategy in zip(pruned, strategies, strict=True):
            sheet.take(questions, ask_each(engine, thinned, questions, strategy))
        guessed.mark(questions, [blind.answer(question) for question in questions])
        progress("clips", done, len(asked))
    return [unpruned, from_file, *pruned, shuffled, guessed]


def sheet_of_unpruned(
    engine: Engine, asked: Sequence[Asked], frames_of: Callable[[Scene], FrameBatch], phase: str, progress: Progress
) -> Sheet:
    """Every question asked unpruned."""
    sheet, none = Sheet(name=phase), NoPruning()
    for done, each in enumerate(asked, start=1):
        state = engine.state_of(frames_of(each.scene), none)
        sheet.take(each.questions, ask_each(engine, state, each.questions, none))
        progress(phase, done, len(asked))
    return sheet


def ask_each(engine: Engine, state: PrefixState, questions: Sequence[Question], pruning: Pruning) -> list[Answer]:
    """Each question over the same state: no conversation."""
    sampling = SamplingParams(max_new_tokens=LONGEST_ANSWER)
    return [engine.ask(state, question.text, pruning, sampling) for question in questions]


def file_frames_of(scene: Scene, info: ModelInfo) -> FrameBatch:
    """The scene written as H.264 in mp4, and read as a user's file is: probed, sampled, decoded in a child process."""
    # PyAV only where a clip is encoded: whatever else asks an engine runs without it.
    from pipelines.evaluation.codec import write_mp4

    with TemporaryDirectory(prefix="occam-") as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(path, render(scene))
        return LocalClip.open(path, Limits()).sample(info).frames()
