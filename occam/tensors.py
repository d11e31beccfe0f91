"""The torch side of the types: what the tower gives, what a strategy decides, what a prefix state holds."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RetentionMask:
    """Which visual tokens a stage keeps, with the scores and the threshold that decided; the count is an outcome.

    keep: bool [N]; scores: float32 [N]; threshold: float32 [] (stage II) or [N] (stage I, its frame's own)
    """

    keep: Tensor
    scores: Tensor
    threshold: Tensor

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or self.keep.ndim != 1 or self.scores.shape != self.keep.shape:
            raise ValueError(f"keep {list(self.keep.shape)} and scores {list(self.scores.shape)} must both be [N]")


@dataclass(frozen=True, kw_only=True, eq=False)
class MediaTokens:
    """One chunk of media after stage I, ready for the language model: what is left of V views, and their markers.

    A view is what the tower scores by itself: a frame, an image, a tile's place in one, or a temporal group of frames.

    ids: int64 [N], the placeholder's for visual tokens; embeddings: [N, C]
    positions: int64 [A, N], relative to where the chunk begins (gaps where tokens fell)
    view: int64 [N], view of the chunk, -1 for text; patch: int64 [N], patch in the view, -1 for all that is none
    planes: one [N, C] for each DeepStack level, zeros where a token has nothing to add
    length: positions the unpruned chunk takes; encoded: patches the tower produced
    pts_seconds: float64 [V]; indices: int64 [V], first frame in the source; grid: int64 [V, 2], rows and columns
    register_sum: float32 [1 + levels, C], the views' projected registers and their planes; register_count: views in it
    """

    ids: Tensor
    embeddings: Tensor
    positions: Tensor
    view: Tensor
    patch: Tensor
    planes: tuple[Tensor, ...] = ()
    length: int
    encoded: int
    pts_seconds: Tensor
    indices: Tensor
    grid: Tensor
    register_sum: Tensor
    register_count: int

    def __post_init__(self) -> None:
        count = self.embeddings.shape[0]
        if not all(t.shape == (count,) for t in (self.ids, self.view, self.patch)) or self.positions.shape[1] != count:
            raise ValueError("ids, embeddings, positions, view and patch must be of equal length")
        if any(plane.shape != self.embeddings.shape for plane in self.planes):
            raise ValueError("planes must have the embeddings' shape")
        if not len(self.pts_seconds) == len(self.indices) == len(self.grid):
            raise ValueError("pts_seconds, indices and grid must name the same views")

    def narrowed(self, keep: Tensor) -> "MediaTokens":
        """Less the patches outside bool `keep` [patches in it]; what is no patch stays, and so do positions."""
        rows = self.patch < 0
        rows[~rows] = keep
        return replace(
            self,
            ids=self.ids[rows],
            embeddings=self.embeddings[rows],
            positions=self.positions[:, rows],
            view=self.view[rows],
            patch=self.patch[rows],
            planes=tuple(plane[rows] for plane in self.planes),
        )

    def to(self, device: torch.device | str) -> "MediaTokens":
        """The chunk with its tensors on `device` (what names the views stays on the CPU)."""
        return replace(
            self,
            ids=self.ids.to(device),
            embeddings=self.embeddings.to(device),
            positions=self.positions.to(device),
            view=self.view.to(device),
            patch=self.patch.to(device),
            planes=tuple(plane.to(device) for plane in self.planes),
            register_sum=self.register_sum.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        rows = (self.ids, self.embeddings, self.positions, self.view, self.patch, self.register_sum)
        views = (self.pts_seconds, self.indices, self.grid)
        return sum(t.nbytes for t in (*rows, *self.planes, *views))


@dataclass(frozen=True, kw_only=True, eq=False)
class MediumTokens:
    """A whole video or image after stage I: its chunks in the order in which they are appended."""

    chunks: tuple[MediaTokens, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(chunk.nbytes for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True)
class StateShape:
    """What all states of one model under one cut have in common; the dimensions that `PrefixState` names.

    dtype: of keys, values, hidden and planes; planes: DeepStack levels above the cut
    """

    dtype: torch.dtype
    axes: int
    layers: int
    heads: int
    head_dim: int
    width: int
    levels: int
    planes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixState:
    """Everything computed for a prefix that depends on no question; built only by appending chunks.

    Immutable: an append makes a new one, so states are shared by sessions freely. N tokens, l lower layers.

    ids: int64 [N], token ids (visual tokens carry the placeholder's)
    positions: int64 [A, N], A = 1 for 1-D rotary positions, 3 for M-RoPE
    view: int64 [N], view of the media (see `MediaTokens`), -1 for text; patch: int64 [N], patch in the view, else -1
    keys, values: l tensors [H_kv, N, D], after k-norm and rotary, of 0-based decoder layers 0..l-1
    hidden: [N, C], leaving layer l-1 (its residual and any DeepStack addition included)
    planes: [N, C] for each DeepStack level that is added behind a layer above the cut
    register_sum: float32 [1 + levels, C] and register_count: the mean of the views' registers, as sum and count
    view_medium: int64 [V], which of the videos and images it shows, in the prompt's order
    view_pts: float64 [V], seconds; view_index: int64 [V], first frame in the source; view_grid: int64 [V, 2]
    next_position: the unpruned end, from which the next token goes on; encoded: patches the tower produced
    turns: finished turns of conversation in it
    approximate: some of it went over a lossy wire; what is built on it goes on saying so
    """

    ids: Tensor
    positions: Tensor
    view: Tensor
    patch: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    hidden: Tensor
    planes: tuple[Tensor, ...]
    register_sum: Tensor
    register_count: int
    view_medium: Tensor
    view_pts: Tensor
    view_index: Tensor
    view_grid: Tensor
    next_position: int
    encoded: int
    turns: int
    approximate: bool = False

    def __post_init__(self) -> None:
        count = self.ids.shape[0]
        if not all(t.shape == (count,) for t in (self.view, self.patch)) or self.positions.shape[1] != count:
            raise ValueError("ids, positions, view and patch must be of equal length")
        if len(self.keys) != len(self.values) or any(t.shape[1] != count for t in (*self.keys, *self.values)):
            raise ValueError("keys and values must hold every token of the state, in every lower layer")
        if any(t.shape[0] != count for t in (self.hidden, *self.planes)):
            raise ValueError("hidden and planes must hold every token of the state")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __repr__(self) -> str:
        return (
            f"PrefixState({len(self)} tokens, {int(self.visual.sum())} of them visual from "
            f"{self.view_pts.shape[0]} views, {len(self.keys)} layers, next position {self.next_position})"
        )

    def to(self, device: torch.device | str) -> "PrefixState":
        """The state with its tensors on `device` (what names the views stays on the CPU)."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            view=self.view.to(device),
            patch=self.patch.to(device),
            keys=tuple(keys.to(device) for keys in self.keys),
            values=tuple(values.to(device) for values in self.values),
            hidden=self.hidden.to(device),
            planes=tuple(plane.to(device) for plane in self.planes),
            register_sum=self.register_sum.to(device),
        )

    @property
    def shape(self) -> StateShape:
        """Its dimensions, less those that grow with what is appended."""
        heads, _, head_dim = self.keys[0].shape if self.keys else (0, 0, 0)
        return StateShape(
            dtype=self.hidden.dtype,
            axes=self.positions.shape[0],
            layers=len(self.keys),
            heads=heads,
            head_dim=head_dim,
            width=self.hidden.shape[1],
            levels=self.register_sum.shape[0] - 1,
            planes=len(self.planes),
        )

    @property
    def visual(self) -> Tensor:
        """bool [N]: the token came from the vision tower."""
        return self.view >= 0

    @property
    def media(self) -> int:
        """Videos and images in it."""
        return int(self.view_medium[-1]) + 1 if len(self.view_medium) else 0

    @property
    def stage1(self) -> int:
        """Patches that stage I kept (CLS tokens not counted)."""
        return int((self.patch >= 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        rows = (self.ids, self.positions, self.view, self.patch, self.hidden, self.register_sum)
        return sum(t.nbytes for t in (*rows, *self.planes, *self.keys, *self.values))
