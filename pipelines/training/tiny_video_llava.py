"""tiny-video-llava: the stock Video-LLaVA, a CLIP tower and a Llama of a few million parameters."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from occam.models.preprocess import normalise
from pipelines.training.student import (
    FRAMES,
    GRID,
    LLM_LAYERS,
    SIDE,
    Features,
    PrefixLayout,
    Student,
    write_json,
)
from pipelines.training.tokenizer import VIDEO_LLAVA_WORDS

PATCH = SIDE // GRID
FRAME_TOKENS = GRID * GRID + 1
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class TinyVideoLlava(Student):
    """Views are frames; their CLS tokens are visual tokens of a video, not of an image."""

    name = "tiny-video-llava"
    words = VIDEO_LLAVA_WORDS
    group = 1

    @classmethod
    def build(cls, llm_layers: int = LLM_LAYERS) -> "TinyVideoLlava":
        """Vision 128 / 512, 6 layers, feature layer -2; Llama 192 / 512, 3 heads of 64."""
        vision = CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
        )
        pad, end, video, image = cls.words.ids(("<pad>", "</s>", "<video>", "<image>"))
        text = LlamaConfig(
            vocab_size=cls.words.size,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=llm_layers,
            num_attention_heads=3,
            max_position_embeddings=2048,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=end,
        )
        config = VideoLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image,
            video_token_index=video,
            vision_feature_layer=-2,
            image_seq_length=FRAME_TOKENS - 1,
            video_seq_length=FRAME_TOKENS * FRAMES,
        )
        return cls(VideoLlava(config))

    @classmethod
    @cache
    def layout(cls, frames: int) -> PrefixLayout:
        """`USER:` and the frames' tokens."""
        places = torch.arange(frames * FRAME_TOKENS)
        patch = torch.where(places % FRAME_TOKENS == 0, -1, places - places // FRAME_TOKENS - 1)
        if frames == 1:
            patch = patch[1:]
        opening = cls.words.encode(cls.words.format.opening(""))
        placeholder = cls.words.id("<image>" if frames == 1 else "<video>")
        length = len(opening) + len(patch)
        return PrefixLayout(
            ids=torch.tensor([*opening, *[placeholder] * len(patch)]),
            positions=torch.arange(length)[None],
            visual=torch.arange(len(opening), length),
            patch=patch,
            start=length,
        )

    @property
    def tower(self) -> nn.Module:
        """The video tower; the image tower becomes its copy."""
        tower: nn.Module = self.model.model.video_tower
        return tower

    @property
    def tower_width(self) -> int:
        """Of the vision configuration."""
        return int(self.model.config.vision_config.hidden_size)

    @property
    def bridge(self) -> tuple[nn.Module, ...]:
        """The projector."""
        return (self.model.model.multi_modal_projector,)

    def see(self, frames: Tensor, zero_token: bool) -> Features:
        """Features of the configured layer; the zero token enters after `pre_layrnorm`, without a position."""
        tower: Any = self.tower
        hidden = tower.pre_layrnorm(tower.embeddings(normalise(frames.flatten(0, 1), MEAN, STD)))
        if zero_token:
            hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
        for layer in tower.encoder.layers[: self.model.config.vision_feature_layer + 1]:
            hidden = layer(hidden, attention_mask=None)
        summary = hidden[:, 0]
        if frames.shape[1] == 1:
            hidden = hidden[:, 1:]
        if not zero_token:
            return Features(levels=(hidden,), registers=(), summary=summary)
        return Features(levels=(hidden[:, :-1],), registers=(hidden[:, -1],), summary=summary)

    def dense(self, features: Features) -> Tensor:
        """The patches' features."""
        return features.levels[0][:, -GRID * GRID :]

    def visual(self, features: Features, level: int) -> Tensor:
        """Projected tokens, CLS first."""
        tokens: Tensor = self.model.model.multi_modal_projector(features.levels[level])
        return tokens

    def registers(self, features: Features, level: int) -> Tensor:
        """Projected registers."""
        tokens: Tensor = self.model.model.multi_modal_projector(features.registers[level])
        return tokens

    def export(self, folder: Path) -> None:
        """In the layout of the real checkpoints."""
        copy = VideoLlava(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        copy.model.image_tower.load_state_dict(self.tower.state_dict())
        self._save(copy, folder)
        common = {
            "do_resize": True,
            "size": {"shortest_edge": SIDE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": SIDE, "width": SIDE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
            "do_convert_rgb": True,
            "processor_class": "VideoLlavaProcessor",
        }
        write_json(folder / "preprocessor_config.json", common | {"image_processor_type": "VideoLlavaImageProcessor"})
        write_json(
            folder / "video_preprocessor_config.json", common | {"video_processor_type": "VideoLlavaVideoProcessor"}
        )
        layout = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
        write_json(folder / "processor_config.json", layout | {"processor_class": "VideoLlavaProcessor"})
