"""Random weights of two real checkpoints' dimensions, on disk as those lie: in shards, in bfloat16, the words a test's.

They are those of LanguageBind/Video-LLaVA-7B-hf and Qwen/Qwen3-VL-8B-Instruct; only the decoder's depth is cut down
where memory asks for it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from occam.calibration import ARTEFACT_NAME
from tests.parity import checkpoint, checkpoint_qwen

SHARD = "1GB"


class RealDimensions(NamedTuple):
    """A checkpoint's `write(folder, layers)`, the decoder's real depth, and the paper's cut in it."""

    write: Callable[[Path, int], None]
    layers: int
    cut: int


def write_video_llava_7b(folder: Path, layers: int) -> None:
    """CLIP-L/14 at 224 pixels, twice, and a Vicuna-7B of so many layers."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    )
    checkpoint.write_checkpoint(folder)
    small = json.loads((folder / "config.json").read_text())
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=small["image_token_index"],
        video_token_index=small["video_token_index"],
    )
    _replace(folder, lambda: VideoLlavaForConditionalGeneration(config))
    pixels = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    _edit(folder / "preprocessor_config.json", pixels)


def write_qwen3_vl_8b(folder: Path, layers: int) -> None:
    """The vision tower of 27 blocks with three DeepStack levels, and a Qwen3-8B of so many layers."""
    checkpoint_qwen.write_checkpoint(folder)
    small = json.loads((folder / "config.json").read_text())
    config = Qwen3VLConfig(
        vision_config={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        text_config={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        **{name: small[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id")},
        vision_end_token_id=small["vision_end_token_id"],
    )
    _replace(folder, lambda: Qwen3VLForConditionalGeneration(config))
    _edit(folder / "preprocessor_config.json", {"patch_size": 16, "size": _edges(65536, 16777216)})
    video = {"patch_size": 16, "size": _edges(4096, 25165824), "max_video_tokens": 768}
    _edit(folder / "video_preprocessor_config.json", video)


FAMILIES = {
    "Video-LLaVA-7B": RealDimensions(write_video_llava_7b, layers=32, cut=11),
    "Qwen3-VL-8B": RealDimensions(write_qwen3_vl_8b, layers=36, cut=10),
}


def _replace(folder: Path, build: Callable[[], PreTrainedModel]) -> None:
    """A model of other dimensions in the place of the small one; without any artefact."""
    (folder / ARTEFACT_NAME).unlink()
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        build().save_pretrained(folder, max_shard_size=SHARD)
    finally:
        torch.set_default_dtype(torch.float32)


def _edit(path: Path, changes: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edges(shortest: int, longest: int) -> dict[str, int]:
    return {"shortest_edge": shortest, "longest_edge": longest}
