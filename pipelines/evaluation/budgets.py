"""Finding lambda1 and lambda2 for average budgets, in one pass over samples (arXiv 2605.29657, eq. 18-19).

Whether a patch is kept at a lambda is told by a figure of its own that does not depend on lambda, so a budget is a
quantile of these figures: s(v) / s(r) where a rule compares with a reference, the share of all score that better
patches hold under `top_p`, the rank over the number encoded under `top_k`. Every question weighs the same: a clip
counts as often as it is asked about, in either stage.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from occam.config import OccamToken, SamplingParams, Systematic
from occam.engine import Engine
from occam.types import Evidence, FrameBatch
from pipelines.evaluation.material import Sample

LEAST_MASS = 1e-9
"""Keeps one patch of every question; no mass at all is no setting."""


def lambda1_for(engine: Engine, base: OccamToken, samples: Iterable[Sample], share: float) -> OccamToken:
    """`base` with the lambda1 at which stage I keeps this share of the patches, 0 < share <= 1."""
    ratios = [np.tile(_frame_ratios(engine, base, each.frames()), len(each.questions)) for each in samples]
    return replace(base, lambda1=_threshold(np.concatenate(ratios), share))


def lambda2_for(
    engine: Engine, bases: Sequence[OccamToken], samples: Iterable[Sample], share: float
) -> list[OccamToken]:
    """`bases`, which differ in late settings alone, with the lambda2 at which each keeps this share of the patches.

    0 < share <= 1; where stage I leaves less, all of that is kept. One pass, a state a clip.
    """
    measured = _measured(engine, bases, samples)
    return [replace(base, lambda2=each.setting(share)) for base, each in zip(bases, measured, strict=True)]


def occam_at(engine: Engine, base: OccamToken, samples: Sequence[Sample], shares: Sequence[float]) -> list[OccamToken]:
    """`base` at which each of these shares of the patches is kept, all of them from one pass of stage II.

    lambda2 is set; lambda1 stays as it is, but where stage I would leave less than the share it is set too.
    """
    (measured,) = _measured(engine, [base], samples)
    return [
        replace(
            lambda1_for(engine, base, samples, share) if measured.leaves_less_than(share) else base,
            lambda2=measured.setting(share),
        )
        for share in shares
    ]


def systematic_at(
    engine: Engine, base: Systematic, samples: Sequence[Sample], shares: Sequence[float]
) -> list[Systematic]:
    """`base` with the mass at which each of these shares of the patches is kept, all of them from one pass."""
    (measured,) = _measured(engine, [base], samples)
    return [replace(base, mass=measured.setting(share) or LEAST_MASS) for share in shares]


@dataclass(kw_only=True)
class _Measured:
    """What all questions show of how many patches `pruning` keeps in the decoder, by its rule.

    figures: of every question, one for each patch that stage I left, see the module; encoded: patches before stage I
    """

    pruning: OccamToken | Systematic
    rule: str
    figures: list[npt.NDArray[np.floating]] = field(default_factory=list)
    encoded: int = 0

    def take(self, evidence: Evidence, encoded: int) -> None:
        """The evidence of one more question."""
        scores = np.concatenate([frame.scores[frame.stage1] for frame in evidence.frames])
        if self.rule == "top_p":
            best = np.sort(scores.astype(np.float64))[::-1]
            self.figures.append((best.cumsum() - best) / best.sum())
        elif self.rule == "top_k":
            self.figures.append(np.arange(1, len(scores) + 1) / encoded)
        else:
            self.figures.append(scores / evidence.threshold)
        self.encoded += encoded

    def leaves_less_than(self, share: float) -> bool:
        """Whether stage I leaves less than this share of the patches."""
        return sum(map(len, self.figures)) < share * self.encoded

    def setting(self, share: float) -> float:
        """The lambda2, or the mass, at which `share` of the patches is kept, or all that stage I left."""
        figures = np.concatenate(self.figures)
        rest = min(1.0, share * self.encoded / len(figures))
        if self.rule == "top_k":
            # One rank more is a patch more of nearly every question: the nearest, not the next.
            place = max(0, int(rest * len(figures) - len(self.figures) / 2))
            return float(np.sort(figures)[place]) if rest < 1 else 1.0
        if self.rule == "top_p":
            return float(np.quantile(figures, rest, method="higher")) if rest < 1 else 1.0
        return _threshold(figures, rest)


def _threshold(ratios: npt.NDArray[np.floating], share: float) -> float:
    """The largest lambda that still keeps `share` of the ratios."""
    return float(np.quantile(ratios, 1 - share, method="lower")) if share < 1 else 0.0


@torch.inference_mode()
def _frame_ratios(engine: Engine, pruning: OccamToken, frames: FrameBatch) -> np.ndarray:
    """Stage I's, of the patches that count."""
    [output] = engine.lm.encode([frames], pruning.register, pruning.placement)
    reference = output.scores.mean(dim=1) if output.register_scores is None else output.register_scores
    return (output.scores / reference[:, None]).cpu()[engine.lm.shown(frames)].numpy()


def _measured(engine: Engine, bases: Sequence[OccamToken | Systematic], samples: Iterable[Sample]) -> list[_Measured]:
    """Every question asked under every pruning, over one state a clip."""
    measured = [_in_full(base) for base in bases]
    for sample in samples:
        state = engine.state_of(sample.frames(), bases[0])
        for question in sample.questions:
            for each in measured:
                answer = engine.ask(state, question, each.pruning, SamplingParams(max_new_tokens=1))
                each.take(answer.evidence, state.encoded)
    return measured


def _in_full(base: OccamToken | Systematic) -> _Measured:
    if isinstance(base, Systematic):
        return _Measured(pruning=replace(base, mass=1.0), rule="top_p")
    return _Measured(pruning=replace(base, lambda2=1.0), rule=base.rule)
