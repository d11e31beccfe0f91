"""FastV (arXiv 2403.06764): behind an early layer, keep what the last token attends to most.

Legend: T text tokens, V visual tokens.
"""

from torch import Tensor


def fastv_scores(rows_TV: Tensor) -> Tensor:
    """The paper's phi: attention of the last text token at layer K - 1, heads averaged; float32 [V].

    Zero where there is no text token. Pruning acts at the input of layer K (2 in the paper), by top-k.
    """
    return rows_TV[-1:].float().sum(dim=0)
