"""Small random checkpoints of LLaVA-1.5 and LLaVA-NeXT, with the tower, decoder and tokenizer of `checkpoint`."""

from pathlib import Path
from typing import Any

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

from tests.parity.checkpoint import IMAGE_SIZE, SPECIAL, TEXT, VISION, VOCABULARY, write

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
    return write(folder, LlavaForConditionalGeneration(config), WORDS, "CLIPImageProcessor")


def write_llava_next(folder: Path, text: str = "llama", seed: int = 0, **text_settings: Any) -> Path:
    """LLaVA-NeXT on a decoder of type `llama` (vicuna) or `mistral`."""
    torch.manual_seed(seed)
    settings = {**TEXT, **text_settings}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**settings)
        if text == "llama"
        else MistralConfig(**{"sliding_window": None, **settings}),
        image_token_index=SPECIAL.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    model = LlavaNextForConditionalGeneration(config)
    return write(folder, model, WORDS, "LlavaNextImageProcessor", image_grid_pinpoints=PINPOINTS, do_pad=True)
