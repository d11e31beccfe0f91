"""VisionZip (arXiv 2412.04467): the patches that get most attention, and some others that stand for the rest.

Scores and keys are of the tower's block before the last. Merging suits positions of one axis only; models with
M-RoPE take the mask alone.
Legend: V views (frames or temporal groups), P patches of a view, H heads, D head width.
"""

import math

import torch
from torch import Tensor

from occam.pruning.similarity import cosines


def split(count: int, views: int, share: float = 54 / 64) -> tuple[Tensor, Tensor]:
    """Dominant and contextual patches of each view, `count` in all, spread evenly; int64 [V] each, on the CPU.

    share: dominant ones among those kept in a view, 54 of 64 in the paper; nearest whole, halves up
    """
    kept = [(view + 1) * count // views - view * count // views for view in range(views)]
    dominant_V = torch.tensor([math.floor(n * share + 0.5) for n in kept], dtype=torch.int64, device="cpu")
    return dominant_V, torch.tensor(kept, dtype=torch.int64, device="cpu") - dominant_V


def visionzip_masks(received_VP: Tensor, dominant_V: Tensor, contextual_V: Tensor) -> tuple[Tensor, Tensor]:
    """Which patches are dominant, which contextual; bool [V, P] each. Their union is the prune-only form.

    received_VP: attention from CLS; in a tower without CLS, the mean attention from all patches of the view
    Dominant are the most attended; contextual stand at every (rest / count)-th of the rest, rounded down, from its
    first. The lower index comes first among equals; counts above what there is take what there is.
    """
    dominant_V1, contextual_V1 = (n.to(received_VP.device)[:, None] for n in (dominant_V, contextual_V))
    rank_VP = received_VP.float().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    dominant_VP = rank_VP < dominant_V1
    place_VP = (~dominant_VP).cumsum(dim=1) - 1
    rest_V1 = (~dominant_VP).sum(dim=1, keepdim=True)
    step_V1 = (rest_V1 // contextual_V1.clamp(min=1)).clamp(min=1)
    contextual_VP = ~dominant_VP & (place_VP % step_V1 == 0) & (place_VP // step_V1 < contextual_V1)
    return dominant_VP, contextual_VP


def merge_weights(keys_VPHD: Tensor, dominant_VP: Tensor, contextual_VP: Tensor) -> Tensor:
    """What each patch takes up of the others of its view, float32 [V, P, P]: features + weights @ features is merged.

    Every patch that is not kept goes to the contextual one of its view whose head-mean key has the largest cosine with
    its own, at 1 / (patches that go there): output = target + mean of assigned, not an average. In a view without
    contextual patches the rest is dropped. Dense, since a scattered sum has no fixed order on a GPU.
    """
    keys_VPD = keys_VPHD.float().mean(dim=2)
    rest_VP = ~(dominant_VP | contextual_VP) & contextual_VP.any(dim=1, keepdim=True)
    likeness_VPP = cosines(keys_VPD, keys_VPD).masked_fill(~contextual_VP[:, None], -torch.inf)
    patch_P = torch.arange(rest_VP.shape[1], device=rest_VP.device)
    assigned_VPP = (likeness_VPP.argmax(dim=2)[:, None] == patch_P[:, None]) & rest_VP[:, None]
    return assigned_VPP / assigned_VPP.sum(dim=2, keepdim=True).clamp(min=1)
