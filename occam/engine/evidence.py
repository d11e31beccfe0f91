"""What an answer rests on: the masks of both stages, laid back over the views they came from."""

import torch

from occam.stats import VisualTokenCounts
from occam.tensors import PrefixState, RetentionMask
from occam.types import Evidence, FrameEvidence


def counts_of(state: PrefixState, mask: RetentionMask | None) -> VisualTokenCounts:
    """Patches encoded, and kept by either stage; without stage II every stage I survivor is kept."""
    stage1 = state.stage1
    return VisualTokenCounts(
        encoded=state.encoded, stage1=stage1, stage2=stage1 if mask is None else int(mask.keep.sum())
    )


def evidence_of(state: PrefixState, mask: RetentionMask | None) -> Evidence:
    """The masks as a grid for every view; without stage II every stage I survivor is kept and has no score."""
    sizes = state.view_grid.prod(dim=1)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(dim=0)])
    tested = state.patch >= 0
    where = starts[state.view[tested].cpu()] + state.patch[tested].cpu()
    total = int(starts[-1])
    stage1 = torch.zeros(total, dtype=torch.bool)
    stage1[where] = True
    stage2, scores = stage1.clone(), torch.full((total,), torch.nan)
    if mask is not None:
        stage2[where] = mask.keep.cpu()
        scores[where] = mask.scores.cpu()

    def frame_of(view: int) -> FrameEvidence:
        rows, columns = state.view_grid[view].tolist()
        own = slice(int(starts[view]), int(starts[view + 1]))
        return FrameEvidence(
            medium=int(state.view_medium[view]),
            index=int(state.view_index[view]),
            pts_s=float(state.view_pts[view]),
            of=rows * columns,
            grid=(rows, columns),
            stage1=stage1[own].view(rows, columns).numpy(),
            stage2=stage2[own].view(rows, columns).numpy(),
            scores=scores[own].view(rows, columns).numpy(),
        )

    return Evidence(
        threshold=float("nan") if mask is None else float(mask.threshold),
        frames=tuple(frame_of(view) for view in range(len(sizes))),
    )
