"""The strategies that keep a fixed count, and DTD: where each prunes, and by which of the pure functions beside."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from occam.config import DTD, EVS, IWP, CDPruner, DivPrune, FastV, Random, SparseVLM, Uniform, VidCom2, VisionZip
from occam.pruning.cdpruner import greedy_map, kernel, relevance
from occam.pruning.controls import random_mask, uniform_mask
from occam.pruning.divprune import divprune_mask
from occam.pruning.dtd import dtd_mask
from occam.pruning.evs import evs_mask
from occam.pruning.fastv import fastv_scores
from occam.pruning.iwp import duplication, magnitude, pc_mmr
from occam.pruning.selection import count_of, top_k
from occam.pruning.sparsevlm import attention_rank, cut_counts, cuts_of, raters, sparsevlm_scores
from occam.pruning.strategy import ProjectedEvidence, Strategy, TextEvidence, checked_cuts, kept
from occam.pruning.vidcom2 import vidcom2_mask
from occam.pruning.visionzip import merge_weights, split, visionzip_masks
from occam.tensors import RetentionMask
from occam.types import MediaKind


class _AtOneCut(Strategy, ABC):
    """In front of the decoder, seeing the whole medium, or before one of its layers."""

    def __init__(self, budget: float, cut: int) -> None:
        self.budget = budget
        self.cut = cut
        self.whole = self.projected = cut == 0

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut, if it lies in the decoder."""
        return checked_cuts((self.cut,) if self.cut else (), layers)

    def behind_projector(self, evidence: ProjectedEvidence) -> Tensor:
        """The chosen share of all patches."""
        total = len(evidence.view_N)
        return self.chosen(total, count_of(self.budget, total)).to(evidence.view_N.device)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """So many of the patches that are there."""
        del number
        scores = evidence.rows_TN.amax(dim=0)
        mask = self.chosen(len(scores), count_of(self.budget, evidence.encoded))
        return kept(mask.to(scores.device), scores)

    @abstractmethod
    def chosen(self, total: int, count: int) -> Tensor:
        """Which of `total` tokens, bool."""


class RandomStrategy(_AtOneCut):
    """`random`: whatever the seed draws."""

    def __init__(self, config: Random) -> None:
        super().__init__(config.budget, config.cut)
        self.seed = config.seed

    def chosen(self, total: int, count: int) -> Tensor:
        """A draw."""
        return random_mask(total, count, self.seed)


class UniformStrategy(_AtOneCut):
    """`uniform`: evenly spread in the prompt's order."""

    def __init__(self, config: Uniform) -> None:
        super().__init__(config.budget, config.cut)

    def chosen(self, total: int, count: int) -> Tensor:
        """A stride."""
        return uniform_mask(total, count)


class FastVStrategy(Strategy):
    """`fastv`: what the last token attends to."""

    def __init__(self, config: FastV) -> None:
        self.config = config

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut."""
        return checked_cuts((self.config.cut,), layers)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """The best by the last token's row."""
        del number
        scores = fastv_scores(evidence.rows_TN)
        return kept(top_k(scores, count_of(self.config.budget, evidence.encoded)), scores)


class IWPStrategy(Strategy):
    """`iwp`: implicit weights of the layer behind the cut, large ones first and duplicates punished."""

    def __init__(self, config: IWP) -> None:
        self.config = config

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cut."""
        return checked_cuts((self.config.cut,), layers)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """Progressive chunked MMR over magnitude and duplication."""
        del number
        seen = evidence.projections()
        size = magnitude(seen.queries, seen.keys, seen.values)
        alike = duplication(seen.rotated_keys, seen.values)
        return kept(pc_mmr(size, alike, count_of(self.config.budget, evidence.encoded)), size)


class SparseVLMStrategy(Strategy):
    """`sparsevlm`: what the text tokens that see attend to, at several layers."""

    def __init__(self, config: SparseVLM) -> None:
        self.config = config

    def cuts(self, layers: int) -> tuple[int, ...]:
        """The configured cuts, or the paper's: scaled to this depth, and layer 1 where the rank counts."""
        published = (1,) if self.config.count == "rank" else cuts_of(layers)
        return checked_cuts(self.config.cuts or published, layers)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:
        """The best by the raters' rows; so many at each cut that the layers behind the first see the budget at most."""
        total, cuts = evidence.encoded, self.cuts(evidence.layers)
        average = float(count_of(self.config.budget, total))
        counts = cut_counts(total, average, [cut - cuts[0] for cut in cuts], evidence.layers - cuts[0])
        count, raters_T = counts[number], raters(*evidence.hidden())
        if self.config.count == "rank":
            count = min(count, attention_rank(evidence.rows_TN, raters_T))
        scores = sparsevlm_scores(evidence.rows_TN, raters_T)
        return kept(top_k(scores, count), scores)


class VisionZipStrategy(Strategy):
    """`visionzip`: dominant patches by the attention they get in the tower, and evenly spread context."""

    register = "mean_threshold"

    def __init__(self, config: VisionZip) -> None:
        self.config = config
        self.merges = config.merge

    def in_tower(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:
        """The same count from every pass."""
        del register_F
        dominant, contextual = self._masks(scores_FP)
        return kept((dominant | contextual).flatten(), scores_FP.flatten())

    def merged(self, features: Tensor, scores_FP: Tensor, keys_FPHD: Tensor | None) -> Tensor:
        """Contextual patches with the mean of those that go to them, where that is wanted."""
        if not self.merges:
            return features
        if keys_FPHD is None:
            raise ValueError("visionzip cannot merge patches of this model: make its configuration by `Engine.pruning`")
        patches = scores_FP.shape[1]
        weights_FPP = merge_weights(keys_FPHD, *self._masks(scores_FP))
        taken_up = weights_FPP @ features[:, -patches:].float()
        return torch.cat([features[:, :-patches], features[:, -patches:] + taken_up.to(features.dtype)], dim=1)

    def _masks(self, scores_FP: Tensor) -> tuple[Tensor, Tensor]:
        """Dominant and contextual patches of every pass."""
        passes, patches = scores_FP.shape
        counts = split(passes * count_of(self.config.budget, patches), passes, self.config.dominant)
        return visionzip_masks(scores_FP, *counts)


class _OfTheWhole(Strategy, ABC):
    """Between projector and decoder, seeing the whole medium."""

    whole = True
    projected = True

    def __init__(self, budget: float) -> None:
        self.budget = budget

    def behind_projector(self, evidence: ProjectedEvidence) -> Tensor:
        """So many of all patches."""
        return self.chosen(evidence, count_of(self.budget, len(evidence.view_N)))

    @abstractmethod
    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """Which of them, bool [N]."""


class DivPruneStrategy(_OfTheWhole):
    """`divprune`: the most diverse."""

    def __init__(self, config: DivPrune) -> None:
        super().__init__(config.budget)

    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """Greedy max-min."""
        return divprune_mask(evidence.embeddings_NC, count)


class CDPrunerStrategy(_OfTheWhole):
    """`cdpruner`: diverse, and relevant to the question."""

    def __init__(self, config: CDPruner) -> None:
        super().__init__(config.budget)
        self.theta = config.theta

    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """Greedy MAP of the conditional DPP."""
        if evidence.question_TC is None:
            raise ValueError("cdpruner reads the question: make its configuration by `Engine.asked`")
        weight = relevance(evidence.embeddings_NC, evidence.question_TC, self.theta)
        return greedy_map(kernel(evidence.embeddings_NC, weight), count)


class _OverTime(_OfTheWhole):
    """Compares the views of a video, patch by patch."""

    media: ClassVar[tuple[MediaKind, ...]] = ("video",)

    @staticmethod
    def views(evidence: ProjectedEvidence) -> Tensor:
        """The embeddings as [F, P, C]: views of one video have the same patches."""
        count = int(evidence.view_N.max()) + 1
        return evidence.embeddings_NC.view(count, -1, evidence.embeddings_NC.shape[1])


class EVSStrategy(_OverTime):
    """`evs`: what changed most."""

    def __init__(self, config: EVS) -> None:
        super().__init__(config.budget)

    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """By dissimilarity to the view before."""
        return evs_mask(self.views(evidence), count).flatten()


class VidCom2Strategy(_OverTime):
    """`vidcom2`: what is least like the rest."""

    def __init__(self, config: VidCom2) -> None:
        super().__init__(config.budget)

    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """By similarity to the video's and the view's mean."""
        return vidcom2_mask(self.views(evidence), count).flatten()


class DTDStrategy(_OverTime):
    """`dtd`: what differs from the view before."""

    def __init__(self, config: DTD) -> None:
        super().__init__(1.0)
        self.tau = config.tau

    def chosen(self, evidence: ProjectedEvidence, count: int) -> Tensor:
        """By a threshold, whatever the count."""
        del count
        return dtd_mask(self.views(evidence), self.tau).flatten()
