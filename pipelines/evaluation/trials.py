"""How prunings do at their budgets: on rendered clips, whose truth is known, or on the samples themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from occam.config import OccamToken, Pruning, SamplingParams
from occam.engine import Engine
from occam.types import Answer
from pipelines.evaluation.accuracy import Kept, accuracies
from pipelines.evaluation.clips import states_of
from pipelines.evaluation.material import Progress, Sample, counted
from pipelines.evaluation.renderer import FIRST_TUNING_SEED

FIRST_TRIAL_SEED = FIRST_TUNING_SEED + 50_000
PHASE = "trials"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """How one pruning did at the plan's budget.

    right: bool [clips, questions a clip], answered right; None where nobody knows the truth
    """

    pruning: Pruning
    kept: Kept
    questions: int
    right: npt.NDArray[np.bool_] | None

    @property
    def accuracy(self) -> float:
        """Share of the questions answered right, NaN where nobody knows the truth."""
        return float("nan") if self.right is None else float(self.right.mean())

    @property
    def name(self) -> str:
        """The strategy; of `occam` its reference: where it comes from, and what stage II makes of it."""
        pruning = self.pruning
        return f"{pruning.register}/{pruning.rule}" if isinstance(pruning, OccamToken) else pruning.name

    def __str__(self) -> str:
        right = "" if self.right is None else f"{self.accuracy:.3f} of {self.questions} right, "
        kept = self.kept
        return (
            f"{self.name}: {right}{kept.stage1:.0f} / {kept.stage2:.0f} of {kept.encoded:.0f} patches kept, varying by "
            f"{kept.spread:.0f} from question to question, {kept.all_or_nothing:.0%} of the views whole or not at all"
        )


def on_rendered(engine: Engine, prunings: Sequence[Pruning], clips: int, progress: Progress) -> list[Trial]:
    """Trials by right answers over rendered clips, whose truth is known."""
    progress(PHASE, 0, clips)
    scores = accuracies(engine, prunings, FIRST_TRIAL_SEED, clips, on_clip=lambda done: progress(PHASE, done, clips))
    return [
        Trial(pruning=pruning, kept=score.kept, questions=score.right.size, right=score.right)
        for pruning, score in zip(prunings, scores, strict=True)
    ]


def on_samples(
    engine: Engine, prunings: Sequence[Pruning], samples: Sequence[Sample], progress: Progress
) -> list[Trial]:
    """Trials by what is kept of the samples themselves."""
    answers: list[list[Answer]] = [[] for _ in prunings]
    for sample in counted(PHASE, samples, progress):
        for place, state in states_of(engine, sample.frames(), prunings):
            answers[place] += [
                engine.ask(state, question, prunings[place], SamplingParams(max_new_tokens=1))
                for question in sample.questions
            ]
    return [
        Trial(pruning=pruning, kept=Kept.of(given), questions=len(given), right=None)
        for pruning, given in zip(prunings, answers, strict=True)
    ]
