"""The tiny Video-LLaVA: its configuration, how clips become its pixels, and its export in the stock layout."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, VideoLlavaConfig
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.training.tokenizer import EOS, IMAGE, PAD, VIDEO, build_tokenizer, pretrained_tokenizer

SIDE, PATCH, FRAMES = 96, 16, 8
GRID = SIDE // PATCH
FRAME_TOKENS = GRID * GRID + 1
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build_model(llm_layers: int = 8) -> VideoLlava:
    """The stock class with random weights, fp32; draws from torch's global generator."""
    tokenizer = build_tokenizer()
    ids = {token: tokenizer.token_to_id(token) for token in (PAD, EOS, VIDEO, IMAGE)}
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=llm_layers,
        num_attention_heads=3,
        max_position_embeddings=2048,
        pad_token_id=ids[PAD],
        bos_token_id=None,
        eos_token_id=ids[EOS],
    )
    return VideoLlava(
        VideoLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=ids[IMAGE],
            video_token_index=ids[VIDEO],
            vision_feature_layer=-2,
            image_seq_length=FRAME_TOKENS - 1,
            video_seq_length=FRAME_TOKENS * FRAMES,
        )
    )


def shrink(frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Square RGB frames [T, H, H, 3] to uint8 [T, 3, 96, 96], as the stock processors resize them."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return F.interpolate(planes, size=(SIDE, SIDE), mode="bicubic", antialias=True)


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [..., 3, 96, 96] to the tower's fp32 input."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (frames.float() / 255 - mean) / std


def export(model: VideoLlava, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights, configuration, tokenizer and preprocessor files; the image tower becomes a copy of the video's."""
    copy = VideoLlava(model.config)
    copy.load_state_dict(model.state_dict())
    copy.model.image_tower.load_state_dict(model.model.video_tower.state_dict())
    copy.generation_config = GenerationConfig(
        eos_token_id=model.config.text_config.eos_token_id,
        pad_token_id=model.config.text_config.pad_token_id,
        do_sample=False,
        max_new_tokens=16,
    )
    copy.to(dtype).save_pretrained(folder)
    pretrained_tokenizer().save_pretrained(folder)
    common = {
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_convert_rgb": True,
        "processor_class": "VideoLlavaProcessor",
    }
    _write(folder / "preprocessor_config.json", common | {"image_processor_type": "VideoLlavaImageProcessor"})
    _write(folder / "video_preprocessor_config.json", common | {"video_processor_type": "VideoLlavaVideoProcessor"})
    layout = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    _write(folder / "processor_config.json", layout | {"processor_class": "VideoLlavaProcessor"})


def _write(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
