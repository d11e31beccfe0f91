"""OccamToken with its outcome forced: everything is scored and tested as ever, then a seeded draw of a set size stays.

Random weights give no evidence, so that thresholds would keep whatever they keep; speed needs counts that are known.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor

from occam import pruning
from occam.config import OccamToken
from occam.pruning.controls import random_mask
from occam.pruning.occam_token import OccamTokenStrategy
from occam.pruning.selection import count_of
from occam.pruning.strategy import TextEvidence
from occam.tensors import RetentionMask

STAGE1, STAGE2, CUT = 0.4, 136 / 2048, 11 / 32
"""Shares of the patches that the stages keep, and of the decoder's layers in front of the cut."""


@dataclass(frozen=True, kw_only=True)
class Forced(OccamToken):
    """stage1: share of every chunk's patches; stage2: share of all encoded ones; both nearest whole."""

    name: ClassVar[str] = "forced"
    late: ClassVar[frozenset[str]] = OccamToken.late | {"stage2"}

    lambda1: float = 0.0
    lambda2: float = 0.0
    stage1: float = STAGE1
    stage2: float = STAGE2
    seed: int = 0


class ForcedStrategy(OccamTokenStrategy):
    """What OccamToken computes, with another choice in the place of its own."""

    config: Forced

    def in_tower(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:
        """Stage I of a chunk."""
        return self._drawn(super().in_tower(scores_FP, register_F), scores_FP.numel(), self.config.stage1)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """Stage II of a question."""
        return self._drawn(super().in_decoder(number, evidence), evidence.encoded, self.config.stage2)

    def _drawn(self, tested: RetentionMask, encoded: int, share: float) -> RetentionMask:
        keep = _draw(len(tested.keep), count_of(share, encoded), self.config.seed, tested.keep.device)
        return replace(tested, keep=keep)


@cache
def _draw(total: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Drawn once: on the clock a forced mask must not cost more than a comparison does."""
    return random_mask(total, count, seed).to(device)


def cut_of(layers: int) -> int:
    """The paper's place of the cut in a decoder of any depth; SystemExit where it has no layer behind one."""
    if layers < 2:
        raise SystemExit(f"Stage II needs a decoder of at least 2 layers, got {layers}.")
    return max(1, round(CUT * layers))


@contextmanager
def forced_masks() -> Iterator[None]:
    """While it lasts, engines know `Forced`."""
    with mock.patch.dict(pruning._RULES, {Forced: ForcedStrategy}):
        yield
