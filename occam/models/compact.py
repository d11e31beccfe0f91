"""The one place where a retention mask becomes shorter tensors.

Legend: F frames, P patches of a frame, C channels, N tokens kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptTokens:
    """Tower features that go on to the projector, in the stock model's order.

    features: [N, C]; offsets: int64 [N], position in the unpruned chunk; view: int64 [N]; patch: int64 [N], -1 for CLS
    """

    features: Tensor
    offsets: Tensor
    view: Tensor
    patch: Tensor


def compact_frames(features_FNC: Tensor, keep_FP: Tensor, keep_cls: bool) -> KeptTokens:
    """Drop the patches that stage I rejects; what is kept keeps the position it has in the stock sequence.

    features_FNC: CLS first, then P patches a frame; keep_FP: bool
    """
    frames, tokens, _ = features_FNC.shape
    cls_F1 = torch.full((frames, 1), keep_cls, dtype=torch.bool, device=keep_FP.device)
    keep = torch.cat([cls_F1, keep_FP], dim=1).flatten()
    offsets = keep.nonzero().squeeze(1)
    return KeptTokens(
        features=features_FNC.flatten(0, 1)[offsets],
        offsets=offsets,
        view=offsets // tokens,
        patch=offsets % tokens - 1,
    )
