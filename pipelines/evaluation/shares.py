"""Questions in equal shares: as many of every kind, and of the yes-or-no ones as many with either answer."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.questions import TEMPLATES, Question, ask
from pipelines.evaluation.renderer import Scene

YES_NO = ("yes", "no")

Wanted = Callable[[Scene, Question], bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A scene with what is asked about it, at most one question of a kind."""

    scene: Scene
    questions: tuple[Question, ...]


def equal_shares(scenes: Iterable[Scene], kinds: Sequence[str], per_kind: int, wanted: Wanted) -> list[Asked]:
    """`per_kind` questions of each of `kinds`, from the scenes in their order; scenes that give none are left out.

    Every scene draws one question a kind from its own seed, whatever was drawn before. It is kept if its kind still
    needs some, if it is `wanted`, and if no more than half of its kind (rounded up) would have its answer where that
    is yes or no: what is asked is balanced by leaving questions out, never by changing them. The scenes must not end
    before the kinds are full.
    """
    taken: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    asked = []
    for scene in scenes:
        kept = []
        for kind in (kind for kind in kinds if taken[kind] < per_kind):
            question = _drawn(scene, kind)
            if question is None or not wanted(scene, question):
                continue
            if question.answer in YES_NO and 2 * answers[kind, question.answer] >= per_kind:
                continue
            taken[kind] += 1
            answers[kind, question.answer] += 1
            kept.append(question)
        if kept:
            asked.append(Asked(scene=scene, questions=tuple(kept)))
        if all(taken[kind] == per_kind for kind in kinds):
            break
    return asked


def _drawn(scene: Scene, kind: str) -> Question | None:
    return ask(scene, kind, np.random.default_rng([scene.seed, 5, list(TEMPLATES).index(kind)]))


@dataclass(frozen=True, kw_only=True)
class Blind:
    """Answers without a clip: the most frequent one to the same text, else to the kind."""

    by_text: Mapping[str, str]
    by_kind: Mapping[str, str]

    @classmethod
    def of(cls, known: Iterable[Asked]) -> "Blind":
        """Learnt from these questions with their answers."""
        questions = list(itertools.chain.from_iterable(each.questions for each in known))
        return cls(
            by_text=_most_frequent((question.text, question.answer) for question in questions),
            by_kind=_most_frequent((question.kind, question.answer) for question in questions),
        )

    def answer(self, question: Question) -> str:
        """The guess; nothing for a kind it has never met."""
        return self.by_text.get(question.text) or self.by_kind.get(question.kind, "")


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    best: dict[str, str] = {}
    for (key, answer), _ in Counter(pairs).most_common():
        best.setdefault(key, answer)
    return best
