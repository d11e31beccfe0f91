"""Which visual tokens are missing from a training batch, so that pruning is nothing new to the finished model."""

import torch
from torch import Tensor

from pipelines.training.decoder import LOOK_LAYER, LateDrop

LATE_LAYER = LOOK_LAYER + 1
GENTLE_SHARE = 0.5
"""Share of the steps in which drops leave the objects: questions must be answerable to be learned."""


def draw_gentle(owner_BV: Tensor, generator: torch.Generator) -> Tensor | None:
    """Indices [B, V'] of the tokens that enter, ascending; None for all.

    A quarter of the batches keep all, a quarter half or more at random, half of them all that shows an object and a
    part of the background: these are cheap, and teach to tell objects apart.
    """
    mode = float(torch.rand((), generator=generator))
    clips, count = owner_BV.shape
    if mode < 0.25:
        return None
    if mode < 0.5:
        return draw_subset(clips, count, 0.5, generator)
    shown = owner_BV > 0
    background = 0.05 + 0.35 * float(torch.rand((), generator=generator))
    kept = min(count, int(shown.sum(dim=1).max()) + round(background * count))
    order = torch.rand(clips, count, generator=generator) - shown.float()
    return order.argsort(dim=1)[:, :kept].sort(dim=1).values


def draw_drops(clips: int, cls_V: Tensor, generator: torch.Generator) -> tuple[Tensor | None, LateDrop | None]:
    """Which visual tokens enter the language model, and which go on after `LATE_LAYER` layers; None means all.

    Two batches in five keep all, the others lose a random share before the model, inside it, or both; the share is
    one per batch so that nothing is padded, the tokens are each clip's own. CLS tokens (bool [V]) go half of the time.
    """
    mode = float(torch.rand((), generator=generator))
    entering, late, count = None, None, len(cls_V)
    if mode < 0.45:
        entering = draw_subset(clips, count, 0.05 if mode < 0.3 else 0.3, generator, cls_V)
        count = entering.shape[1]
    if 0.3 <= mode < 0.6:
        cls = cls_V if entering is None else None
        late = LateDrop(layer=LATE_LAYER, index=draw_subset(clips, count, 0.03, generator, cls))
    return entering, late


def draw_subset(
    clips: int, count: int, least: float, generator: torch.Generator, cls_V: Tensor | None = None
) -> Tensor:
    """A random share of between `least` and 1 of the tokens, [clips, kept], ascending; `cls_V` go half of the time."""
    order = torch.rand(clips, count, generator=generator)
    share = least + (1 - least) * float(torch.rand((), generator=generator))
    usable = count
    if cls_V is not None and float(torch.rand((), generator=generator)) < 0.5:
        order[:, cls_V] = 2.0
        usable -= int(cls_V.sum())
    kept = max(1, round(share * usable))
    return order.argsort(dim=1)[:, :kept].sort(dim=1).values
