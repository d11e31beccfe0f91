"""Finding lambda1 and lambda2 for average budgets, in one pass over samples (arXiv 2605.29657, eq. 18-19).

s(v) / s(r) does not depend on lambda, so a budget is a quantile of these ratios. Every question weighs the same: a
clip counts as often as it is asked about, in either stage.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine
from occam.types import FrameBatch
from pipelines.evaluation.clips import state_of
from pipelines.evaluation.material import Sample


def lambda1_for(engine: Engine, base: OccamToken, samples: Iterable[Sample], share: float) -> OccamToken:
    """`base` with the lambda1 at which stage I keeps this share of the patches, 0 < share <= 1."""
    ratios = [np.tile(_frame_ratios(engine, base, each.frames()), len(each.questions)) for each in samples]
    return replace(base, lambda1=_threshold(np.concatenate(ratios), share))


def lambda2_for(engine: Engine, base: OccamToken, samples: Iterable[Sample], share: float) -> OccamToken:
    """`base` with the lambda2 at which stage II keeps this share of what stage I encoded, 0 < share <= 1."""
    results = [_question_ratios(engine, replace(base, lambda2=1.0), each) for each in samples]
    ratios, encoded = np.concatenate([ratios for ratios, _ in results]), sum(count for _, count in results)
    return replace(base, lambda2=_threshold(ratios, min(1.0, share * encoded / len(ratios))))


def occam_at(engine: Engine, base: OccamToken, samples: Sequence[Sample], shares: Sequence[float]) -> list[OccamToken]:
    """`base` at which each of these shares of the patches is kept, all of them from one pass of stage II.

    lambda2 is set; lambda1 stays as it is, but where stage I would leave less than the share it is set too.
    """
    results = [_question_ratios(engine, replace(base, lambda2=1.0), each) for each in samples]
    ratios, encoded = np.concatenate([ratios for ratios, _ in results]), sum(count for _, count in results)
    return [
        replace(base, lambda2=_threshold(ratios, share * encoded / len(ratios)))
        if share * encoded <= len(ratios)
        else replace(lambda1_for(engine, base, samples, share), lambda2=0.0)
        for share in shares
    ]


def _threshold(ratios: np.ndarray, share: float) -> float:
    """The largest lambda that still keeps `share` of the ratios."""
    return float(np.quantile(ratios, 1 - share, method="lower")) if share < 1 else 0.0


@torch.inference_mode()
def _frame_ratios(engine: Engine, pruning: OccamToken, frames: FrameBatch) -> np.ndarray:
    """Stage I's, of the patches that count."""
    output = engine.lm.encode(frames, pruning.register, pruning.placement)
    reference = output.scores.mean(dim=1) if output.register_scores is None else output.register_scores
    return (output.scores / reference[:, None]).cpu()[engine.lm.shown(frames)].numpy()


def _question_ratios(engine: Engine, pruning: OccamToken, sample: Sample) -> tuple[np.ndarray, int]:
    """Stage II's, of every question one behind the other, and the patches encoded for them."""
    state = state_of(engine, sample.frames(), pruning)
    ratios = []
    for question in sample.questions:
        evidence = engine.ask(state, question, pruning, SamplingParams(max_new_tokens=1)).evidence
        scores = np.concatenate([frame.scores[frame.stage1] for frame in evidence.frames])
        ratios.append(scores / evidence.threshold)
    return np.concatenate(ratios), state.encoded * len(sample.questions)
