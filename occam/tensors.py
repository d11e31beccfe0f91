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
class VisualTokens:
    """Visual tokens of one chunk after stage I, ready for the language model.

    embeddings: [N, C]; offsets: int64 [N], position relative to the chunk's first visual position (gaps where
    tokens fell); frame: int64 [N], frame of the chunk; patch: int64 [N], patch of the frame, -1 for CLS;
    length: positions the unpruned chunk takes; encoded: patches the tower produced
    register_sum: float32 [C], sum of the frames' projected registers; register_count: frames in it (0: no register)
    """

    embeddings: Tensor
    offsets: Tensor
    frame: Tensor
    patch: Tensor
    length: int
    encoded: int
    register_sum: Tensor
    register_count: int

    def __post_init__(self) -> None:
        count = self.embeddings.shape[0]
        if not all(t.shape == (count,) for t in (self.offsets, self.frame, self.patch)):
            raise ValueError("embeddings, offsets, frame and patch must be of equal length")


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixState:
    """Everything computed for a prefix that depends on no question; built only by appending chunks.

    Immutable: an append makes a new one, so states are shared by sessions freely. N tokens, l lower layers.

    ids: int64 [N], token ids (visual tokens carry the placeholder's)
    positions: int64 [A, N], A = 1 for 1-D rotary positions, 3 for M-RoPE
    frame: int64 [N], index into `frame_pts`, -1 for text; patch: int64 [N], patch in the frame, -1 for text and CLS
    keys, values: l tensors [H_kv, N, D], after k-norm and rotary, of 0-based decoder layers 0..l-1
    hidden: [N, C], leaving layer l-1 (its residual and any DeepStack addition included)
    register_sum: float32 [C] and register_count: the mean of the frames' projected registers, as sum and count
    frame_pts: float64 [F], seconds; frame_index: int64 [F], index in the source
    grid: patch rows and columns of a frame (0, 0 before the first frame)
    next_position: the unpruned end, from which the next token goes on; encoded: patches the tower produced
    """

    ids: Tensor
    positions: Tensor
    frame: Tensor
    patch: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    hidden: Tensor
    register_sum: Tensor
    register_count: int
    frame_pts: Tensor
    frame_index: Tensor
    grid: tuple[int, int]
    next_position: int
    encoded: int

    def __post_init__(self) -> None:
        count = self.ids.shape[0]
        if not all(t.shape == (count,) for t in (self.frame, self.patch)) or self.positions.shape[1] != count:
            raise ValueError("ids, positions, frame and patch must be of equal length")
        if len(self.keys) != len(self.values) or any(t.shape[1] != count for t in (*self.keys, *self.values)):
            raise ValueError("keys and values must hold every token of the state, in every lower layer")
        if self.hidden.shape[0] != count:
            raise ValueError("hidden must hold every token of the state")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def __repr__(self) -> str:
        return (
            f"PrefixState({len(self)} tokens, {int(self.visual.sum())} of them visual from "
            f"{self.frame_pts.shape[0]} frames, {len(self.keys)} layers, next position {self.next_position})"
        )

    def to(self, device: torch.device | str) -> "PrefixState":
        """The state with its tensors on `device` (frame times and indices stay on the CPU)."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            frame=self.frame.to(device),
            patch=self.patch.to(device),
            keys=tuple(keys.to(device) for keys in self.keys),
            values=tuple(values.to(device) for values in self.values),
            hidden=self.hidden.to(device),
            register_sum=self.register_sum.to(device),
        )

    @property
    def visual(self) -> Tensor:
        """bool [N]: the token came from the vision tower."""
        return self.frame >= 0

    @property
    def stage1(self) -> int:
        """Patches that stage I kept (CLS tokens not counted)."""
        return int((self.patch >= 0).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        rows = (self.ids, self.positions, self.frame, self.patch, self.hidden, self.register_sum)
        return sum(t.nbytes for t in (*rows, *self.keys, *self.values))
