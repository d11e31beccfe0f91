"""How many questions a strategy answers right, asked as a user asks: over one video, one after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.types import Answer, Evidence
from pipelines.evaluation.clips import frames_of, scenes, state_of
from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import Scene
from pipelines.evaluation.statistics import Estimate, estimate

LONGEST_ANSWER = 4


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares over clips with `per_clip` questions each, and visual tokens a question.

    questions: answered right, the questions of a clip taken together; clips: with every question right
    all_or_nothing: share of a question's views of which stage I kept every patch or none
    """

    questions: Estimate
    clips: Estimate
    per_clip: int
    encoded: float
    stage1: float
    stage2: float
    all_or_nothing: float


def is_right(answer: str, truth: str) -> bool:
    """Exact match, whatever the case."""
    return answer.strip().lower() == truth


def questions_about(scene: Scene, count: int) -> list[Question]:
    """The questions that the scene's own seed draws."""
    return draw_questions(scene, np.random.default_rng(scene.seed), count)


def _ignore(done: int) -> None:
    del done


def accuracy(
    engine: Engine,
    pruning: Pruning,
    first_seed: int,
    clips: int,
    per_clip: int = 2,
    on_clip: Callable[[int], None] = _ignore,
) -> Accuracy:
    """Ask `per_clip` questions about each of `clips` clips, each question a follow-up of those before.

    on_clip: called behind every clip with their number so far
    """
    right: list[list[bool]] = []
    counts: list[tuple[int, int, int]] = []
    coarse: list[bool] = []
    source = scenes(first_seed)
    for done in range(1, clips + 1):
        scene = next(source)
        questions = questions_about(scene, per_clip)
        answers = list(_converse(engine, scene, questions, pruning))
        right.append(
            [is_right(answer.text, question.answer) for answer, question in zip(answers, questions, strict=True)]
        )
        coarse += [whole for answer in answers for whole in all_or_nothing(answer.evidence)]
        counts += [(tokens.encoded, tokens.stage1, tokens.stage2) for tokens in (a.visual_tokens for a in answers)]
        on_clip(done)
    encoded, stage1, stage2 = np.mean(counts, axis=0).tolist()
    return Accuracy(
        questions=estimate(right),
        clips=estimate(np.all(right, axis=1)),
        per_clip=per_clip,
        encoded=encoded,
        stage1=stage1,
        stage2=stage2,
        all_or_nothing=float(np.mean(coarse)),
    )


def all_or_nothing(evidence: Evidence) -> list[bool]:
    """For every view, whether stage I kept all of its patches or none."""
    return [bool(frame.stage1.all() or not frame.stage1.any()) for frame in evidence.frames]


def _converse(engine: Engine, scene: Scene, questions: list[Question], pruning: Pruning) -> Iterator[Answer]:
    state = state_of(engine, frames_of(scene, engine.info.media), pruning)
    for question in questions:
        answer = engine.ask(state, question.text, pruning, SamplingParams(max_new_tokens=LONGEST_ANSWER))
        state = engine.replay(state, [answer.turn])
        yield answer
