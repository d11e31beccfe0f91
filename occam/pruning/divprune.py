"""DivPrune (arXiv 2503.02175): the most diverse set of projected tokens, whatever is asked.

Legend: N tokens, C channels.
"""

import torch
from torch import Tensor

from occam.pruning.similarity import cosines


def divprune_mask(features_NC: Tensor, count: int) -> Tensor:
    """The paper's max-min diversity problem on 1 - cosine, greedily: `count` tokens, bool [N]; holds [N, N].

    The first is the one whose nearest other is farthest, each further one the farthest from all taken; the lower index
    first among equals. No token is taken twice, as duplicates might be in the public code.
    """
    keep_N = torch.zeros_like(features_NC[:, 0], dtype=torch.bool)
    count = min(count, keep_N.shape[0])
    if count <= 0:
        return keep_N
    distance_NN = (1 - cosines(features_NC, features_NC)).fill_diagonal_(torch.inf)
    nearest_N = distance_NN.amin(dim=0)
    for step in range(count):
        taken = nearest_N.masked_fill(keep_N, -torch.inf).argmax()
        keep_N[taken] = True
        nearest_N = distance_NN[taken] if step == 0 else torch.minimum(nearest_N, distance_NN[taken])
    return keep_N
