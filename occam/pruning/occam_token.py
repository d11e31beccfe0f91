"""OccamToken (arXiv 2605.29657): keep a token iff it carries more evidence than a register that carries none.

Stage I tests patches in the vision tower against the register under the CLS token's attention (eq. 4-6), stage II
tests the survivors inside the language model under the question's (eq. 14-17). The number kept is an outcome.
"""

import torch
from torch import Tensor

from occam.config import OccamToken, RegisterMode, RegisterPlacement
from occam.pruning.strategy import TextEvidence
from occam.tensors import RetentionMask


def frame_mask(scores_FP: Tensor, reference_F: Tensor, lambda1: float) -> RetentionMask:
    """s1(v) >= lambda1 * s1(r), per frame; ties pass (eq. 6). Flat [F * P]."""
    threshold_FP = (lambda1 * reference_F)[:, None].expand_as(scores_FP)
    return RetentionMask(
        keep=(scores_FP >= threshold_FP).flatten(), scores=scores_FP.flatten(), threshold=threshold_FP.flatten()
    )


def question_mask(scores_V: Tensor, reference: Tensor, lambda2: float, min_tokens: int) -> RetentionMask:
    """s2(v) >= lambda2 * s2(r), and never fewer than `min_tokens` by score; ties pass (eq. 17)."""
    threshold = lambda2 * reference
    keep = scores_V >= threshold
    floor = min(min_tokens, scores_V.shape[0])
    if int(keep.sum()) < floor:
        best = scores_V.argsort(descending=True, stable=True)[:floor]
        keep = torch.zeros_like(keep).index_fill(0, best, True)
    return RetentionMask(keep=keep, scores=scores_V, threshold=threshold)


class OccamTokenStrategy:
    """The published rule under one configuration; `mean_threshold` replaces the register by the mean score."""

    def __init__(self, config: OccamToken) -> None:
        self.config = config

    @property
    def register(self) -> RegisterMode:
        """Where the reference comes from."""
        return self.config.register

    @property
    def placement(self) -> RegisterPlacement:
        """Where the tower's register token enters."""
        return self.config.placement

    @property
    def keep_cls(self) -> bool:
        """CLS is the evaluator only, unless configured otherwise."""
        return self.config.keep_cls

    def cut(self, layers: int) -> int:
        """The configured cut; ValueError if the model is not that deep."""
        if self.config.cut >= layers:
            raise ValueError(f"cut must lie in 1..{layers - 1} for {layers} decoder layers, got {self.config.cut}")
        return self.config.cut

    def stage1(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:
        """Stage I over the frames of a chunk."""
        reference_F = scores_FP.mean(dim=1) if register_F is None else register_F
        return frame_mask(scores_FP, reference_F, self.config.lambda1)

    def stage2(self, evidence: TextEvidence) -> RetentionMask:
        """Stage II: s2(v) is the largest attention any text token pays it, s2(r) the mean (eq. 15-16)."""
        scores_V = evidence.rows_TV.amax(dim=0)
        against = evidence.rows_TV if evidence.register_T is None else evidence.register_T
        return question_mask(scores_V, against.mean(), self.config.lambda2, self.config.min_tokens)
