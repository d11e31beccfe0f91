"""`occam calibrate`: what OccamToken needs to know of a checkpoint, measured on rendered clips of the tuning seeds."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice

import numpy as np
import torch

from occam.calibration import Calibration
from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, RegisterMode
from occam.engine import Engine
from occam.models.base import VideoLM
from occam.models.registry import load_model
from occam.registers import RegisterReport, find_register_neurons
from pipelines.evaluation.accuracy import Accuracy, accuracy, questions_about
from pipelines.evaluation.budgets import Sample, lambdas_for
from pipelines.evaluation.clips import frames_of, scenes
from pipelines.evaluation.renderer import FIRST_TUNING_SEED

FALLBACKS: tuple[RegisterMode, ...] = ("zero_token", "mean_threshold")
QUESTIONS = 3
FIRST_TRIAL_SEED = FIRST_TUNING_SEED + 50_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a calibration aims at, and on how many clips.

    stage1, stage2: shares of the patches kept on average, 0 < stage2 <= stage1 <= 1
    cut: decoder layers before stage II; None takes a third of the model's
    samples: clips that the lambdas are measured on; trials: clips on which references are compared
    """

    stage1: float = 0.85
    stage2: float = 0.25
    cut: int | None = None
    samples: int = 50
    trials: int = 200


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one reference did at the plan's budget."""

    pruning: Pruning
    accuracy: Accuracy

    def __str__(self) -> str:
        name = self.pruning.register if isinstance(self.pruning, OccamToken) else self.pruning.name
        score = self.accuracy
        return f"{name}: {score.questions} right, {score.stage1:.0f} / {score.stage2:.0f} of {score.encoded:.0f} kept"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A calibration and what it was chosen from; the first trial keeps everything."""

    calibration: Calibration
    finder: RegisterReport
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        found, chosen = self.finder, self.calibration
        verdict = f"{len(found.neurons)} accepted" if found.accepted else "none that tame the norms and draw attention"
        return "\n".join(
            [
                f"register neurons: {verdict}",
                f"  largest patch norm over the inliers' limit: {found.largest_norm_before:.2f} before, "
                f"{found.largest_norm_after:.2f} after",
                f"  effective patches CLS attends to: {found.n_eff_before:.1f} before, {found.n_eff_after:.1f} after; "
                f"the register's share of its attention: {found.register_share:.3f}",
                *map(str, self.trials),
                f"chosen: {chosen.register}, cut {chosen.cut}, lambda1 {chosen.lambda1:.4g}, "
                f"lambda2 {chosen.lambda2:.4g}",
            ]
        )


@torch.inference_mode()
def calibrate(config: EngineConfig, plan: Plan) -> Report:
    """Find the register neurons, set the lambdas, and take the reference that answers most tuning questions right.

    Where no neurons pass the finder's acceptance the fallbacks compete, at equal budgets; a tie goes to the first.
    """
    lm = load_model(config, calibrated=False)
    samples = list(_samples(plan.samples))
    finder = _find_neurons(lm, samples)
    cut = plan.cut or lm.info.cut
    trials = [_trial(Engine(lm, config), NoPruning(), plan)]
    drafts = []
    for register in ("neurons",) if finder.accepted else FALLBACKS:
        neurons = finder.neurons if register == "neurons" else ()
        draft = Calibration(
            weights=lm.info.digest, cut=cut, register=register, neurons=neurons, lambda1=1.0, lambda2=1.0
        )
        engine = Engine(lm.calibrated(draft), config)
        pruning = lambdas_for(engine, draft.defaults, samples, plan.stage1, plan.stage2)
        drafts.append(replace(draft, lambda1=pruning.lambda1, lambda2=pruning.lambda2))
        trials.append(_trial(engine, pruning, plan))
    best = int(np.argmax([trial.accuracy.questions.mean for trial in trials[1:]]))
    calibration = replace(drafts[best], statistics=_statistics(finder, trials[0], trials[1 + best]))
    return Report(calibration=calibration, finder=finder, trials=tuple(trials))


def _samples(count: int) -> Iterator[Sample]:
    for scene in islice(scenes(FIRST_TUNING_SEED), count):
        questions = tuple(question.text for question in questions_about(scene, QUESTIONS))
        yield Sample(frames=frames_of(scene), questions=questions)


def _find_neurons(lm: VideoLM, samples: list[Sample]) -> RegisterReport:
    """Search on the middle frame of every sample."""
    frames = [sample.frames.chunk(middle := len(sample.frames) // 2, middle + 1) for sample in samples]
    return find_register_neurons(lambda neurons: (lm.trace(frame, neurons) for frame in frames))


def _trial(engine: Engine, pruning: Pruning, plan: Plan) -> Trial:
    return Trial(pruning=pruning, accuracy=accuracy(engine, pruning, FIRST_TRIAL_SEED, plan.trials))


def _statistics(finder: RegisterReport, unpruned: Trial, chosen: Trial) -> dict[str, float]:
    """What the artefact remembers of how it was made."""
    found = {f"finder_{name}": float(value) for name, value in asdict(finder).items() if name != "neurons"}
    score = chosen.accuracy
    return found | {
        "stage1_kept": score.stage1 / score.encoded,
        "stage2_kept": score.stage2 / score.encoded,
        "accuracy": score.questions.mean,
        "accuracy_unpruned": unpruned.accuracy.questions.mean,
        "questions": score.questions.n,
    }
