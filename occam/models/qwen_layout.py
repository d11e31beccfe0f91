"""Where Qwen3-VL's tokens stand: markers, vision tokens and pads of a chunk, with their three-axis positions.

Legend: N tokens, V views, P merge groups of patches in a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from occam.transfer import to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """A chunk's tokens, relative to where it begins; fields as in `MediaTokens`."""

    ids: Tensor
    positions: Tensor
    view: Tensor
    patch: Tensor
    length: int

    def keep(self, keep_VP: Tensor) -> "Layout":
        """The layout less the patches outside bool `keep_VP`; the rest stays where it stands."""
        kept = self.patch < 0
        kept[~kept] = keep_VP.flatten()
        return Layout(
            ids=self.ids[kept],
            positions=self.positions[:, kept],
            view=self.view[kept],
            patch=self.patch[kept],
            length=self.length,
        )

    def to(self, device: torch.device) -> "Layout":
        """The layout on `device`."""
        return Layout(
            ids=to_device(self.ids, device),
            positions=to_device(self.positions, device),
            view=to_device(self.view, device),
            patch=to_device(self.patch, device),
            length=self.length,
        )


def lay_out(markers: Sequence[Sequence[int]], start: int, end: int, pad: int, rows: int, columns: int) -> Layout:
    """`marker start pad x P end` for each view's marker ids, nothing pruned.

    Text goes on by one on all axes. Pads stand at (0, row, column) from where the view begins, which takes
    max(rows, columns) positions (stock `get_rope_index`).
    """
    patches = torch.arange(rows * columns)
    grid_3P = torch.stack([torch.zeros_like(patches), patches // columns, patches % columns])
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    position = 0
    for marker in markers:
        opening = torch.tensor([*marker, start])
        begin = position + len(opening)
        position = begin + max(rows, columns)
        ids += [opening, torch.full_like(patches, pad), torch.tensor([end])]
        positions += [torch.arange(begin - len(opening), begin).expand(3, -1), begin + grid_3P]
        positions += [torch.tensor([position]).expand(3, -1)]
        position += 1
    text = [torch.full((len(marker) + 1,), -1) for marker in markers]
    last = torch.tensor([-1])
    return Layout(
        ids=torch.cat(ids),
        positions=torch.cat(positions, dim=1),
        view=torch.cat([torch.cat([opening, torch.full_like(patches, at), last]) for at, opening in enumerate(text)]),
        patch=torch.cat([torch.cat([opening, patches, last]) for opening in text]),
        length=position,
    )
