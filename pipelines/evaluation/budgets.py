"""Finding lambda1 and lambda2 for average budgets, in one pass over samples (arXiv 2605.29657, eq. 18-19).

s(v) / s(r) does not depend on lambda, so a budget is a quantile of these ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.types import FrameBatch
from pipelines.evaluation.clips import state_of


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A clip with the questions asked about it."""

    frames: FrameBatch
    questions: tuple[str, ...]


def lambdas_for(
    engine: Engine, base: OccamToken, samples: Sequence[Sample], stage1: float, stage2: float
) -> OccamToken:
    """`base` with the lambdas at which, on average over `samples`, the shares of patches kept are these.

    stage1: kept / encoded; stage2: the same, or above 1 the patches kept of a sample; 0 < stage2 <= stage1 <= 1 once
    both are shares, else InvalidInput
    """
    ratios1 = np.concatenate([_frame_ratios(engine, base, sample.frames) for sample in samples])
    if stage2 > 1:
        stage2 *= len(samples) / len(ratios1)
    if not 0 < stage2 <= stage1 <= 1:
        raise InvalidInput(f"Budgets must satisfy 0 < budget <= stage1 <= 1, got {stage2:g} and {stage1:g}.", "budget")
    first = replace(base, lambda1=_threshold(ratios1, stage1), lambda2=1.0)
    ratios2 = np.concatenate([_question_ratios(engine, first, sample) for sample in samples])
    return replace(first, lambda2=_threshold(ratios2, min(1.0, stage2 / stage1)))


def _threshold(ratios: np.ndarray, share: float) -> float:
    """The largest lambda that still keeps `share` of the ratios."""
    return float(np.quantile(ratios, 1 - share, method="lower")) if share < 1 else 0.0


@torch.inference_mode()
def _frame_ratios(engine: Engine, pruning: OccamToken, frames: FrameBatch) -> np.ndarray:
    output = engine.lm.encode(frames, pruning.register, pruning.placement)
    reference = output.scores.mean(dim=1) if output.register_scores is None else output.register_scores
    return (output.scores / reference[:, None]).flatten().cpu().numpy()


def _question_ratios(engine: Engine, pruning: OccamToken, sample: Sample) -> np.ndarray:
    state = state_of(engine, sample.frames, pruning)
    ratios = []
    for question in sample.questions:
        evidence = engine.ask(state, question, pruning, SamplingParams(max_new_tokens=1)).evidence
        scores = np.concatenate([frame.scores[frame.stage1] for frame in evidence.frames])
        ratios.append(scores / evidence.threshold)
    return np.concatenate(ratios)
