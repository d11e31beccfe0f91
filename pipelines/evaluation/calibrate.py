"""`occam registers` and `occam calibrate`: what OccamToken needs to know of a checkpoint, measured on clips."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import torch

from occam.calibration import Calibration
from occam.config import EngineConfig, NoPruning, OccamToken, Random
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.models.base import ModelInfo, VideoLM
from occam.models.registry import load_model, stored_calibration
from occam.registers import Neuron, RegisterReport, TowerTrace, find_register_neurons
from pipelines.evaluation.attention import AttentionFacts, attention_facts
from pipelines.evaluation.budgets import lambda1_for, lambda2_for
from pipelines.evaluation.material import Progress, Sample, counted, digest_of, ignore, rendered
from pipelines.evaluation.premise import (
    FALLBACKS,
    Candidates,
    Verdict,
    candidates,
    described,
    described_facts,
    remembered,
    statistics_of,
)
from pipelines.evaluation.trials import Trial, on_rendered, on_samples

Footage = Callable[[ModelInfo], list[Sample]]
"""A user's clips with their questions, as a model takes them."""


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
        fits = 0 < self.stage2 <= self.stage1 or 1 < self.stage2 < math.inf
        if not (fits and 0 < self.stage1 <= 1):
            raise InvalidInput(
                "Budgets must satisfy 0 < budget <= stage1 <= 1 (above 1, a budget is a number of tokens), got "
                f"budget {self.stage2:g} and stage1 {self.stage1:g}.",
                "budget",
            )
        for name in ("cut", "samples", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} must be at least 1, got {value}.", name)

    def cut_of(self, info: ModelInfo) -> int:
        """Decoder layers before stage II; InvalidInput where the model has no layer behind them."""
        cut = info.cut if self.cut is None else self.cut
        if not 1 <= cut < info.layers:
            raise InvalidInput(
                f"cut must lie in 1..{info.layers - 1} for the {info.layers} decoder layers of {info.name}, got {cut}.",
                "cut",
            )
        return cut

    def share(self, patches: float) -> float:
        """What stage II keeps of the `patches` a question has; InvalidInput where stage I leaves less."""
        share = self.stage2 if self.stage2 <= 1 else self.stage2 / patches
        if share > self.stage1:
            raise InvalidInput(
                f"A budget of {self.stage2:g} tokens passes what stage I keeps: {self.stage1:g} of the {patches:.0f} "
                "patches that a question has on average.",
                "budget",
            )
        return share


@dataclass(frozen=True, kw_only=True)
class Report:
    """A calibration and what it was chosen from; the first trial keeps everything."""

    calibration: Calibration
    finder: RegisterReport
    facts: AttentionFacts
    trials: tuple[Trial, ...]
    verdict: Verdict

    def __str__(self) -> str:
        chosen = self.calibration
        return "\n".join(
            [
                described(self.finder),
                described_facts(self.facts),
                *map(str, self.trials),
                *self.verdict.warnings,
                chosen.verdict,
                f"chosen: {chosen.register}, rule {chosen.rule}, cut {chosen.cut}, lambda1 {chosen.lambda1:.4g}, "
                f"lambda2 {chosen.lambda2:.4g}",
            ]
        )


@torch.inference_mode()
def find_registers(
    config: EngineConfig, plan: Plan, footage: Footage | None = None, progress: Progress = ignore
) -> tuple[Calibration, RegisterReport]:
    """Search for the register neurons on the middle frame of every sample.

    The calibration has no lambdas yet, unless one that is stored stands on the same neurons: then it keeps its own.
    """
    lm = load_model(config, calibrated=False)
    cut, samples = plan.cut_of(lm.info), _samples(lm, plan, footage)
    found = _find(lm, samples, progress)
    fresh = _without_lambdas(lm, cut, found, digest_of(samples))
    stored = stored_calibration(config.model, lm.info.digest)
    if stored is not None and stored.complete and stored.neurons == fresh.neurons:
        fresh = replace(stored, searched=fresh.searched, statistics={**stored.statistics, **fresh.statistics})
    return fresh, found


@torch.inference_mode()
def calibrate(config: EngineConfig, plan: Plan, footage: Footage | None = None, progress: Progress = ignore) -> Report:
    """Set the lambdas for the plan's budgets, on the user's footage or on rendered clips, and choose the reference.

    Register neurons are taken as `occam registers` stored them, else searched. Then the candidates compete at equal
    budgets, beside controls: on rendered clips by right answers, on footage, whose truth nobody knows, by how few views
    they keep whole or not at all. The published rule stays the default unless a candidate is told from it.
    """
    lm = load_model(config, calibrated=False)
    cut, samples = plan.cut_of(lm.info), _samples(lm, plan, footage)
    share = plan.share(_patches(lm, counted("reading", samples, progress)))
    base, found = _stored_or_found(config, lm, cut, samples, progress)
    draft = replace(base, lambda1=1.0, lambda2=1.0, measured=digest_of(samples))
    engine = Engine(lm.calibrated(draft), config)
    facts = attention_facts(engine, draft.defaults, counted("attention", samples, progress))
    contest = candidates(found.accepted, known=footage is None)
    prunings = [NoPruning(), *_at_budgets(engine, contest, samples, plan.stage1, share, progress)]
    if footage:
        trials = on_samples(engine, prunings, samples, progress)
    else:
        trials = on_rendered(engine, [*prunings, Random(budget=share, cut=cut)], plan.trials, progress)
    verdict = Verdict.of(trials[1:])
    default = cast(OccamToken, verdict.chosen.pruning)
    calibration = replace(
        draft,
        register=default.register,
        rule=default.rule,
        lambda1=default.lambda1,
        lambda2=default.lambda2,
        statistics=remembered(found) | statistics_of(trials[0], trials[1:], verdict, facts),
    )
    return Report(calibration=calibration, finder=found, facts=facts, trials=tuple(trials), verdict=verdict)


def _at_budgets(
    engine: Engine, contest: Candidates, samples: list[Sample], stage1: float, share: float, progress: Progress
) -> list[OccamToken]:
    """Every candidate with the lambdas that meet the budgets; lambda1 is the same for all rules of a register."""
    base = cast(OccamToken, engine.pruning("occam"))
    found: list[OccamToken] = []
    for register, rules in contest.items():
        phases = [counted(f"{register}, stage {stage}", samples, progress) for stage in ("I", "II")]
        first = lambda1_for(engine, replace(base, register=register), phases[0], stage1)
        found += lambda2_for(engine, [replace(first, rule=rule) for rule in rules], phases[1], share)
    return found


def _samples(lm: VideoLM, plan: Plan, footage: Footage | None) -> list[Sample]:
    return footage(lm.info) if footage else rendered(plan.samples, lm.info.media)


def _patches(lm: VideoLM, samples: Iterable[Sample]) -> float:
    """Patches that a question has, on average."""
    counts = [(int(lm.shown(sample.frames()).sum()), len(sample.questions)) for sample in samples]
    return sum(patches * questions for patches, questions in counts) / sum(questions for _, questions in counts)


def _stored_or_found(
    config: EngineConfig, lm: VideoLM, cut: int, samples: Sequence[Sample], progress: Progress
) -> tuple[Calibration, RegisterReport]:
    """The finder's result as it is stored, where it has neurons or comes from the same samples; else of a search."""
    material = digest_of(samples)
    stored = stored_calibration(config.model, lm.info.digest)
    if stored is not None and (stored.neurons or stored.searched == material) and (found := _finder_of(stored)):
        return _without_lambdas(lm, cut, found, stored.searched), found
    found = _find(lm, samples, progress)
    return _without_lambdas(lm, cut, found, material), found


def _find(lm: VideoLM, samples: Sequence[Sample], progress: Progress) -> RegisterReport:
    def watch(neurons: tuple[Neuron, ...] | None) -> Iterator[TowerTrace]:
        phase = "no register" if neurons is None else f"register of {len(neurons)} neurons"
        return (lm.trace(sample.middle(), neurons) for sample in counted(phase, samples, progress))

    return find_register_neurons(watch)


def _without_lambdas(lm: VideoLM, cut: int, found: RegisterReport, searched: str) -> Calibration:
    return Calibration(
        weights=lm.info.digest,
        cut=cut,
        register="neurons" if found.accepted else FALLBACKS[0],
        neurons=found.neurons if found.accepted else (),
        searched=searched,
        statistics=remembered(found),
    )


def _finder_of(stored: Calibration) -> RegisterReport | None:
    """What the finder said when the artefact was made; None where that is not kept."""
    said = stored.statistics
    if not said.keys() >= {f"finder_{field.name}" for field in fields(RegisterReport)} - {"finder_neurons"}:
        return None
    return RegisterReport(
        neurons=stored.neurons,
        largest_norm_before=said["finder_largest_norm_before"],
        largest_norm_after=said["finder_largest_norm_after"],
        n_eff_before=said["finder_n_eff_before"],
        n_eff_after=said["finder_n_eff_after"],
        register_share=said["finder_register_share"],
        accepted=bool(said["finder_accepted"]),
    )
