"""From a budget to a count, and from scores to a mask."""

import math

import torch
from torch import Tensor


def count_of(budget: float, total: int) -> int:
    """Tokens that `budget` allows of `total`: up to 1 it is a share, above 1 a number; nearest whole, halves up.

    At least 0 and at most `total`; a small share may round to 0.
    """
    wanted = budget * total if budget <= 1 else budget
    return math.floor(min(max(wanted, 0), total) + 0.5)


def top_k(scores_N: Tensor, count: int) -> Tensor:
    """The `count` highest scores, bool [N]; the lower index first among equals, so that counts are nested."""
    best = scores_N.float().argsort(descending=True, stable=True)[: max(count, 0)]
    return torch.zeros_like(scores_N, dtype=torch.bool).index_fill(0, best, True)
