"""tiny-qwen3-vl: the stock Qwen3-VL of a few million parameters, DeepStack and M-RoPE included."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers import Qwen3VLForConditionalGeneration as Qwen3VL
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from occam.models.preprocess import normalise
from occam.models.qwen_layout import lay_out
from occam.models.qwen_pixels import cut_patches
from occam.models.qwen_tower import QwenTower
from pipelines.training.student import GRID, LLM_LAYERS, Features, PrefixLayout, Student, write_json
from pipelines.training.tokenizer import QWEN3_VL_WORDS

PATCH, MERGE, TEMPORAL = 8, 2, 2
MEAN = STD = (0.5, 0.5, 0.5)
FRAME_TOKENS = 40
"""Merge groups that a frame may take: 36 and some room, since the stock resize rounds down."""


class TinyQwen3VL(Student):
    """Views are pairs of frames behind their seconds, or an image; a patch of the others is a merge group here."""

    name = "tiny-qwen3-vl"
    words = QWEN3_VL_WORDS
    group = TEMPORAL

    @classmethod
    def build(cls, llm_layers: int = LLM_LAYERS) -> "TinyQwen3VL":
        """Vision 128 / 512, 6 layers, DeepStack after 1 and 3; text 192 / 512, 3 heads of 64."""
        markers = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_end|>")
        video, image, start, end, stop = cls.words.ids(markers)
        config = Qwen3VLConfig(
            vision_config={
                "depth": 6,
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": TEMPORAL,
                "out_hidden_size": 192,
                "num_position_embeddings": (GRID * MERGE) ** 2,
                "deepstack_visual_indexes": [1, 3],
            },
            text_config={
                "vocab_size": cls.words.size,
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": llm_layers,
                "num_attention_heads": 3,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "max_position_embeddings": 2048,
                "bos_token_id": None,
                "eos_token_id": stop,
                "pad_token_id": cls.words.id("<|endoftext|>"),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [12, 10, 10],
                    "mrope_interleaved": True,
                },
            },
            video_token_id=video,
            image_token_id=image,
            vision_start_token_id=start,
            vision_end_token_id=end,
            tie_word_embeddings=False,
        )
        return cls(Qwen3VL(config))

    @classmethod
    @cache
    def layout(cls, frames: int) -> PrefixLayout:
        """The opening of the user's turn, then `<0.5 seconds>`, vision start, pads, vision end of every view."""
        words = cls.words
        start, end = words.ids(("<|vision_start|>", "<|vision_end|>"))
        opening = words.encode(words.format.opening(""))
        if frames == 1:
            media = lay_out([[]], start, end, words.id("<|image_pad|>"), GRID, GRID)
        else:
            times = [(at + min(at + TEMPORAL, frames) - 1) / 2 for at in range(0, frames, TEMPORAL)]
            markers = [words.encode(f"<{seconds:.1f} seconds>") for seconds in times]
            media = lay_out(markers, start, end, words.id("<|video_pad|>"), GRID, GRID)
        visual = (media.patch >= 0).nonzero()[:, 0]
        return PrefixLayout(
            ids=torch.cat([torch.tensor(opening), media.ids]),
            positions=torch.cat([torch.arange(len(opening)).expand(3, -1), len(opening) + media.positions], dim=1),
            visual=len(opening) + visual,
            patch=(media.view * GRID * GRID + media.patch)[visual],
            start=len(opening) + media.length,
        )

    @property
    def tower(self) -> nn.Module:
        """The vision model's blocks and embeddings, without its mergers."""
        vision: Any = self.model.model.visual
        return nn.ModuleList([vision.patch_embed, vision.pos_embed, vision.blocks])

    @property
    def tower_width(self) -> int:
        """Of the vision configuration."""
        return int(self.model.config.vision_config.hidden_size)

    @property
    def bridge(self) -> tuple[nn.Module, ...]:
        """The merger, and those of the DeepStack levels."""
        vision: Any = self.model.model.visual
        return vision.merger, vision.deepstack_merger_list

    def see(self, frames: Tensor, zero_token: bool) -> Features:
        """Unmerged features [M, G * G, 4, C]; the zero token stands last in its view, unrotated, without a position."""
        vision: Any = self.model.model.visual
        tower = QwenTower(vision)
        hidden, rotary = tower.embed(*self.patches(frames), with_register=zero_token)
        levels = []
        for number, block in enumerate(vision.blocks):
            hidden, q, k = _block(block, hidden, rotary)
            if number in vision.deepstack_visual_indexes:
                levels.append(hidden)
        levels.insert(0, hidden)
        registers = tuple(level[:, -1] for level in levels) if zero_token else ()
        patches = GRID * GRID * MERGE**2
        return Features(
            levels=tuple(level[:, :patches].reshape(len(level), -1, MERGE**2, level.shape[2]) for level in levels),
            registers=registers,
            mutual=_mutual(q, k)[:, :patches].reshape(len(q), -1, MERGE**2).sum(dim=2),
        )

    def dense(self, features: Features) -> Tensor:
        """Merged features: a merge group is what the language model sees."""
        return self.visual(features, 0)

    def visual(self, features: Features, level: int) -> Tensor:
        """Merged groups; level 0 is the last."""
        return self._merged(features.levels[level], level)

    def registers(self, features: Features, level: int) -> Tensor:
        """Each register four times through the merger."""
        return self._merged(features.registers[level][:, None].expand(-1, MERGE**2, -1), level)

    def export(self, folder: Path) -> None:
        """In the layout of the real checkpoints."""
        copy = Qwen3VL(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        self._save(copy, folder)
        pixels = (PATCH * MERGE) ** 2
        common = {
            "patch_size": PATCH,
            "merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": MEAN,
            "image_std": STD,
            "do_convert_rgb": True,
            "processor_class": "Qwen3VLProcessor",
        }
        image = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 16 * pixels, "longest_edge": FRAME_TOKENS * pixels},
        }
        video = {
            "video_processor_type": "Qwen3VLVideoProcessor",
            "size": {"shortest_edge": 16 * pixels, "longest_edge": 64 * FRAME_TOKENS * pixels},
            "max_video_tokens": FRAME_TOKENS,
            "fps": 2,
            "min_frames": 2,
            "max_frames": 64,
        }
        write_json(folder / "preprocessor_config.json", common | image)
        write_json(folder / "video_preprocessor_config.json", common | video)

    def patches(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches [M * 144, K] in merge order, and the grid; an odd clip's last frame stands twice."""
        missing = -frames.shape[1] % TEMPORAL
        images = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return cut_patches(normalise(images.flatten(0, 1), MEAN, STD), PATCH, MERGE, TEMPORAL)

    def _merged(self, groups: Tensor, level: int) -> Tensor:
        vision: Any = self.model.model.visual
        merger = vision.merger if level == 0 else vision.deepstack_merger_list[level - 1]
        merged: Tensor = merger(groups.flatten(0, -2).contiguous())
        return merged.view(*groups.shape[:-2], -1)


def _block(block: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One stock block over all views at once (the stock attention runs them one after the other), its queries and keys.

    Queries and keys are rotated, [M, H, N, K].
    """
    views, tokens, _ = hidden.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden)).flatten(0, 1).unflatten(-1, (3, attention.num_heads, -1))
    rotated = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *rotary)
    q, k, v = (x.unflatten(0, (views, tokens)).transpose(1, 2) for x in (*rotated, qkv[:, 2]))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    hidden = hidden + attention.proj(mixed)
    output: Tensor = hidden + block.mlp(block.norm2(hidden))
    return output, q, k


def _mutual(q_MHNK: Tensor, k_MHNK: Tensor) -> Tensor:
    """Attention that each token gets from all of its view, mean over these and heads, [M, N]."""
    rows_MHNN: Tensor = (q_MHNK @ k_MHNK.mT / q_MHNK.shape[-1] ** 0.5).softmax(dim=-1)
    return rows_MHNN.mean(dim=(1, 2))
