"""The embedded task: rendered clips whose truth is known, with questions of all kinds in equal shares."""

import math
from collections.abc import Sequence

from occam.models.base import ModelInfo
from occam.types import FrameBatch, MediaKind
from pipelines.evaluation.accuracy import LONGEST_ANSWER
from pipelines.evaluation.clips import CRF, frames_of, scenes
from pipelines.evaluation.material import Sample
from pipelines.evaluation.questions import TEMPLATES, TEMPORAL, Question
from pipelines.evaluation.renderer import FIRST_TEST_SEED, FIRST_TUNING_SEED, Scene, SceneConfig
from pipelines.evaluation.shares import Asked, equal_shares
from pipelines.evaluation.tasks.task import Clip, Item, Task, thinned, up_to

NAME = "embedded"
QUESTIONS = 2160
"""Asked without a limit: 120 of every kind."""
SEEDS_APART = 1_000_000
TURNS = 2


def rendered_task(media: Sequence[MediaKind], limit: int | None, tuning: int, seed: int) -> Task:
    """Scenes of the test seeds, and tuning scenes of the tuning seeds; another `seed` gives scenes never seen before.

    limit: questions (`QUESTIONS`), in equal shares of the kinds that the model's media allow
    """
    questions = QUESTIONS if limit is None else limit
    asked = _clips(media, questions, FIRST_TEST_SEED + SEEDS_APART * seed)
    tuned = _clips(media, tuning * len(TEMPLATES), FIRST_TUNING_SEED)[:tuning]
    return Task(
        name=NAME, clips=tuple(up_to(asked, questions)), tuning=thinned(tuned, seed), max_new_tokens=LONGEST_ANSWER
    )


def _clips(media: Sequence[MediaKind], questions: int, first_seed: int) -> list[Clip]:
    video = "video" in media
    config = SceneConfig(unseen_pairs=False) if video else SceneConfig(unseen_pairs=False, frames=1)
    kinds = [kind for kind in TEMPLATES if video or kind not in TEMPORAL]
    per_kind = math.ceil(questions / len(kinds))
    if not per_kind:
        return []
    return [_clip(each, config) for each in equal_shares(scenes(first_seed, config), kinds, per_kind, _in_turn)]


def _in_turn(scene: Scene, question: Question) -> bool:
    """Half of the kinds of each scene: many clips with some questions say more than few with all, and take longer."""
    return (scene.seed + list(TEMPLATES).index(question.kind)) % TURNS == 0


def _clip(asked: Asked, config: SceneConfig) -> Clip:
    scene = asked.scene

    def open_(info: ModelInfo) -> Sample:
        def read(start: int, stop: int) -> FrameBatch:
            return frames_of(scene, info.media).chunk(start, stop)

        count = scene.frames if "video" in info.media else 1
        return Sample(digest=f"scene-{scene.seed}", count=count, questions=(), read=read)

    return Clip(
        id=f"scene-{scene.seed}",
        content=f"seed {scene.seed}, {config}, crf {CRF}",
        items=tuple(
            Item(
                id=f"scene-{scene.seed}-{question.kind}",
                question=question.text,
                answer=question.answer,
                choices=None,
                kind=question.kind,
            )
            for question in asked.questions
        ),
        open=open_,
    )
