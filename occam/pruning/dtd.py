"""DTD, differential token drop (TimeChat-Online, arXiv 2504.17343): drop what the view before already showed.

Legend: V views (frames or temporal groups), P patches of a view, C channels.
"""

from torch import Tensor

from occam.pruning.similarity import change


def dtd_mask(features_VPC: Tensor, tau: float = 0.5) -> Tensor:
    """Patches whose cosine with the same patch of the view before does not exceed `tau`; bool [V, P].

    The comparison is with the view right before, kept or not. The first view is kept whole; the count is an outcome.
    """
    return change(features_VPC) >= 1 - tau
