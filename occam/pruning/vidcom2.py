"""VidCom2 (arXiv 2505.14454): keep what is least like its video and its frame, and more of unusual frames.

After the public code, which the published numbers come from: similarities are sums of Gaussian kernels on half of the
channels, where the paper has cosines. Views are the paper's frames.
Legend: V views (frames or temporal groups), P patches of a view, C channels.
"""

import math

import torch
from torch import Tensor

from occam.pruning.selection import top_k
from occam.pruning.similarity import unit

_SCALES = tuple(2.0**power for power in range(-3, 2))
_TEMPERATURE = 0.01


def similarities(features_VPC: Tensor) -> tuple[Tensor, Tensor]:
    """Likeness of each patch to the video's mean and to its view's mean; float32 [V, P] each, up to 5.

    The sum of exp(-d^2 / (2 s)) over s = 1/8, 1/4, 1/2, 1, 2; d between unit vectors and their means, on the half of
    the channels that vary least over the video.
    """
    x_VPC = features_VPC.float()
    variance_C = x_VPC.flatten(0, 1).var(dim=0, correction=0)
    quiet = variance_C.argsort(stable=True)[: max(variance_C.shape[0] // 2, 1)]
    x_VPC = unit(x_VPC[..., quiet])
    return _likeness(x_VPC, x_VPC.mean(dim=(0, 1), keepdim=True)), _likeness(x_VPC, x_VPC.mean(dim=1, keepdim=True))


def view_budgets(to_video_VP: Tensor, count: int) -> list[int]:
    """Patches kept in each view, `count` in all, each within its bounds.

    A view has count / V (1 + p - mean p), p the softmax of -(mean likeness to the video) / 0.01: more if it is unlike
    the rest. Whole numbers with the sum of `count` go by largest remainder [ours]; where the count allows it, no view
    goes without.
    """
    views, patches = to_video_VP.shape
    unusual_V = torch.softmax(-to_video_VP.mean(dim=1) / _TEMPERATURE, dim=0)
    wanted = (count / views * (1 + unusual_V - unusual_V.mean())).tolist()
    least = 1 if count >= views else 0
    budgets = [min(max(math.floor(share), least), patches) for share in wanted]
    while (left := count - sum(budgets)) != 0:
        step = 1 if left > 0 else -1
        able = [view for view in range(views) if least <= budgets[view] + step <= patches]
        furthest = max(able, key=lambda view: step * (wanted[view] - budgets[view]))
        budgets[furthest] += step
    return budgets


def vidcom2_mask(features_VPC: Tensor, count: int) -> Tensor:
    """The `count` patches least like the video's and their view's mean, each view within its budget; bool [V, P]."""
    views, patches, _ = features_VPC.shape
    count = min(max(count, 0), views * patches)
    if count == 0:
        return torch.zeros_like(features_VPC[..., 0], dtype=torch.bool)
    to_video_VP, to_view_VP = similarities(features_VPC)
    budgets = view_budgets(to_video_VP, count)
    unlike_VP = -(to_video_VP + to_view_VP)
    return torch.stack([top_k(unlike_P, budget) for unlike_P, budget in zip(unlike_VP, budgets, strict=True)])


def _likeness(x_VPC: Tensor, center_VPC: Tensor) -> Tensor:
    square_VP = (x_VPC - center_VPC).square().sum(dim=-1)
    return torch.stack([torch.exp(-square_VP / (2 * scale)) for scale in _SCALES]).sum(dim=0)
