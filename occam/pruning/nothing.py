"""Strategy `nothing`: no visual token passes the cut, which shows what the layers in front of it have already read."""

import torch

from occam.config import Nothing
from occam.pruning.strategy import Strategy, TextEvidence, checked_cuts, kept
from occam.tensors import RetentionMask


class KeepNothing(Strategy):
    """The floor of whatever prunes before the same layer."""

    def __init__(self, config: Nothing) -> None:
        self.config = config

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut."""
        return checked_cuts((self.config.cut,), layers)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """None of them."""
        del number
        scores = evidence.rows_TN.amax(dim=0)
        return kept(torch.zeros_like(scores, dtype=torch.bool), scores)
