"""What the engine asks of a pruning strategy, and what it shows it at each of the three places where one may prune.

Legend: F passes of the tower, P patches of each, N visual tokens under test, T evaluating text tokens, C channels,
H heads, D head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from occam.config import RegisterMode, RegisterPlacement
from occam.tensors import RetentionMask
from occam.types import MediaKind


@dataclass(frozen=True, kw_only=True, eq=False)
class ProjectedEvidence:
    """All patches of what is appended, as the language model would get them.

    embeddings_NC: in the prompt's order; view_N, patch_N: int64, where each stands; question_TC: embeddings of the
    question's words, none for a strategy that does not read it
    """

    embeddings_NC: Tensor
    view_N: Tensor
    patch_N: Tensor
    question_TC: Tensor | None


class Projections(NamedTuple):
    """Queries of the text [T, H, D], and keys, rotated keys and values of the visual tokens [N, H, D] at one layer.

    Queries and keys are those after the per-head norm and before rotation; key heads are expanded.
    """

    queries: Tensor
    keys: Tensor
    rotated_keys: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEvidence:
    """What a cut in the decoder may look at.

    rows_TN: float32, attention of the newest turn's text to visual tokens at the layer before the cut, heads averaged,
    one softmax over the full row; register_T, first_T: the same to the register (None without one) and to the first
    token of all
    encoded: patches the tower gave; layers: the decoder's depth
    hidden: gathers the states [N, C] and [T, C] that leave the layer before the cut, visual and text
    projections: computes those of the layer behind the cut; both for a strategy that wants them
    """

    rows_TN: Tensor
    register_T: Tensor | None
    first_T: Tensor
    encoded: int
    layers: int
    hidden: Callable[[], tuple[Tensor, Tensor]]
    projections: Callable[[], Projections]


class Strategy:
    """A pruning rule, ready to run; this one keeps everything, and others say where they do not.

    register: where the tower's reference comes from; None scores nothing there
    placement: where the tower's register token enters; keep_cls: whether CLS tokens go on to the language model
    whole: it must see a medium in one piece; media: the kinds it can prune
    projected: it prunes between projector and decoder; merges: it sums patches, which positions of one axis allow only
    """

    register: RegisterMode | None = None
    placement: RegisterPlacement = "after_norm"
    keep_cls: bool = False
    whole: bool = False
    media: ClassVar[tuple[MediaKind, ...]] = ("video", "image")
    projected: bool = False
    merges: bool = False

    def cuts(self, layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """Decoder layers, of `layers`, that run before each cut; ValueError where the model is not that deep."""
        return ()

    def in_tower(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:  # noqa: ARG002
        """Which patches of each pass are projected; the mask is flat [F * P], its threshold one per patch."""
        return keep_all(scores_FP.flatten())

    def merged(self, features: Tensor, scores_FP: Tensor, keys_FPHD: Tensor | None) -> Tensor:  # noqa: ARG002
        """Features whose kept patches, the last P of each pass, may have taken others up; keys as in `TowerOutput`."""
        return features

    def behind_projector(self, evidence: ProjectedEvidence) -> Tensor:
        """Which patches enter the decoder, bool [N]."""
        return torch.ones_like(evidence.view_N, dtype=torch.bool)

    def in_decoder(self, number: int, evidence: TextEvidence) -> RetentionMask:  # noqa: ARG002
        """Which visual tokens go on past cut `number` for this question."""
        return keep_all(evidence.rows_TN.amax(dim=0))


def keep_all(scores_N: Tensor) -> RetentionMask:
    """A mask that drops nothing."""
    return RetentionMask(
        keep=torch.ones_like(scores_N, dtype=torch.bool), scores=scores_N, threshold=torch.zeros_like(scores_N)
    )


def kept(mask_N: Tensor, scores_N: Tensor) -> RetentionMask:
    """A choice without a threshold."""
    return RetentionMask(keep=mask_N, scores=scores_N, threshold=scores_N.new_tensor(float("nan")))


def checked_cuts(cuts: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The cuts of a model of `layers`; ValueError if it is not that deep."""
    if cuts and cuts[-1] >= layers:
        raise ValueError(f"cut must lie in 1..{layers - 1} for {layers} decoder layers, got {cuts[-1]}")
    return cuts
