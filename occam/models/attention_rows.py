"""Attention rows computed apart from the model, which itself keeps SDPA: few queries, one softmax over the full row.

Legend: B batch, H heads, K key-value heads, T queries, N keys, D head width.
"""

import torch
from torch import Tensor


def attention_rows(q_BHTD: Tensor, k_BKND: Tensor, scaling: float, visible_TN: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scaling) averaged over heads, in fp32 whatever the model's dtype; float32 [B, T, N].

    Key-value heads are expanded to the query heads; `visible_TN` (bool) hides keys from queries.
    """
    groups = q_BHTD.shape[1] // k_BKND.shape[1]
    k_BHND = k_BKND.float().contiguous()
    if groups > 1:
        k_BHND = k_BHND.repeat_interleave(groups, dim=1)
    logits = q_BHTD.float() @ k_BHND.transpose(2, 3) * scaling
    if visible_TN is not None:
        logits = logits.masked_fill(~visible_TN, float("-inf"))
    return torch.softmax(logits, dim=-1).mean(dim=1)
