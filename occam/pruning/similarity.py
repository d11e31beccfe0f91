"""Cosines and scalings that several strategies share; all in float32, and defined for zero vectors.

Legend: V views (frames or temporal groups), P patches of a view, N tokens, C channels.
"""

import torch
from torch import Tensor

# Of the largest entry. A smaller spread is rounding, which scaling would blow up to a ranking.
_EQUAL = 1e-5


def unit(x_NC: Tensor) -> Tensor:
    """Vectors of the last axis at length 1, float32; zero vectors stay zero, so that their cosine with any is 0."""
    # The largest entry goes first: squares of very large and very small ones leave float32.
    x_NC = x_NC.float()
    largest_N1 = x_NC.abs().amax(dim=-1, keepdim=True)
    x_NC = x_NC / largest_N1.where(largest_N1 > 0, 1.0)
    length_N1 = x_NC.square().sum(dim=-1, keepdim=True).sqrt()
    return x_NC / length_N1.where(length_N1 > 0, 1.0)


def cosines(x_NC: Tensor, y_MC: Tensor) -> Tensor:
    """Cosine of every vector with every other, float32 [N, M]."""
    return unit(x_NC) @ unit(y_MC).mT


def change(features_VPC: Tensor) -> Tensor:
    """1 - cosine with the same patch of the view before, float32 [V, P]; infinite in the first view, all new."""
    unit_VPC = unit(features_VPC)
    # |u - v|^2 / 2 is 1 - cos for unit vectors, and exactly 0 where nothing moved: rounding orders no static patches.
    moved_WP = (unit_VPC[1:] - unit_VPC[:-1]).square().sum(dim=-1) / 2
    zero_VP = (unit_VPC == 0).all(dim=-1)
    moved_WP = moved_WP.masked_fill(zero_VP[1:] | zero_VP[:-1], 1.0)
    return torch.cat([torch.full_like(zero_VP[:1], torch.inf, dtype=torch.float32), moved_WP])


def min_max(x: Tensor) -> Tensor:
    """All entries scaled to 0..1 by the smallest and the largest, float32; all 1 where they are equal (to 1e-5)."""
    x = x.float()
    if x.numel() == 0:
        return x
    low, high = x.aminmax()
    apart = high - low > _EQUAL * torch.maximum(-low, high)
    return torch.where(apart, (x - low) / (high - low).where(apart, 1.0), 1.0)
