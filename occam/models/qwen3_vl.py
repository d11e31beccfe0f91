"""Qwen3-VL (arXiv 2511.21631) over the stock `transformers` classes, pruned and cached by the engine.

A video's temporal group of two frames stands as `<0.3 seconds><|vision_start|>` pads `<|vision_end|>`, an image
without the seconds; a pad is a 2 x 2 merge group of patches. No pair of vision tokens stands round a whole video (the
form of the original processor and of vLLM; that of transformers 5 has one), so groups can be appended for ever.

Legend: V views (temporal groups, or an image), P merge groups of patches in a view, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from occam.calibration import Calibration
from occam.config import EngineConfig, RegisterMode, RegisterPlacement
from occam.models.base import ModelInfo, TowerOutput
from occam.models.batches import Batches
from occam.models.checkpoint import config_digest, load_stock
from occam.models.decoder import Decoder
from occam.models.prompt import CHATML, Prompt
from occam.models.qwen_layout import Layout, lay_out
from occam.models.qwen_pixels import VERSION, QwenPixels
from occam.models.qwen_tower import Grid, QwenTower
from occam.registers import Neuron, TowerTrace
from occam.tensors import MediaTokens
from occam.transfer import to_device
from occam.types import FrameBatch, MediaKind

AXES = 3
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
PADS: dict[MediaKind, str] = {"video": "<|video_pad|>", "image": "<|image_pad|>"}


@dataclass(frozen=True)
class Qwen3VL:
    """The adapter; see `VideoLM` for what each method promises."""

    stock: ClassVar[type[PreTrainedModel]] = Qwen3VLForConditionalGeneration
    media: ClassVar[tuple[MediaKind, ...]] = tuple(PADS)
    frames: ClassVar[int] = 16

    info: ModelInfo
    decoder: Decoder
    prompt: Prompt
    tower: QwenTower
    model: PreTrainedModel
    pixels: dict[MediaKind, QwenPixels]
    batches: Batches = field(default_factory=Batches)

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> Self:
        """Load a checkpoint directory in the stock layout; InvalidInput for one that thinks before it answers."""
        prompt = Prompt(AutoTokenizer.from_pretrained(directory), CHATML, PADS["video"])
        prompt.check_template(directory)
        model = load_stock(cls.stock, directory, config)
        text, vision = model.config.text_config, model.config.vision_config
        pixels = {kind: QwenPixels.load(directory, kind) for kind in PADS}
        info = ModelInfo(
            name=name,
            family=model.config.model_type,
            digest=digest,
            config_digest=config_digest(directory),
            text_digest=prompt.digest(directory),
            preprocessing="-".join([VERSION, *(each.digest[:16] for each in pixels.values())]),
            frames=cls.frames,
            media=cls.media,
            group=vision.temporal_patch_size,
            layers=text.num_hidden_layers,
            cut=round(text.num_hidden_layers * 10 / 36),
            max_positions=text.max_position_embeddings,
        )
        decoder = Decoder(
            model.model.language_model,
            model.lm_head,
            apply_rotary_pos_emb,
            axes=AXES,
            levels=len(vision.deepstack_visual_indexes),
        )
        prompt = prompt.stopping_at(model.generation_config.eos_token_id)
        return cls(info, decoder, prompt, QwenTower(model.model.visual), model, pixels)

    def calibrated(self, calibration: Calibration) -> Self:
        """The same model with this calibration, its register neurons installed."""
        return replace(
            self,
            info=replace(self.info, calibration=calibration),
            tower=self.tower.with_neurons(calibration.neurons),
        )

    def batch_views(self, kind: MediaKind) -> int:
        """Of every batch of the tower."""
        return self.batches.views(kind)

    def encode(
        self, chunks: Sequence[FrameBatch], register: RegisterMode | None, placement: RegisterPlacement
    ) -> list[TowerOutput]:
        """Unmerged tower features and mutual scores, per view; no norm stands before the blocks to place r about."""
        del placement
        ready = [self._preprocess(media) for media in chunks]
        tower, (_, rows, columns) = self.tower, ready[0][1]

        def encode(patches_VPK: Tensor) -> TowerOutput:
            return tower.encode(patches_VPK.flatten(0, 1), (len(patches_VPK), rows, columns), register)

        views = [patches.view(-1, rows * columns, patches.shape[1]) for patches, _ in ready]
        return self.batches(chunks[0].kind, encode, views, (tower, register, rows, columns))

    def compose(self, media: FrameBatch, output: TowerOutput, keep_VP: Tensor, keep_cls: bool) -> MediaTokens:
        """The chunk's markers, and its kept merge groups at their stock positions; there are no CLS tokens."""
        del keep_cls
        rows, columns = self.grid(media)
        device, keep_VP = keep_VP.device, keep_VP.cpu()
        kept = self._layout(media, rows, columns).keep(keep_VP)
        layout = kept.to(device)
        visual, chosen = (
            to_device(where.flatten().nonzero().squeeze(1), device) for where in (kept.patch >= 0, keep_VP)
        )
        embeddings = self.decoder.embed(layout.ids)
        embeddings[visual] = self.tower.merged(output.features.flatten(0, 1)[chosen])
        planes = [torch.zeros_like(embeddings) for _ in output.planes]
        for level, (plane, features) in enumerate(zip(planes, output.planes, strict=True)):
            plane[visual] = self.tower.merged(features.flatten(0, 1)[chosen], level)
        views = slice(None, None, self.info.group)
        return MediaTokens(
            ids=layout.ids,
            embeddings=embeddings,
            positions=layout.positions,
            view=layout.view,
            patch=layout.patch,
            planes=tuple(planes),
            length=layout.length,
            encoded=keep_VP.numel(),
            pts_seconds=torch.from_numpy(media.pts_seconds[views].copy()),
            indices=torch.from_numpy(media.indices[views].copy()),
            grid=torch.tensor([[rows, columns]]).expand(len(keep_VP), 2),
            register_sum=self._register_sum(output),
            register_count=0 if output.register is None else len(output.register),
        )

    def shown(self, media: FrameBatch) -> Tensor:
        """Every merge group of every view."""
        rows, columns = self.grid(media)
        return torch.ones(-(-len(media) // self.info.group), rows * columns, dtype=torch.bool)

    def others(self, media: FrameBatch, keep_cls: bool) -> int:
        """The chunk's markers; there are no CLS tokens."""
        del keep_cls
        return int((self._layout(media, *self.grid(media)).patch < 0).sum())

    def trace(self, media: FrameBatch, neurons: tuple[Neuron, ...] | None) -> TowerTrace:
        """One pass of the tower over a chunk, watched; its patches are unmerged."""
        return self.tower.trace(*self._preprocess(media), neurons)

    def _preprocess(self, media: FrameBatch) -> tuple[Tensor, Grid]:
        """Patches and their grid; resized on the CPU whatever the device, since the float path differs."""
        patches, grid = self.pixels[media.kind](media)
        return to_device(patches, self.model.device, self.model.dtype), grid

    def grid(self, media: FrameBatch) -> tuple[int, int]:
        """Rows and columns of a view's merge groups."""
        pixels = self.pixels[media.kind]
        height, width = pixels.size(media)
        return height // pixels.side, width // pixels.side

    def _layout(self, media: FrameBatch, rows: int, columns: int) -> Layout:
        """The chunk as the stock prompt has it, nothing pruned; on the CPU."""
        start, end, pad = (self.prompt.id(token) for token in (VISION_START, VISION_END, PADS[media.kind]))
        return lay_out(self._markers(media), start, end, pad, rows, columns)

    def _markers(self, media: FrameBatch) -> list[list[int]]:
        """Ids in front of each view's vision tokens: the seconds in the middle of a temporal group, none of an image.

        A group that lacks a frame has its last one twice.
        """
        if media.kind == "image":
            return [[]]
        group, pts = self.info.group, media.pts_seconds
        times = [(pts[at] + pts[min(at + group, len(pts)) - 1]) / 2 for at in range(0, len(pts), group)]
        return [self.prompt.behind(VISION_END, f"<{seconds:.1f} seconds>") for seconds in times]

    def _register_sum(self, output: TowerOutput) -> Tensor:
        """float32 [1 + levels, C]: the views' registers, each taken four times to pass the mergers, summed."""
        if output.register is None:
            width = self.decoder.model.embed_tokens.embedding_dim
            return torch.zeros(1 + self.decoder.levels, width, device=output.scores.device)

        def merged(register_VC: Tensor, level: int | None = None) -> Tensor:
            group_VMC = register_VC[:, None].expand(-1, self.tower.merge**2, -1)
            return self.tower.merged(group_VMC, level).float().sum(dim=0)

        planes = [merged(register, level) for level, register in enumerate(output.register_planes)]
        return torch.stack([merged(output.register), *planes])


class Qwen3VLMoe(Qwen3VL):
    """The same with a mixture of experts in its decoder layers; all that is opened here is alike."""

    stock: ClassVar[type[PreTrainedModel]] = Qwen3VLMoeForConditionalGeneration
