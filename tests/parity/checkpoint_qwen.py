"""A small random checkpoint in the Qwen3-VL architecture, written to disk as a real one lies there.

Shape-true where it matters: grouped KV heads with a head width of its own, three rotary sections, two DeepStack levels,
a square position table that fits no grid, biases and norm weights away from their neutral values. The tokenizer cuts
words as the real one does and has merges that could run across a marker's edge. Special tokens have a zero row in the
head, so greedy decoding never ends.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from occam.calibration import ARTEFACT_NAME, Calibration
from occam.models.checkpoint import weights_digest

PATCH, MERGE, TEMPORAL = 8, 2, 2
SIDE = PATCH * MERGE
LAYERS, DEPTH, HEAD_DIM = 6, 4, 24
NEURONS = ((0, 5), (1, 17), (1, 40), (2, 3))
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "system\nuser\nassistant\n",
    "what colour is the ball ? where does it go then ?\n\n",
    "<0.2 seconds><1.3 seconds><10.0 seconds>\n",
    ">\n>\n<<\n\n",
    "?\n?\n.\n.\n",
)


def write_checkpoint(folder: Path, seed: int = 0, experts: int = 0) -> Path:
    """Write model, tokenizer, preprocessing and the register artefact; with `experts`, a mixture of so many."""
    tokenizer = _tokenizer()
    _model(tokenizer, seed, experts).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shared = {
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": _size(4, 30)}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "size": _size(3, 60), "max_video_tokens": 9}
    (folder / "preprocessor_config.json").write_text(json.dumps(shared | image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(shared | video))
    calibration = Calibration(
        weights=weights_digest(folder), cut=3, register="neurons", neurons=NEURONS, lambda1=0.9, lambda2=1.0
    )
    calibration.save(folder / ARTEFACT_NAME)
    return folder


def random_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3], each frame with its own brightness and contrast, in blocks and noise."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, height, width, 3)) * rng.uniform(20, 90, (count, 1, 1, 1))
    blocks = rng.normal(size=(count, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)[:, :height, :width]
    frames = 128 + rng.uniform(-60, 60, (count, 1, 1, 3)) + noise + blocks * rng.uniform(10, 90, (count, 1, 1, 1))
    return frames.clip(0, 255).astype(np.uint8)


def _size(least: int, most: int) -> dict[str, int]:
    """Pixels of so many merge groups."""
    return {"shortest_edge": least * SIDE**2, "longest_edge": most * SIDE**2}


def _model(tokenizer: PreTrainedTokenizerFast, seed: int, experts: int) -> Any:
    torch.manual_seed(seed)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    vision = {
        "depth": DEPTH,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "out_hidden_size": 64,
        "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.15,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 4, 4],
            "mrope_interleaved": True,
        },
    }
    if experts:
        text |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = (Qwen3VLMoeConfig if experts else Qwen3VLConfig)(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    stock = Qwen3VLMoeForConditionalGeneration if experts else Qwen3VLForConditionalGeneration
    model = stock(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.lm_head.weight[list(ids.values())] = 0
    model.generation_config.bos_token_id = ids["<|endoftext|>"]
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
