"""OccamToken (arXiv 2605.29657): keep a token iff it carries more evidence than a register that carries none.

Stage I tests patches in the vision tower against the register under the CLS token's attention (eq. 4-6), stage II
tests the survivors inside the language model under the question's (eq. 14-17). The number kept is an outcome.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from occam.config import OccamToken
from occam.pruning.selection import count_of, top_k
from occam.pruning.strategy import Strategy, TextEvidence, checked_cuts
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


def rule_mask(config: OccamToken, scores_N: Tensor, references: Mapping[str, Tensor], encoded: int) -> RetentionMask:
    """Stage II under `config.rule`; references: what the threshold rules compare with, by rule."""
    if config.rule in references:
        return question_mask(scores_N, references[config.rule], config.lambda2, config.min_tokens)
    if config.rule == "top_k":
        count = count_of(min(config.lambda2, 1.0), encoded)
    else:
        count = mass_count(scores_N, config.lambda2)
    mask = top_k(scores_N, max(count, min(config.min_tokens, len(scores_N))))
    least = scores_N[mask].min() if bool(mask.any()) else scores_N.new_tensor(float("nan"))
    return RetentionMask(keep=mask, scores=scores_N, threshold=least)


def mass_count(scores_N: Tensor, share: float) -> int:
    """How many of the best scores it takes to hold `share` of their sum."""
    if len(scores_N) == 0 or share >= 1:
        return len(scores_N)
    held = scores_N.double().sort(descending=True).values.cumsum(0)
    return min(len(scores_N), int((held < share * held[-1]).sum()) + 1)


class OccamTokenStrategy(Strategy):
    """The published rule under one configuration; `mean_threshold` replaces the register by the mean score."""

    def __init__(self, config: OccamToken) -> None:
        self.config = config
        self.register = config.register
        self.placement = config.placement
        self.keep_cls = config.keep_cls

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut; ValueError if the model is not that deep."""
        return checked_cuts((self.config.cut,), layers)

    def in_tower(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:
        """Stage I over the frames of a chunk."""
        reference_F = scores_FP.mean(dim=1) if register_F is None else register_F
        return frame_mask(scores_FP, reference_F, self.config.lambda1)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """Stage II: s2(v) is the largest attention any text token pays it, s2(r) the mean (eq. 15-16)."""
        del number
        rows = evidence.rows_TN
        against = rows if evidence.register_T is None else evidence.register_T
        references = {
            "register": against.mean(),
            "mean": rows.amax(dim=0).mean(),
            "first_token": evidence.first_T.mean(),
        }
        return rule_mask(self.config, rows.amax(dim=0), references, evidence.encoded)
