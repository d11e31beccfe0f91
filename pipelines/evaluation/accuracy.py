"""How many questions strategies answer right, asked as a user asks: over one video, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.tensors import PrefixState
from occam.types import Answer, Evidence
from pipelines.evaluation.clips import frames_of, scenes, states_of
from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import Scene
from pipelines.evaluation.statistics import Estimate, estimate

LONGEST_ANSWER = 4


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Patches a question, on average.

    spread: standard deviation of stage2 over the questions; all_or_nothing: share of a question's views of which
    stage I kept every patch or none
    """

    encoded: float
    stage1: float
    stage2: float
    spread: float
    all_or_nothing: float

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> "Kept":
        """What these answers, at least one, rest on."""
        counts = np.array([(each.encoded, each.stage1, each.stage2) for each in (a.visual_tokens for a in answers)])
        encoded, stage1, stage2 = counts.mean(axis=0).tolist()
        return cls(
            encoded=encoded,
            stage1=stage1,
            stage2=stage2,
            spread=float(counts[:, 2].std()),
            all_or_nothing=float(np.mean([whole for answer in answers for whole in all_or_nothing(answer.evidence)])),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Accuracy:
    """How one strategy did.

    questions: share answered right, the questions of a clip taken together; clips: share with every question right
    right: bool [clips, questions a clip]
    """

    questions: Estimate
    clips: Estimate
    right: npt.NDArray[np.bool_]
    kept: Kept


def is_right(answer: str, truth: str) -> bool:
    """Exact match, whatever the case."""
    return answer.strip().lower() == truth


def questions_about(scene: Scene, count: int) -> list[Question]:
    """The questions that the scene's own seed draws."""
    return draw_questions(scene, np.random.default_rng(scene.seed), count)


def _ignore(done: int) -> None:
    del done


def accuracies(
    engine: Engine,
    prunings: Sequence[Pruning],
    first_seed: int,
    clips: int,
    per_clip: int = 2,
    on_clip: Callable[[int], None] = _ignore,
) -> list[Accuracy]:
    """Ask `per_clip` questions about each of `clips` clips, each question a follow-up of those before.

    A clip is rendered once, and its state built once for all strategies that can share it.
    on_clip: called behind every clip with their number so far
    """
    answers: list[list[Answer]] = [[] for _ in prunings]
    right: list[list[list[bool]]] = [[] for _ in prunings]
    for done, scene in enumerate(islice(scenes(first_seed), clips), start=1):
        questions = questions_about(scene, per_clip)
        for place, state in states_of(engine, frames_of(scene, engine.info.media), prunings):
            given = list(_converse(engine, state, questions, prunings[place]))
            answers[place] += given
            right[place].append(
                [is_right(a.text, question.answer) for a, question in zip(given, questions, strict=True)]
            )
        on_clip(done)
    return [
        Accuracy(
            questions=estimate(marks),
            clips=estimate(np.all(marks, axis=1)),
            right=np.array(marks),
            kept=Kept.of(given),
        )
        for marks, given in zip(right, answers, strict=True)
    ]


def all_or_nothing(evidence: Evidence) -> list[bool]:
    """For every view, whether stage I kept all of its patches or none."""
    return [bool(frame.stage1.all() or not frame.stage1.any()) for frame in evidence.frames]


def _converse(engine: Engine, state: PrefixState, questions: Sequence[Question], pruning: Pruning) -> Iterator[Answer]:
    for number, question in enumerate(questions, start=1):
        answer = engine.ask(state, question.text, pruning, SamplingParams(max_new_tokens=LONGEST_ANSWER))
        if number < len(questions):
            state = engine.replay(state, [answer.turn])
        yield answer
