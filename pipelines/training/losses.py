"""The losses beside the answers': where attention is taught to go, and what visual tokens tell of their object."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.evaluation.renderer import COLORS, DIRECTIONS, SHAPES
from pipelines.training.data import MAX_FRAMES, ClipBatch
from pipelines.training.decoder import Look, Output
from pipelines.training.labels import ClipLabels
from pipelines.training.packing import IGNORE

TOLD = {"motion": len(DIRECTIONS), "onset": MAX_FRAMES, "view": MAX_FRAMES}
"""What a visual token tells, and among how many."""


def build_heads(width: int, tower_width: int) -> nn.ModuleDict:
    """The heads that read visual tokens in the language model, and the one that reads CLS tokens."""
    heads = {name: nn.Linear(width, size) for name, size in TOLD.items()}
    return nn.ModuleDict(heads | {"summary": nn.Linear(tower_width, len(SHAPES) + len(COLORS))})


def telling_loss(heads: nn.ModuleDict, visual_BVD: Tensor, labels: ClipLabels) -> Tensor:
    """How badly visual tokens tell the direction and first frame of their object, and their own view."""
    loss = torch.zeros(())
    for name in TOLD:
        truth = getattr(labels, name).flatten()
        guess = heads[name](visual_BVD).flatten(0, 1)
        total = F.cross_entropy(guess, truth, ignore_index=IGNORE, reduction="sum")
        loss = loss + total / max(int((truth != IGNORE).sum()), 1)
    return loss


def summary_loss(heads: nn.ModuleDict, summary_MC: Tensor, labels: ClipLabels, words: Tensor) -> Tensor:
    """How badly CLS tokens tell which shapes and colours their frame shows: they look at objects to know."""
    shown_BVW = (labels.shape[..., None] == words) | (labels.color[..., None] == words)
    shown_MW = shown_BVW.view(len(summary_MC), -1, len(words)).any(dim=1)
    return F.binary_cross_entropy_with_logits(heads["summary"](summary_MC), shown_MW.float())


def seeking_loss(mutual_MN: Tensor, shown_MN: Tensor) -> Tensor:
    """How far the tower's attention is from lying evenly on what shows something, over the views that do.

    mutual: shares of all attention of a view; shown: bool
    """
    number_M = shown_MN.sum(dim=1)
    even_MN = shown_MN / number_M.clamp(min=1)[:, None]
    surprise = -(even_MN * (mutual_MN * number_M[:, None]).clamp(min=1e-6).log()).sum(dim=1)
    return surprise.sum() / (number_M > 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Looking:
    """How far the taught heads are from where they should look; `early` and `late` are the labels at their layers."""

    batch: ClipBatch
    words: Tensor
    """Ids of the words of shapes and colours."""

    def loss(self, output: Output, early: ClipLabels, late: ClipLabels) -> Tensor:
        """Words at what shows them, questions at what they name, then at where that is first and last on screen."""
        text = self.batch.text
        said = torch.isin(text.ids, self.words)
        rows = text.answers.nonzero()[:, 0]
        first, last = late.opens[rows] == 1, late.closes[rows] == 1
        closing = torch.where(self.batch.compared[:, None], first, last)
        return (
            look_loss(output.look, said, showing(text.ids, said, early))
            + look_loss(output.look, text.answers, shown_by(early, self.batch.named, rows))
            + look_loss(output.opening, text.answers, shown_by(late, self.batch.opening, rows) & first)
            + look_loss(output.closing, text.answers, shown_by(late, self.batch.closing, rows) & closing)
        )


def look_loss(look: Look, places_BT: Tensor, target_NV: Tensor) -> Tensor:
    """Minus log of the attention mass that the N text tokens at `places` put on their target visual tokens."""
    answerable = target_NV.any(dim=1)
    rows = places_BT.nonzero()[:, 0][answerable]
    logits, target = look.logits[places_BT][answerable], target_NV[answerable]
    on_target = logits.gather(1, look.visual[rows]).masked_fill(~target, float("-inf"))
    return (logits.logsumexp(1) - on_target.logsumexp(1)).sum() / max(len(target), 1)


def shown_by(labels: ClipLabels, objects_NO: Tensor, rows_N: Tensor) -> Tensor:
    """For every question, the visual tokens that show one of its objects, bool [N, V]."""
    return objects_NO.gather(1, labels.owner.clamp(min=0)[rows_N])


def showing(ids_BT: Tensor, said_BT: Tensor, labels: ClipLabels) -> Tensor:
    """For every word of a shape or colour, the visual tokens that show it, bool [words, V]."""
    rows, ids = said_BT.nonzero()[:, 0], ids_BT[said_BT][:, None]
    return (labels.shape[rows] == ids) | (labels.color[rows] == ids)
