"""The test-time register: finding the neurons that make attention sinks, and moving their work to one token.

Jiang et al., arXiv 2506.08010; OccamToken, arXiv 2605.29657, eq. 9.
Legend: F frames, N tokens of a frame (CLS, P patches, register last), H hidden units of an MLP, C channels.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from occam.transfer import upload

Neuron = tuple[int, int]
"""(0-based tower block, index of a hidden unit of its MLP)."""

OUTLIER_SIGMAS = 3.0


def shift_to_register(hidden_FNH: Tensor, units: Tensor, first: int) -> Tensor:
    """Move the largest patch activation of each register neuron to the register, and silence it on the patches.

    hidden_FNH: MLP activations after the nonlinearity; patches from token `first` on (before it: CLS, untouched), the
    last token is the register.
    units: int64 [K]
    The maximum is taken per neuron and per frame. Returns a new tensor. (arXiv 2506.08010, algorithm 1)
    """
    shifted = hidden_FNH.clone()
    shifted[:, -1, units] = hidden_FNH[:, first:-1, units].amax(dim=1)
    shifted[:, first:-1].index_fill_(2, units, 0)  # a plain 0 would be copied to a GPU, which no recording may do
    return shifted


def units_of(neurons: Sequence[Neuron], blocks: int, device: torch.device) -> list[Tensor]:
    """The register neurons of each block, int64 [K]."""
    return [upload([unit for layer, unit in neurons if layer == block], device) for block in range(blocks)]


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
    """One pass of a vision tower over F views, watched.

    norms: per block, [F, P] norms of its output patches; activations: per block, [F, P, H] MLP activations
    row: float32 [F, P], stage I's attention over patches (without a register's); register_share: float32 [F], its
    attention to the register (zeros without one)
    """

    norms: list[Tensor]
    activations: list[Tensor]
    row: Tensor
    register_share: Tensor


Watch = Callable[[tuple[Neuron, ...] | None], Iterable[TowerTrace]]
"""Runs the calibration views through a tower, batch by batch; a register is moved by the neurons, None: no register."""


@dataclass(frozen=True, kw_only=True)
class RegisterReport:
    """What the finder found, with the acceptance statistics (medians over the calibration views).

    largest_norm: largest patch norm over mean + 3 sigma of the inliers (accepted at 1 or below)
    n_eff: effective number of patches that are attended to; register_share: its share of that attention
    accepted: norms are back in range, and the register gets more attention than any patch
    """

    neurons: tuple[Neuron, ...]
    largest_norm_before: float
    largest_norm_after: float
    n_eff_before: float
    n_eff_after: float
    register_share: float
    accepted: bool


def find_register_neurons(watch: Watch, start: int = 10, step: int = 10, most: int = 100) -> RegisterReport:
    """Rank MLP units by their mean activation on outlier patches, and take the fewest that tame the norms.

    The set grows from `start` by `step` up to `most` until it is accepted; a tower without outlier patches has no
    register neurons and gets an empty, unaccepted report. Activations are reduced batch by batch: a tower of stock
    size makes 200 MB of them a view.
    """
    plain = _Watched.of(watch(None))
    if not plain.outliers:
        return _report((), plain, _Watched.of(watch(()), plain.limit), accepted=False)
    ranked = plain.ranked()
    count = start
    while True:
        neurons = tuple(ranked[:count])
        after = _Watched.of(watch(neurons), plain.limit)
        if after.tame and after.sink:
            return _report(neurons, plain, after, accepted=True)
        if count >= min(most, len(ranked)):
            return _report(neurons, plain, after, accepted=False)
        count += step


@dataclass(kw_only=True)
class _Watched:
    """What one run over the calibration views came to; every list has an entry for each view.

    limit: mean + 3 sigma of the inlier patches, of the run without register; present: for each block, the outliers
    that stood out there already; activation: float32 [blocks, H], sums over the outliers
    """

    largest: list[float]
    limit: list[float]
    n_eff: list[float]
    share: list[float]
    sinks: list[bool]
    outliers: int
    present: Tensor
    activation: Tensor

    @classmethod
    def of(cls, traces: Iterable[TowerTrace], limit: list[float] | None = None) -> "_Watched":
        watched: _Watched | None = None
        for trace in traces:
            outliers_FP = outlier_patches(trace.norms[-1])
            one = cls(
                largest=trace.norms[-1].amax(dim=1).tolist(),
                limit=_inlier_limit(trace.norms[-1]).tolist(),
                n_eff=effective_tokens(trace.row).tolist(),
                share=trace.register_share.tolist(),
                sinks=(trace.register_share > trace.row.amax(dim=1)).tolist(),
                outliers=int(outliers_FP.sum()),
                present=torch.stack([outlier_patches(norm)[outliers_FP].sum() for norm in trace.norms]),
                activation=torch.stack([mlp[outliers_FP].float().sum(dim=0) for mlp in trace.activations]),
            )
            watched = one if watched is None else watched + one
        if watched is None:
            raise ValueError("there must be at least one calibration view")
        return watched if limit is None else replace(watched, limit=limit)

    def __add__(self, other: "_Watched") -> "_Watched":
        names = (field.name for field in fields(self))
        return _Watched(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def tame(self) -> bool:
        """Most views have no patch above the limit."""
        return statistics.mean(norm <= limit for norm, limit in zip(self.largest, self.limit, strict=True)) >= 0.5

    @property
    def sink(self) -> bool:
        """In most views the register is attended to more than any patch."""
        return statistics.mean(self.sinks) >= 0.5

    @property
    def largest_norm(self) -> float:
        """Median over the views, in limits."""
        return statistics.median(norm / limit for norm, limit in zip(self.largest, self.limit, strict=True))

    def ranked(self) -> list[Neuron]:
        """All units of the blocks up to the first outliers, by mean activation over the outlier patches."""
        onset = next(block for block, count in enumerate(self.present.tolist()) if count > 0.5 * self.outliers)
        width = self.activation.shape[1]
        order = self.activation[: onset + 1].flatten().argsort(descending=True, stable=True).tolist()
        return [(flat // width, flat % width) for flat in order]


def _inlier_limit(norms_FP: Tensor) -> Tensor:
    """Mean + 3 sigma of the patches that are no outliers; [F]."""
    inlier = torch.where(outlier_patches(norms_FP), torch.nan, norms_FP)
    mean = inlier.nanmean(dim=1)
    return mean + OUTLIER_SIGMAS * (inlier - mean[:, None]).square().nanmean(dim=1).sqrt()


def _report(neurons: tuple[Neuron, ...], before: _Watched, after: _Watched, accepted: bool) -> RegisterReport:
    return RegisterReport(
        neurons=neurons,
        largest_norm_before=before.largest_norm,
        largest_norm_after=after.largest_norm,
        n_eff_before=statistics.median(before.n_eff),
        n_eff_after=statistics.median(after.n_eff),
        register_share=statistics.median(after.share),
        accepted=accepted,
    )
