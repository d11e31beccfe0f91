"""The one place where a retention mask becomes shorter tensors.

Legend: F passes of the tower (frames, tiles), P patches of each, N tokens of the unpruned chunk, K tokens kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from occam.transfer import to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The sequence that the stock model makes of a chunk's tower tokens, unpruned.

    tower: F passes, and the P patches of each
    source: int64 [N], index into the tower's F * (1 + P) tokens, CLS first in every pass; negative for a token that
    does not come from the tower, and is never pruned
    view, patch: int64 [N], the view as users see it, and the patch in its grid, -1 for all that is none
    grid: int64 [V, 2], rows and columns of the views; frame: int64 [V], frame of the chunk that each shows
    """

    tower: tuple[int, int]
    source: Tensor
    view: Tensor
    patch: Tensor
    grid: Tensor
    frame: Tensor

    @property
    def shown(self) -> Tensor:
        """bool [F, P]: the patches that stand in the sequence; the others are padding."""
        passes, patches = self.tower
        shown = torch.zeros(passes * (1 + patches), dtype=torch.bool)
        shown[self.source[self.source >= 0]] = True
        return shown.view(passes, 1 + patches)[:, 1:]

    @classmethod
    def of_frames(cls, frames: int, side: int, with_cls: bool) -> "Layout":
        """Frames of side * side patches, one behind the other, with or without their CLS tokens."""
        tokens = 1 + side * side
        source = torch.arange(frames * tokens).view(frames, tokens)[:, 0 if with_cls else 1 :].flatten()
        return cls(
            tower=(frames, side * side),
            source=source,
            view=source // tokens,
            patch=source % tokens - 1,
            grid=torch.tensor([[side, side]]).expand(frames, 2),
            frame=torch.arange(frames),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptTokens:
    """The tokens of a layout that go on to the language model, in its order.

    offsets: int64 [K], position in the unpruned chunk; source, view, patch: int64 [K], as in the layout
    """

    offsets: Tensor
    source: Tensor
    view: Tensor
    patch: Tensor


def compact(layout: Layout, keep_FP: Tensor, keep_cls: bool) -> KeptTokens:
    """Drop the patches that stage I rejects (bool `keep_FP`); what is kept keeps the position it has unpruned.

    How many are kept is what a device has to be waited for, so they are counted out on the CPU.
    """
    device, keep_FP = keep_FP.device, keep_FP.cpu()
    cls_F1 = torch.full_like(keep_FP[:, :1], keep_cls)
    keep = torch.cat([cls_F1, keep_FP], dim=1).flatten()
    offsets = ((layout.source < 0) | keep[layout.source]).nonzero().squeeze(1)
    kept = offsets, layout.source[offsets], layout.view[offsets], layout.patch[offsets]
    offsets, source, view, patch = (to_device(tensor, device) for tensor in kept)
    return KeptTokens(offsets=offsets, source=source, view=view, patch=patch)
