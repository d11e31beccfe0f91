"""IWP, implicit weight pruning (arXiv 2604.00757): keep tokens whose rank-1 updates are large and unlike each other.

Attention is read as a linear layer with implicit weights, the sum of one rank-1 update k_i v_i^t for each token, under
the kernel kappa(x, y) = exp(x . y / sqrt(D)). At the input of one decoder layer (4 in the paper), from its q, k and v.
Legend: T text tokens, N visual tokens, H query heads, K key-value heads, G query heads of each of them, D head width.
"""

import math

import torch
from torch import Tensor

from occam.pruning.similarity import cosines, min_max

_LEAST_FACTOR = 0.01


def magnitude(q_THD: Tensor, k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
    """kappa(mean query of the text, k_i) |v_i|, mean over query heads, scaled to 0..1; float32 [N].

    Queries and keys come without rotary embedding. [Ours]: one maximum over all tokens and heads is subtracted before
    the exponential, which the scaling takes back; without text the query is zero.
    """
    heads, width = k_NKD.shape[1:]
    q_HD = q_THD.float().sum(dim=0) / max(q_THD.shape[0], 1)
    logits_NKG = torch.einsum("nkd,kgd->nkg", k_NKD.float(), q_HD.reshape(heads, -1, width)) / math.sqrt(width)
    if logits_NKG.numel() == 0:
        return logits_NKG.new_zeros(k_NKD.shape[0])
    kappa_NKG = torch.exp(logits_NKG - logits_NKG.max())
    return min_max((kappa_NKG * v_NKD.float().norm(dim=-1)[..., None]).mean(dim=(1, 2)))


def duplication(k_NKD: Tensor, v_NKD: Tensor) -> Tensor:
    """cos(v_i, v_j) exp(-|k_i - k_j|^2 / (2 sqrt(D))), mean over key-value heads, scaled to 0..1; float32 [N, N].

    Keys come with rotary embedding. The scaling takes the diagonal in [ours]. Heads are taken one after the other: a
    few [N, N] at once, never [K, N, N].
    """
    tokens, heads, width = k_NKD.shape
    total_NN = k_NKD.new_zeros(tokens, tokens, dtype=torch.float32)
    for head in range(heads):
        k_ND = k_NKD[:, head].float()
        # Distances outlive a shift; without it the squares of keys with a large common part drown them.
        k_ND = k_ND - k_ND.sum(dim=0) / max(tokens, 1)
        square_N = k_ND.square().sum(dim=-1)
        distance_NN = (square_N[:, None] + square_N - 2 * k_ND @ k_ND.mT).clamp(min=0)
        total_NN += cosines(v_NKD[:, head], v_NKD[:, head]) * torch.exp(-distance_NN / (2 * math.sqrt(width)))
    return min_max(total_NN)


def pc_mmr(
    magnitude_N: Tensor, duplication_NN: Tensor, count: int, first: int = 2, growth: int = 2, penalty: float = 5.0
) -> Tensor:
    """Progressive chunked maximal marginal relevance: `count` tokens, bool [N]; the lower index first among equals.

    Takes chunks of `first`, `first` * `growth`, ... of the highest magnitude. Behind each, every token left is worth
    max(0.01, 1 - `penalty` s) of before, s its largest squared duplication with the chunk.
    """
    worth_N = magnitude_N.float()
    keep_N = torch.zeros_like(worth_N, dtype=torch.bool)
    left, chunk = min(count, worth_N.shape[0]), first
    while left > 0:
        taken = worth_N.masked_fill(keep_N, -torch.inf).argsort(descending=True, stable=True)[: min(chunk, left)]
        keep_N = keep_N.index_fill(0, taken, True)
        likeness_N = duplication_NN[:, taken].float().square().amax(dim=1)
        worth_N = worth_N * (1 - penalty * likeness_N).clamp(min=_LEAST_FACTOR)
        left, chunk = left - taken.shape[0], chunk * growth
    return keep_N
