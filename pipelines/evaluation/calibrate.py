"""`occam registers` and `occam calibrate`: what OccamToken needs to know of a checkpoint, measured on clips."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import numpy as np
import torch

from occam.calibration import Calibration
from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, RegisterMode, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.models.base import VideoLM
from occam.models.registry import load_model, stored_calibration
from occam.registers import RegisterReport, find_register_neurons
from pipelines.evaluation.accuracy import accuracy, all_or_nothing, questions_about
from pipelines.evaluation.budgets import Sample, lambdas_for
from pipelines.evaluation.clips import frames_of, scenes, state_of
from pipelines.evaluation.renderer import FIRST_TUNING_SEED

FALLBACKS: tuple[RegisterMode, ...] = ("zero_token", "mean_threshold")
QUESTIONS = 3
FIRST_TRIAL_SEED = FIRST_TUNING_SEED + 50_000

Footage = Callable[[int], list[Sample]]
"""A user's clips with their questions, so many frames of each."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a calibration aims at, and on how many clips.

    stage1: share of the patches kept on average; stage2: the same, or above 1 their number
    cut: decoder layers before stage II; None takes the family's
    samples: rendered clips that the lambdas are measured on; trials: those on which references are compared
    """

    stage1: float = 0.85
    stage2: float = 0.25
    cut: int | None = None
    samples: int = 50
    trials: int = 200

    def __post_init__(self) -> None:
        if not (self.stage2 > 0 and 0 < self.stage1 <= 1):
            raise InvalidInput(
                f"Budgets must satisfy 0 < budget and 0 < stage1 <= 1, got {self.stage2:g} and {self.stage1:g}.",
                "budget",
            )


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
        name = self.pruning.register if isinstance(self.pruning, OccamToken) else self.pruning.name
        right = "" if np.isnan(self.right) else f"{self.right:.3f} of {self.questions} right, "
        return (
            f"{name}: {right}{self.stage1:.0f} / {self.stage2:.0f} of {self.encoded:.0f} patches kept, "
            f"{self.all_or_nothing:.0%} of the views whole or not at all"
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """A calibration and what it was chosen from; the first trial keeps everything."""

    calibration: Calibration
    finder: RegisterReport
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        chosen = self.calibration
        return "\n".join(
            [
                described(self.finder),
                *map(str, self.trials),
                f"chosen: {chosen.register}, cut {chosen.cut}, lambda1 {chosen.lambda1:.4g}, "
                f"lambda2 {chosen.lambda2:.4g}",
            ]
        )


def described(found: RegisterReport) -> str:
    """The finder's acceptance statistics, to be read."""
    verdict = f"{len(found.neurons)} accepted" if found.accepted else "none that tame the norms and draw attention"
    return "\n".join(
        [
            f"register neurons: {verdict}",
            f"  largest patch norm over the inliers' limit: {found.largest_norm_before:.2f} before, "
            f"{found.largest_norm_after:.2f} after",
            f"  effective patches that are attended to: {found.n_eff_before:.1f} before, {found.n_eff_after:.1f} "
            f"after; the register's share of that attention: {found.register_share:.3f}",
        ]
    )


@torch.inference_mode()
def find_registers(
    config: EngineConfig, plan: Plan, footage: Footage | None = None
) -> tuple[Calibration, RegisterReport]:
    """Search for the register neurons on the middle frame of every sample.

    The calibration has no lambdas yet, unless one that is stored stands on the same neurons: then it keeps its own.
    """
    lm = load_model(config, calibrated=False)
    found = _find(lm, _samples(lm, plan, footage))
    fresh = _without_lambdas(lm, plan, found)
    stored = stored_calibration(config.model, lm.info.digest)
    if stored is not None and stored.complete and stored.neurons == fresh.neurons:
        fresh = replace(stored, statistics={**stored.statistics, **fresh.statistics})
    return fresh, found


@torch.inference_mode()
def calibrate(config: EngineConfig, plan: Plan, footage: Footage | None = None) -> Report:
    """Set the lambdas for the plan's budgets, on the user's footage or on rendered clips, and choose the reference.

    Register neurons are taken as `occam registers` stored them, else searched. Where none pass the acceptance the
    fallbacks compete at equal budgets: on rendered clips by right answers, on footage, whose truth nobody knows, by how
    few views they keep whole or not at all. A tie goes to the first.
    """
    lm = load_model(config, calibrated=False)
    samples = _samples(lm, plan, footage)
    stored = stored_calibration(config.model, lm.info.digest)
    found = _find(lm, samples) if stored is None else _finder_of(stored)
    base = _without_lambdas(lm, plan, found)
    try_out = _on_samples(samples) if footage else _on_rendered(plan.trials)
    trials = [try_out(Engine(lm, config), NoPruning())]
    drafts = []
    for register in ("neurons",) if found.accepted else FALLBACKS:
        draft = replace(base, register=register, lambda1=1.0, lambda2=1.0)
        engine = Engine(lm.calibrated(draft), config)
        pruning = lambdas_for(engine, draft.defaults, samples, plan.stage1, plan.stage2)
        drafts.append(replace(draft, lambda1=pruning.lambda1, lambda2=pruning.lambda2))
        trials.append(try_out(engine, pruning))
    best = int(np.argmax([-trial.all_or_nothing if footage else trial.right for trial in trials[1:]]))
    calibration = replace(drafts[best], statistics=_statistics(found, trials[0], trials[1 + best]))
    return Report(calibration=calibration, finder=found, trials=tuple(trials))


def _samples(lm: VideoLM, plan: Plan, footage: Footage | None) -> list[Sample]:
    if footage:
        return footage(lm.info.frames)
    return [
        Sample(
            frames=frames_of(scene, lm.info.media), questions=tuple(q.text for q in questions_about(scene, QUESTIONS))
        )
        for scene in islice(scenes(FIRST_TUNING_SEED), plan.samples)
    ]


def _find(lm: VideoLM, samples: Sequence[Sample]) -> RegisterReport:
    frames = [sample.frames.chunk(middle := len(sample.frames) // 2, middle + 1) for sample in samples]
    return find_register_neurons(lambda neurons: (lm.trace(frame, neurons) for frame in frames))


def _without_lambdas(lm: VideoLM, plan: Plan, found: RegisterReport) -> Calibration:
    return Calibration(
        weights=lm.info.digest,
        cut=plan.cut or lm.info.cut,
        register="neurons" if found.accepted else FALLBACKS[0],
        neurons=found.neurons if found.accepted else (),
        statistics=_remembered(found),
    )


def _on_rendered(clips: int) -> Callable[[Engine, Pruning], Trial]:
    """Trials by right answers over rendered clips, whose truth is known."""

    def try_out(engine: Engine, pruning: Pruning) -> Trial:
        score = accuracy(engine, pruning, FIRST_TRIAL_SEED, clips)
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


def _on_samples(samples: Sequence[Sample]) -> Callable[[Engine, Pruning], Trial]:
    """Trials by what is kept of the samples themselves."""

    def try_out(engine: Engine, pruning: Pruning) -> Trial:
        answers = [
            engine.ask(state_of(engine, sample.frames, pruning), question, pruning, SamplingParams(max_new_tokens=1))
            for sample in samples
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


def _statistics(found: RegisterReport, unpruned: Trial, chosen: Trial) -> dict[str, float]:
    """What the artefact remembers of how it was made."""
    known = {"accuracy": chosen.right, "accuracy_unpruned": unpruned.right}
    return _remembered(found) | {
        "stage1_kept": chosen.stage1 / chosen.encoded,
        "stage2_kept": chosen.stage2 / chosen.encoded,
        "all_or_nothing": chosen.all_or_nothing,
        "questions": chosen.questions,
        **{name: value for name, value in known.items() if not np.isnan(value)},
    }


def _remembered(found: RegisterReport) -> dict[str, float]:
    return {f"finder_{name}": float(value) for name, value in asdict(found).items() if name != "neurons"}


def _finder_of(stored: Calibration) -> RegisterReport:
    """What the finder said when the artefact was made."""
    said = stored.statistics
    return RegisterReport(
        neurons=stored.neurons,
        largest_norm_before=said["finder_largest_norm_before"],
        largest_norm_after=said["finder_largest_norm_after"],
        n_eff_before=said["finder_n_eff_before"],
        n_eff_after=said["finder_n_eff_after"],
        register_share=said["finder_register_share"],
        accepted=bool(said["finder_accepted"]),
    )
