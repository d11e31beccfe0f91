"""Small random checkpoints of LLaVA-1.5 and LLaVA-NeXT, with the tower, decoder and tokenizer of `checkpoint`."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
)

from occam.types import FrameBatch
from tests.parity.checkpoint import IMAGE_SIZE, PATCH_SIZE, SPECIAL, TEXT, VISION, VOCABULARY, write

PINPOINTS = [[rows * IMAGE_SIZE, columns * IMAGE_SIZE] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
INSTRUCT = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
WORDS = (*VOCABULARY[: -len(INSTRUCT)], *INSTRUCT)


def write_llava(folder: Path, select: str = "default", seed: int = 0) -> Path:
    """LLaVA-1.5, whose published checkpoints name CLIP's own image processor."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_select_strategy=select,
    )
    _write_processor(folder, select)
    return write(folder, LlavaForConditionalGeneration(config), WORDS, "CLIPImageProcessor")


def write_llava_next(folder: Path, text: str = "llama", seed: int = 0, window: int | None = None) -> Path:
    """LLaVA-NeXT on a decoder of type `llama` (vicuna) or `mistral`, that with a sliding window or without."""
    torch.manual_seed(seed)
    decoder = LlamaConfig(**TEXT) if text == "llama" else MistralConfig(**TEXT, sliding_window=window)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=decoder,
        image_token_index=SPECIAL.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    _write_processor(folder, "default")
    model = LlavaNextForConditionalGeneration(config)
    return write(folder, model, WORDS, "LlavaNextImageProcessor", image_grid_pinpoints=PINPOINTS, do_pad=True)


def random_image(height: int, width: int, seed: int = 0) -> FrameBatch:
    """Coarse blocks of colour under noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(size=(6, 7, 3)).repeat(-(-height // 6), 0).repeat(-(-width // 7), 1)[:height, :width]
    frames = (128 + 70 * blocks + rng.normal(size=blocks.shape) * 25).clip(0, 255).astype(np.uint8)[None]
    return FrameBatch(
        frames=np.ascontiguousarray(frames),
        pts_seconds=np.zeros(1),
        indices=np.zeros(1, dtype=np.int64),
        digest="0" * 64,
        kind="image",
    )


def _write_processor(folder: Path, select: str) -> None:
    settings = {"patch_size": PATCH_SIZE, "vision_feature_select_strategy": select, "num_additional_image_tokens": 1}
    (folder / "processor_config.json").write_text(json.dumps(settings))
