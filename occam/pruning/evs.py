"""EVS, efficient video sampling (arXiv 2510.14624): keep the patches that changed most, anywhere in the video.

Legend: V views (frames or temporal groups), P patches of a view, C channels.
"""

from torch import Tensor

from occam.pruning.selection import top_k
from occam.pruning.similarity import change


def evs_mask(features_VPC: Tensor, count: int) -> Tensor:
    """The `count` patches least like the same patch of the view before; bool [V, P].

    By 1 - cosine of merged embeddings, over all views at once, as in the public code. The first view is always kept
    whole, so never fewer than P. The lower index comes first among equals.
    """
    change_VP = change(features_VPC)
    return top_k(change_VP.flatten(), max(count, change_VP.shape[1])).view_as(change_VP)
