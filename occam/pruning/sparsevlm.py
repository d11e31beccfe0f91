"""SparseVLM (arXiv 2410.04417), its second version: text tokens that see rate the visual ones, in several cuts.

Nothing is merged, and kept tokens keep their positions.
Legend: T text tokens, N visual tokens, C channels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

_LAYERS = 32
_CUTS = (2, 6, 15)
# Published counts for 192 of 576 tokens on average are 300, 200 and 118: about this much less with every cut. It comes
# close for 64 (66, 34, 20) too; the lists for 128 and 96 fall unevenly.
_DECAY = 0.63
# Of the mean weight. Equal text tokens must not be parted by rounding.
_MARGIN = 1e-5


def raters(visual_NC: Tensor, text_TC: Tensor) -> Tensor:
    """Text tokens whose weight, the mean over visual tokens of softmax(V T^t), exceeds the average; bool [T].

    The paper's relevant text selection, from the embeddings that enter the decoder. [Ours]: where none exceeds the
    average, all rate.
    """
    if visual_NC.shape[0] == 0:
        return torch.ones_like(text_TC[:, 0], dtype=torch.bool)
    weight_T = torch.softmax(visual_NC.float() @ text_TC.float().mT, dim=1).mean(dim=0)
    above_T = weight_T > weight_T.mean() * (1 + _MARGIN)
    return above_T | ~above_T.any()


def sparsevlm_scores(rows_TN: Tensor, raters_T: Tensor) -> Tensor:
    """Mean attention of the raters to each visual token, heads averaged; float32 [N], zero without raters."""
    return (rows_TN.float() * raters_T[:, None]).sum(dim=0) / raters_T.sum().clamp(min=1)


def attention_rank(rows_TN: Tensor, raters_T: Tensor) -> int:
    """Rank of the raters' attention to the visual tokens: what the paper's code for Video-LLaVA keeps, at one cut.

    Singular values up to max(raters, N) float32 epsilons of the largest count as zero, on whatever device.
    """
    raters_RN = rows_TN[raters_T].double()
    if raters_RN.numel() == 0:
        return 0
    return int(torch.linalg.matrix_rank(raters_RN, rtol=max(raters_RN.shape) * torch.finfo(torch.float32).eps))


def cuts_of(layers: int) -> tuple[int, ...]:
    """Decoder layers that tokens are dropped in front of: the paper's 2, 6 and 15 of 32, scaled to `layers`.

    Shallow models have fewer: each cut lies in 1..layers - 1, and no two are the same.
    """
    scaled = {max(1, math.floor(cut * layers / _LAYERS + 0.5)) for cut in _CUTS}
    return tuple(sorted(cut for cut in scaled if cut < layers))


def cut_counts(total: int, average: float, cuts: Sequence[int], layers: int) -> tuple[int, ...]:
    """Tokens kept at each of the ascending `cuts`, so that `layers` layers see `average` of `total` in the mean.

    Layers in front of the first cut see all, which the average includes, as in the paper: 0 everywhere where they
    alone cost more. Each cut keeps 0.63 of what the one before keeps, none more than `total`; nearest whole, halves up.
    """
    ends = (*cuts, layers)
    spans = [end - cut for cut, end in pairwise(ends)]
    shares = [_DECAY**i for i in range(len(spans))]
    left = max(average * layers - total * ends[0], 0.0)
    counts = []
    for i, span in enumerate(spans):
        scale = left / sum(length * share for length, share in zip(spans[i:], shares[i:], strict=True))
        counts.append(min(scale * shares[i], total))
        left -= counts[i] * span
    return tuple(math.floor(count + 0.5) for count in counts)
