"""Dense pretraining of the vision tower: each patch tells the shape, colour, size and centre of what it shows."""

import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.training.data import COLOR_LABELS, SHAPE_LABELS, PatchBatch, PatchBatches, load
from pipelines.training.network import run_tower
from pipelines.training.optim import build_optimizers, set_rate
from pipelines.training.packing import IGNORE

BACKGROUND_WEIGHT = 0.15
"""Three patches in four show background: unweighted, the shapes are learned late."""

HEADS = {"shape": len(SHAPE_LABELS), "color": len(COLOR_LABELS), "size": 2, "offset": 2}


def pretrain_tower(model: VideoLlava, steps: int, batch: int, first_seed: int) -> None:
    """Train the layers below the feature layer, half of the time with the zero token, then freeze the tower."""
    tower = model.model.video_tower
    heads = nn.ModuleDict({name: nn.Linear(tower.config.hidden_size, size) for name, size in HEADS.items()})
    optimizers = build_optimizers(tower.encoder, (tower.embeddings, tower.pre_layrnorm, heads), muon_lr=4e-3)
    start = time.monotonic()
    for step, patches in enumerate(load(PatchBatches(first_seed, batch), 0, steps)):
        set_rate(optimizers, step, steps, warmup=20, decay=0.5)
        features = run_tower(model, patches.frames, zero_token=step % 2 == 0)
        loss, scores = _dense_loss(heads, features[:, 1 : 1 + patches.shape.shape[1]], patches)
        loss.backward()
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            print(f"tower {step:5d} {time.monotonic() - start:6.0f} s  loss {loss.item():.3f}  {scores}", flush=True)
    tower.requires_grad_(False)


def _dense_loss(heads: nn.ModuleDict, features: torch.Tensor, patches: PatchBatch) -> tuple[torch.Tensor, str]:
    """Sum of the heads' losses, and their accuracies in words (shape: on objects alone)."""
    loss, scores = torch.zeros(()), []
    for name in ("shape", "color", "size"):
        logits, truth = heads[name](features).flatten(0, 1), getattr(patches, name).flatten()
        weight = torch.ones(logits.shape[-1])
        if name == "shape":
            weight[SHAPE_LABELS.index("background")] = BACKGROUND_WEIGHT
        loss = loss + F.cross_entropy(logits, truth, weight, ignore_index=IGNORE)
        shown = truth > 0 if name == "shape" else truth != IGNORE
        scores.append(f"{name} {(logits.argmax(-1) == truth)[shown].float().mean():.3f}")
    shown = ~patches.offset.isnan().any(-1)
    distance = F.smooth_l1_loss(heads["offset"](features)[shown], patches.offset[shown])
    return loss + distance, "  ".join([*scores, f"offset {distance:.4f}"])
