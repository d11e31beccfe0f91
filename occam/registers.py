"""The test-time register: finding the neurons that make attention sinks, and moving their work to one token.

Jiang et al., arXiv 2506.08010; OccamToken, arXiv 2605.29657, eq. 9.
Legend: F frames, N tokens of a frame (CLS, P patches, register last), H hidden units of an MLP, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Neuron = tuple[int, int]
"""(0-based tower block, index of a hidden unit of its MLP)."""

OUTLIER_SIGMAS = 3.0


def shift_to_register(hidden_FNH: Tensor, units: Sequence[int]) -> Tensor:
    """Move the largest patch activation of each register neuron to the register, and silence it on the patches.

    hidden_FNH: MLP activations after the nonlinearity; token 0 is CLS (untouched), the last token the register.
    The maximum is taken per neuron and per frame. Returns a new tensor. (arXiv 2506.08010, algorithm 1)
    """
    index = torch.as_tensor(units, device=hidden_FNH.device)
    shifted = hidden_FNH.clone()
    shifted[:, -1, index] = hidden_FNH[:, 1:-1, index].amax(dim=1)
    shifted[:, 1:-1, index] = 0
    return shifted


def units_of(neurons: Sequence[Neuron], block: int) -> list[int]:
    """The register neurons of one block."""
    return [unit for layer, unit in neurons if layer == block]


def outlier_patches(norms_FP: Tensor) -> Tensor:
    """Patches whose norm passes mean + 3 sigma of their frame; bool [F, P]."""
    mean, sigma = norms_FP.mean(dim=1, keepdim=True), norms_FP.std(dim=1, keepdim=True)
    return norms_FP > mean + OUTLIER_SIGMAS * sigma


def effective_tokens(row_FP: Tensor) -> Tensor:
    """n_eff = exp(entropy) of attention over patches, renormalised; float32 [F]."""
    share = row_FP / row_FP.sum(dim=1, keepdim=True)
    return torch.exp(-(share * share.clamp_min(1e-12).log()).sum(dim=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerTrace:
    """One pass of a vision tower, watched.

    norms: per block, [F, P] norms of its output patches; activations: per block, [F, P, H] MLP activations
    row: float32 [F, P], CLS attention over patches at the scoring block; register_share: float32 [F], its attention
    to the register (zeros without one)
    """

    norms: list[Tensor]
    activations: list[Tensor]
    row: Tensor
    register_share: Tensor


class WatchedTower(Protocol):
    """A vision tower that can be run with a trial set of register neurons and reports what happened inside."""

    def trace(self, pixels: Tensor, neurons: Sequence[Neuron] | None) -> TowerTrace:
        """Run `pixels` [F, 3, H, W] with a register moved by `neurons`; None runs without any register."""
        ...


@dataclass(frozen=True, kw_only=True)
class RegisterReport:
    """What the finder found, with the acceptance statistics (medians over the calibration frames).

    largest_norm: largest patch norm over mean + 3 sigma of the inliers (accepted at 1 or below)
    n_eff: effective number of patches CLS attends to; register_share: its share of CLS attention
    accepted: norms are back in range, and the register gets more CLS attention than any patch
    """

    neurons: tuple[Neuron, ...]
    largest_norm_before: float
    largest_norm_after: float
    n_eff_before: float
    n_eff_after: float
    register_share: float
    accepted: bool


def find_register_neurons(
    tower: WatchedTower, pixels: Tensor, start: int = 10, step: int = 10, most: int = 100
) -> RegisterReport:
    """Rank MLP units by their mean activation on outlier patches, and take the fewest that tame the norms.

    pixels: [F, 3, H, W] calibration frames. The set grows from `start` by `step` up to `most` until it is accepted;
    a tower without outlier patches has no register neurons and gets an empty, unaccepted report.
    """
    plain = tower.trace(pixels, None)
    outliers, limit = outlier_patches(plain.norms[-1]), _inlier_limit(plain.norms[-1])
    if not outliers.any():
        return _report((), plain, tower.trace(pixels, ()), limit, accepted=False)
    ranked = _rank(plain.activations[: _onset(plain.norms, outliers) + 1], outliers)
    count = start
    while True:
        neurons = tuple(ranked[:count])
        after = tower.trace(pixels, neurons)
        tame = bool((after.norms[-1].amax(dim=1) <= limit).float().mean() >= 0.5)
        sink = bool((after.register_share > after.row.amax(dim=1)).float().mean() >= 0.5)
        if (tame and sink) or count >= min(most, len(ranked)):
            return _report(neurons, plain, after, limit, accepted=tame and sink)
        count += step


def _inlier_limit(norms_FP: Tensor) -> Tensor:
    """Mean + 3 sigma of the patches that are no outliers; [F]."""
    inlier = torch.where(outlier_patches(norms_FP), torch.nan, norms_FP)
    mean = inlier.nanmean(dim=1)
    return mean + OUTLIER_SIGMAS * (inlier - mean[:, None]).square().nanmean(dim=1).sqrt()


def _onset(norms: list[Tensor], outliers_FP: Tensor) -> int:
    """The first block at which most of the final outliers stand out already."""
    present = (float(outlier_patches(norm)[outliers_FP].float().mean()) for norm in norms)
    return next(block for block, share in enumerate(present) if share > 0.5)


def _rank(activations: list[Tensor], outliers_FP: Tensor) -> list[Neuron]:
    """All units of the blocks up to the first outliers, by mean activation over the outlier patches."""
    means = torch.stack([hidden[outliers_FP].float().mean(dim=0) for hidden in activations])
    order = means.flatten().argsort(descending=True, stable=True).tolist()
    width = means.shape[1]
    return [(flat // width, flat % width) for flat in order]


def _report(
    neurons: tuple[Neuron, ...], before: TowerTrace, after: TowerTrace, limit_F: Tensor, accepted: bool
) -> RegisterReport:
    return RegisterReport(
        neurons=neurons,
        largest_norm_before=float((before.norms[-1].amax(dim=1) / limit_F).median()),
        largest_norm_after=float((after.norms[-1].amax(dim=1) / limit_F).median()),
        n_eff_before=float(effective_tokens(before.row).median()),
        n_eff_after=float(effective_tokens(after.row).median()),
        register_share=float(after.register_share.median()),
        accepted=accepted,
    )
