"""Ours: as many tokens as hold a share of the evidence, sampled evenly along it instead of taken from the top.

What a question needs differs by an order of magnitude, from one patch to all objects of all frames, and shows in how
its attention spreads: the count is the fewest tokens that hold a share of it (top-p). Which tokens: the best ones of a
scene are neighbours that tell the same. A systematic sample of probability proportional to size (Madow 1949) keeps all
tokens of large score and, of each stretch of the video, as many of the others as its evidence deserves; the sum of any
value over the sample, each over its probability, is an unbiased estimate of the sum over all (Horvitz, Thompson 1952).

Legend: N visual tokens in the prompt's order.
"""

import torch
from torch import Tensor

from occam.config import Systematic
from occam.pruning.occam_token import mass_count
from occam.pruning.strategy import Strategy, TextEvidence, checked_cuts, kept
from occam.tensors import RetentionMask


def inclusion(scores_N: Tensor, count: int) -> Tensor:
    """min(1, c * score) with the c at which they sum to `count`, float64 [N].

    scores: at least 0; where fewer than `count` are above 0, those are certain and the rest share what is left.
    """
    scores = scores_N.double()
    total = len(scores)
    if count >= total:
        return torch.ones_like(scores)
    ordered = scores.sort(descending=True).values
    # With the best m certain, c is (count - m) / (sum of the rest): the first m whose next score stays below 1 fits.
    rest = ordered.flip(0).cumsum(0).flip(0)[:count]
    left = count - torch.arange(count, device=scores.device)
    certain = int((ordered[:count] * left > rest).sum())
    share = scores.clone()
    if certain < count and float(rest[certain]) > 0:
        return (share * (left[certain] / rest[certain])).clamp(max=1.0)
    positive = scores > 0
    spread = (count - int(positive.sum())) / max(1, total - int(positive.sum()))
    return torch.where(positive, 1.0, spread)


def systematic_mask(inclusion_N: Tensor) -> Tensor:
    """Where the running sum of probabilities passes the halves, bool [N]: as many as they sum to."""
    steps = (inclusion_N.cumsum(0) + 0.5 + 1e-9).floor()
    return steps.diff(prepend=steps.new_zeros(1)) > 0


class SystematicStrategy(Strategy):
    """`systematic`: a top-p count of s2, drawn evenly along it."""

    def __init__(self, config: Systematic) -> None:
        self.config = config

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut."""
        return checked_cuts((self.config.cut,), layers)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """By the largest attention that any text token pays, as OccamToken's stage II has it (eq. 15)."""
        del number
        scores = evidence.rows_TN.amax(dim=0)
        return kept(systematic_mask(inclusion(scores, mass_count(scores, self.config.mass))), scores)
