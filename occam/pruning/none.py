"""Strategy `none`: the stock model, every token kept, CLS tokens included."""

import torch
from torch import Tensor

from occam.config import RegisterMode, RegisterPlacement
from occam.pruning.strategy import TextEvidence
from occam.tensors import RetentionMask


class KeepAll:
    """No register, no scores, no cut: all decoder layers run on all tokens."""

    register: RegisterMode | None = None
    placement: RegisterPlacement = "after_norm"
    keep_cls = True

    def cut(self, layers: int) -> int:
        """All layers: the prefix state holds the whole cache."""
        return layers

    def stage1(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:  # noqa: ARG002
        """Every patch."""
        flat = scores_FP.flatten()
        return RetentionMask(
            keep=torch.ones_like(flat, dtype=torch.bool), scores=flat, threshold=torch.zeros_like(flat)
        )

    def stage2(self, evidence: TextEvidence) -> RetentionMask:
        """Every token."""
        flat = evidence.rows_TV.amax(dim=0)
        return RetentionMask(
            keep=torch.ones_like(flat, dtype=torch.bool), scores=flat, threshold=flat.new_tensor(float("nan"))
        )
