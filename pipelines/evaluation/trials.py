"""How a pruning does at its budget: on rendered clips, whose truth is known, or on the samples themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from occam.config import OccamToken, Pruning, SamplingParams
from occam.engine import Engine
from pipelines.evaluation.accuracy import accuracy, all_or_nothing
from pipelines.evaluation.clips import state_of
from pipelines.evaluation.material import Progress, Sample, counted
from pipelines.evaluation.renderer import FIRST_TUNING_SEED

FIRST_TRIAL_SEED = FIRST_TUNING_SEED + 50_000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one reference did at the plan's budget.

    encoded, stage1, stage2: patches a question, on average; all_or_nothing: share of the views of which stage I kept
    every patch or none; right: share of questions answered right, NaN where nobody knows the truth
    """

    pruning: Pruning
    encoded: float
    stage1: float
    stage2: float
    all_or_nothing: float
    right: float
    questions: int

    def __str__(self) -> str:
        right = "" if np.isnan(self.right) else f"{self.right:.3f} of {self.questions} right, "
        return (
            f"{_name(self.pruning)}: {right}{self.stage1:.0f} / {self.stage2:.0f} of {self.encoded:.0f} patches kept, "
            f"{self.all_or_nothing:.0%} of the views whole or not at all"
        )


def on_rendered(clips: int, progress: Progress) -> Callable[[Engine, Pruning], Trial]:
    """Trials by right answers over rendered clips, whose truth is known."""

    def try_out(engine: Engine, pruning: Pruning) -> Trial:
        phase = f"{_name(pruning)}, trial"
        progress(phase, 0, clips)
        score = accuracy(engine, pruning, FIRST_TRIAL_SEED, clips, on_clip=lambda done: progress(phase, done, clips))
        return Trial(
            pruning=pruning,
            encoded=score.encoded,
            stage1=score.stage1,
            stage2=score.stage2,
            all_or_nothing=score.all_or_nothing,
            right=score.questions.mean,
            questions=score.questions.n,
        )

    return try_out


def on_samples(samples: Sequence[Sample], progress: Progress) -> Callable[[Engine, Pruning], Trial]:
    """Trials by what is kept of the samples themselves."""

    def try_out(engine: Engine, pruning: Pruning) -> Trial:
        answers = [
            engine.ask(state, question, pruning, SamplingParams(max_new_tokens=1))
            for sample in counted(f"{_name(pruning)}, trial", samples, progress)
            for state in [state_of(engine, sample.frames(), pruning)]
            for question in sample.questions
        ]
        counts = [answer.visual_tokens for answer in answers]
        return Trial(
            pruning=pruning,
            encoded=float(np.mean([count.encoded for count in counts])),
            stage1=float(np.mean([count.stage1 for count in counts])),
            stage2=float(np.mean([count.stage2 for count in counts])),
            all_or_nothing=float(np.mean([whole for answer in answers for whole in all_or_nothing(answer.evidence)])),
            right=float("nan"),
            questions=len(answers),
        )

    return try_out


def _name(pruning: Pruning) -> str:
    """The strategy, by its reference where it has one."""
    return pruning.register if isinstance(pruning, OccamToken) else pruning.name
