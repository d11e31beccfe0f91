"""An embedded model while it is trained: the stock model, and what the trainer needs to know of its family.

Shapes: B clips, F frames, M views (frames, or groups of frames), P prefix tokens, V visual ones among them, A position
axes, D width, C the tower's width, G * G patches (or merge groups) in a view.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from occam.models.preprocess import resize
from pipelines.training.tokenizer import Words

SIDE, GRID, FRAMES = 96, 6, 8
"""Pixels of a frame's side as the towers see it, patches (or merge groups) along it, and frames of the usual clip."""
LLM_LAYERS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixLayout:
    """The prompt in front of the text, nothing pruned.

    ids: int64 [P], placeholders where visual tokens go; positions: int64 [A, P]
    visual: int64 [V], places of the visual tokens; patch: int64 [V], view * G * G + patch of each, -1 for a CLS token
    start: position of the first token of the text
    """

    ids: Tensor
    positions: Tensor
    visual: Tensor
    patch: Tensor
    start: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What the tower gives for M views: tokens [M, N, ...] of the last level, then of the DeepStack levels.

    registers: the same of the zero token [M, C], none without one; summary: CLS tokens [M, C] of towers that have them
    mutual: of towers without, the share of all attention that each token gets in the last block [M, N]
    """

    levels: tuple[Tensor, ...]
    registers: tuple[Tensor, ...]
    summary: Tensor | None = None
    mutual: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """A batch's prefix: hidden [B, P, D], positions [A, B, P], places of the visual tokens [B, V].

    planes: [B, P, D] for every DeepStack level; register: [B, 1 + levels, D], the views' mean, or None
    """

    hidden: Tensor
    positions: Tensor
    visual: Tensor
    planes: tuple[Tensor, ...]
    register: Tensor | None

    def select(self, index_BV: Tensor) -> "Prefix":
        """Only the visual tokens of these ascending indices; positions stay what they were."""
        keep_BP, visual = narrow(self.visual, index_BV, self.hidden.shape[1])
        return replace(
            self,
            hidden=gather(self.hidden, keep_BP),
            positions=torch.stack([axis.gather(1, keep_BP) for axis in self.positions]),
            visual=visual,
            planes=tuple(gather(plane, keep_BP) for plane in self.planes),
        )


def narrow(visual_BV: Tensor, index_BV: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Places [B, P'] that stay of a sequence of `length`, and the places of the visual tokens [B, V'] among them.

    visual: places of the visual tokens, of which those of `index` stay, with everything that is not visual
    """
    stays = torch.ones(len(visual_BV), length, dtype=torch.bool).scatter(1, visual_BV, False)
    kept = visual_BV.gather(1, index_BV)
    stays = stays.scatter(1, kept, True)
    return stays.nonzero()[:, 1].view(len(visual_BV), -1), (stays.cumsum(1) - 1).gather(1, kept)


def gather(values_BPD: Tensor, index_BP: Tensor) -> Tensor:
    """Rows of every clip by their own indices."""
    return values_BPD.gather(1, index_BP[..., None].expand(-1, -1, values_BPD.shape[-1]))


class Student(ABC):
    """The stock model in fp32, its parts by their role, and its family's way from frames to a prefix."""

    name: ClassVar[str]
    words: ClassVar[Words]
    group: ClassVar[int]
    """Frames of a view."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.llm: Any = model.model.language_model
        self.head: nn.Linear = model.lm_head

    @classmethod
    @abstractmethod
    def build(cls, llm_layers: int = LLM_LAYERS) -> "Student":
        """The stock class with random weights from torch's global generator."""

    @classmethod
    @abstractmethod
    def layout(cls, frames: int) -> PrefixLayout:
        """The prefix of a clip of so many frames; one frame is an image."""

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower, frozen for most of the training."""

    @property
    @abstractmethod
    def tower_width(self) -> int:
        """C."""

    @property
    @abstractmethod
    def bridge(self) -> tuple[nn.Module, ...]:
        """What stands between tower and language model, trained with the latter."""

    @abstractmethod
    def see(self, frames: Tensor, zero_token: bool) -> Features:
        """Run the tower on uint8 frames [B, F, 3, 96, 96]."""

    @abstractmethod
    def dense(self, features: Features) -> Tensor:
        """What the dense heads of the tower's pretraining read, [M, G * G, width]."""

    @abstractmethod
    def visual(self, features: Features, level: int) -> Tensor:
        """Visual tokens of a level for the language model, [M, tokens of a view, D]."""

    @abstractmethod
    def registers(self, features: Features, level: int) -> Tensor:
        """The views' registers of a level for the language model, [M, D]."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write bf16 weights, configuration, tokenizer and processor files, as stock `from_pretrained` wants them."""

    def prefix(self, frames: Tensor, features: Features) -> Prefix:
        """The unpruned prefix of clips [B, F, 3, 96, 96] whose features these are."""
        clips, layout = frames.shape[0], self.layout(frames.shape[1])
        tokens = [
            self._per_clip(self.visual(features, level), clips).flatten(1, 2) for level in range(len(features.levels))
        ]
        place = layout.visual.expand(clips, -1)
        where = place[..., None].expand(-1, -1, tokens[0].shape[-1])
        embedded = self.llm.embed_tokens(layout.ids).expand(clips, -1, -1)
        nothing = torch.zeros_like(embedded)
        register = None
        if features.registers:
            views = [self.registers(features, level) for level in range(len(features.registers))]
            register = torch.stack([self._per_clip(view, clips).mean(dim=1) for view in views], dim=1)
        return Prefix(
            hidden=embedded.scatter(1, where, tokens[0]),
            positions=layout.positions[:, None].expand(-1, clips, -1),
            visual=place,
            planes=tuple(nothing.scatter(1, where, plane) for plane in tokens[1:]),
            register=register,
        )

    def _save(self, copy: PreTrainedModel, folder: Path) -> None:
        """Weights in bf16, generation settings and tokenizer: what is alike in every family's export."""
        text: Any = copy.config.text_config
        copy.generation_config = GenerationConfig(
            eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, do_sample=False, max_new_tokens=16
        )
        copy.to(torch.bfloat16).save_pretrained(folder)
        self.words.pretrained().save_pretrained(folder)

    @staticmethod
    def _per_clip(views: Tensor, clips: int) -> Tensor:
        """[B * views, ...] as [B, views, ...]."""
        return views.view(clips, -1, *views.shape[1:])


def write_json(path: Path, values: dict[str, object]) -> None:
    """A configuration file as the stock classes write theirs."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def shrink(frames: npt.NDArray[np.uint8]) -> Tensor:
    """Square RGB frames [T, H, H, 3] to uint8 [T, 3, 96, 96], as the stock processors resize them."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return resize(planes, (SIDE, SIDE))
