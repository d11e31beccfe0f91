"""A small random checkpoint in the Video-LLaVA architecture, written to disk as a real one lies there.

Shape-true where it matters: grouped KV heads, biases and norm weights away from their neutral values, two towers
that differ, attention far from uniform. Special tokens have a zero row in the head, so greedy decoding never ends.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from occam.calibration import ARTEFACT_NAME, Calibration
from occam.models.checkpoint import weights_digest

IMAGE_SIZE, PATCH_SIZE = 56, 14
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
LAYERS = 6
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "<video>")
WORDS = ("USER:", "ASSISTANT:", "\n", "what", "colour", "is", "the", "ball", "?", "where", "does", "it", "go", "then")
VOCABULARY = (*SPECIAL, *WORDS, *(f"w{i}" for i in range(180)))
NEURONS = ((0, 5), (1, 17), (1, 40), (2, 3))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_factor": 4.0,
}
TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": SPECIAL.index("<s>"),
    "eos_token_id": SPECIAL.index("</s>"),
    "pad_token_id": SPECIAL.index("<pad>"),
}


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write model, tokenizer, preprocessing and the register artefact into `folder`."""
    torch.manual_seed(seed)
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=SPECIAL.index("<video>"),
    )
    return write(folder, VideoLlavaForConditionalGeneration(config), VOCABULARY, "VideoLlavaImageProcessor")


def write(folder: Path, model: Any, vocabulary: Sequence[str], processor: str, **preprocessing: object) -> Path:
    """Write a model of any family as a real checkpoint lies on disk, its parameters shaken."""
    _shake(model).save_pretrained(folder)
    _tokenizer(vocabulary).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **preprocessing,
    }
    calibration = Calibration(
        weights=weights_digest(folder), cut=3, register="neurons", neurons=NEURONS, lambda1=0.5, lambda2=1.0
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    calibration.save(folder / ARTEFACT_NAME)
    return folder


def random_frames(count: int, seed: int = 0, size: int = IMAGE_SIZE) -> np.ndarray:
    """uint8 [T, size, size, 3], each frame with its own brightness and contrast; made for a tower of that size."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, size, size, 3)) * rng.uniform(20, 90, (count, 1, 1, 1))
    blocks = rng.normal(size=(count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    frames = 128 + rng.uniform(-60, 60, (count, 1, 1, 3)) + noise + blocks * rng.uniform(10, 90, (count, 1, 1, 1))
    return frames.clip(0, 255).astype(np.uint8)


def pixels(frames: np.ndarray) -> torch.Tensor:
    """float32 [T, 3, H, W]: frames of the tower's own size, rescaled and normalised."""
    scaled = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
    return ((scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


def _shake(model: Any) -> Any:
    """Norm weights and biases away from neutral, and special tokens that never win."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "class_embedding" not in name and "newline" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.lm_head.weight[: len(SPECIAL)] = 0
    model.generation_config.bos_token_id = SPECIAL.index("<s>")
    model.generation_config.eos_token_id = SPECIAL.index("</s>")
    model.generation_config.pad_token_id = SPECIAL.index("<pad>")
    return model.eval()


def _tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
