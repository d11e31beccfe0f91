"""Dense pretraining of the vision tower: each patch tells its place, and what shape, colour and size it shows where."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.training.data import PatchBatches, load
from pipelines.training.labels import COLOR_LABELS, SHAPE_LABELS, PatchLabels
from pipelines.training.losses import seeking_loss
from pipelines.training.optim import build_optimizers, set_rate
from pipelines.training.packing import IGNORE
from pipelines.training.student import GRID, Student

BACKGROUND_WEIGHT = 0.15
"""Three patches in four show background: unweighted, the shapes are learned late."""
SEEKING_WEIGHT = 0.3


def pretrain_tower(student: Student, steps: int, scenes: int, first_seed: int) -> None:
    """Train the tower and its bridge, half of the time with the zero token."""
    sizes = {
        "shape": len(SHAPE_LABELS),
        "color": len(COLOR_LABELS),
        "size": 2,
        "place": GRID * GRID,
        "seen": 1 << student.group,
        "offset": 2 * student.group,
    }
    body = nn.ModuleList([student.tower, *student.bridge])
    body.requires_grad_(True)
    with torch.no_grad():
        width = student.dense(student.see(torch.zeros(1, student.group, 3, 96, 96, dtype=torch.uint8), False)).shape[2]
    heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
    optimizers = build_optimizers(body, (heads,), muon_lr=4e-3)
    start = time.monotonic()
    for step, batch in enumerate(load(PatchBatches(type(student), first_seed, scenes), 0, steps)):
        set_rate(optimizers, step, steps, warmup=20, decay=0.5)
        features = student.see(batch.frames, zero_token=step % 2 == 0)
        loss, scores = _dense_loss(heads, student.dense(features), batch.labels)
        if features.mutual is not None:
            seeking = seeking_loss(features.mutual, batch.labels.shape > 0)
            loss, scores = loss + SEEKING_WEIGHT * seeking, f"{scores}  seeking {seeking.item():.3f}"
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*body.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print(f"tower {step:5d} {time.monotonic() - start:6.0f} s  loss {loss.item():.3f}  {scores}", flush=True)


def _dense_loss(heads: nn.ModuleDict, features: Tensor, labels: PatchLabels) -> tuple[Tensor, str]:
    """Sum of the heads' losses, and their accuracies in words (shape: on objects alone)."""
    loss, scores = torch.zeros(()), []
    for name in ("shape", "color", "size", "place", "seen"):
        logits, truth = heads[name](features).flatten(0, 1), getattr(labels, name).flatten()
        weight = torch.ones(logits.shape[-1])
        if name == "shape":
            weight[SHAPE_LABELS.index("background")] = BACKGROUND_WEIGHT
        loss = loss + F.cross_entropy(logits, truth, weight, ignore_index=IGNORE)
        shown = truth > 0 if name == "shape" else truth != IGNORE
        right = (logits.argmax(-1) == truth)[shown].float().mean().item()
        scores.append(f"{name} {right:.3f}")
    known = ~labels.offset.isnan()
    return loss + F.smooth_l1_loss(heads["offset"](features)[known], labels.offset[known]), "  ".join(scores)
