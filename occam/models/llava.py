"""LLaVA-1.5 (arXiv 2310.03744) and LLaVA-NeXT over the stock `transformers` classes, pruned and cached by the engine.

Stock layout of a first turn: `USER: <image>\\n<image>\\n{question} ASSISTANT:`, as the checkpoints' chat templates have
it: each placeholder stands for an image's visual tokens, and the newline behind it belongs to the image.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.anyres import AnyRes
from occam.models.checkpoint import load_stock
from occam.models.compact import Layout
from occam.models.llava_family import LlavaFamily
from occam.models.preprocess import ClipPixels
from occam.models.prompt import MISTRAL, VICUNA, Format
from occam.types import FrameBatch

PLACEHOLDER = "<image>"
TEMPLATES = {
    "llama": replace(VICUNA, media_end="\n", question=""),
    "mistral": replace(MISTRAL, media_end="\n", question=""),
}
"""`model_type` of the decoder -> the template its checkpoints were trained with."""


class Llava(LlavaFamily):
    """Single images, one pass of the tower each."""

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> "Llava":
        """Load a checkpoint directory in the stock layout; InvalidInput where its shape is not supported."""
        model = load_stock(LlavaForConditionalGeneration, directory, config)
        return cls.of(
            model,
            model.model.vision_tower,
            ClipPixels.load(directory, "image"),
            name=name,
            directory=directory,
            digest=digest,
            placeholder=PLACEHOLDER,
            template=_template(model.config.text_config.model_type),
        )

    def layout(self, media: FrameBatch, side: int) -> Layout:
        """The image's patches, behind its CLS token where the checkpoint wants `full` features."""
        return Layout.of_frames(len(media), side, with_cls=self.model.config.vision_feature_select_strategy == "full")


class LlavaNext(LlavaFamily):
    """Single images, whole and in tiles: each a pass of the tower with its own CLS token and register."""

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> "LlavaNext":
        """Load a checkpoint directory in the stock layout; InvalidInput where its shape is not supported."""
        model = load_stock(LlavaNextForConditionalGeneration, directory, config)
        if model.config.vision_feature_select_strategy != "default":
            raise InvalidInput("LLaVA-NeXT cannot lay out tiles with their CLS tokens (`full` features).", "model")
        return cls.of(
            model,
            model.model.vision_tower,
            AnyRes.load(directory),
            name=name,
            directory=directory,
            digest=digest,
            placeholder=PLACEHOLDER,
            template=_template(model.config.text_config.model_type),
        )

    def layout(self, media: FrameBatch, side: int) -> Layout:
        """The whole image, then its tiles as one grid with newlines."""
        height, width = media.frames.shape[1:3]
        return cast(AnyRes, self.pixels).layout((height, width), side)

    def embed(self, tokens: Tensor, source: Tensor) -> Tensor:
        """Projected tokens, and the learned newline where the source is negative."""
        return torch.where((source < 0)[:, None], self.model.model.image_newline, super().embed(tokens, source))


def _template(text_type: str) -> Format:
    if text_type not in TEMPLATES:
        raise InvalidInput(
            f"LLaVA on a {text_type!r} decoder is not supported; supported: {', '.join(TEMPLATES)}.", "model"
        )
    return TEMPLATES[text_type]
