"""What Video-LLaVA, LLaVA-1.5 and LLaVA-NeXT share: CLIP's tower, a projector, a Llama-style decoder.

They differ in how pixels are made, and in the sequence that the stock model makes of the tower's tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, CLIPVisionModel, PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from occam.calibration import Calibration
from occam.config import RegisterMode, RegisterPlacement
from occam.errors import InvalidInput
from occam.models import preprocess
from occam.models.base import ModelInfo, TowerOutput
from occam.models.batches import Batches
from occam.models.checkpoint import config_digest
from occam.models.clip_tower import ClipTower
from occam.models.compact import Layout, compact
from occam.models.decoder import Decoder
from occam.models.prompt import Format, Prompt
from occam.registers import Neuron, TowerTrace
from occam.tensors import MediaTokens
from occam.transfer import to_device, upload
from occam.types import FrameBatch, Framing, MediaKind

Pixels = Callable[[NDArray[np.uint8]], Tensor]
"""uint8 [T, H, W, 3] to the float32 [F, 3, edge, edge] that the tower takes, on the CPU."""


@dataclass(frozen=True)
class LlavaFamily(ABC):
    """The adapter; see `VideoLM` for what each method promises.

    media: what the family takes; frames: sampled of a video by default
    """

    media: ClassVar[tuple[MediaKind, ...]] = ("image",)
    frames: ClassVar[int] = 1

    info: ModelInfo
    decoder: Decoder
    prompt: Prompt
    tower: ClipTower
    model: PreTrainedModel
    pixels: Pixels
    batches: Batches = field(default_factory=Batches)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        vision: CLIPVisionModel,
        pixels: Pixels,
        *,
        name: str,
        directory: Path,
        digest: str,
        placeholder: str,
        template: Format,
    ) -> Self:
        """The adapter of a loaded stock model; InvalidInput where its shape is not supported."""
        text = model.config.text_config
        prompt = Prompt(AutoTokenizer.from_pretrained(directory), template, placeholder)
        if prompt.tokenizer.eos_token != template.end:
            raise InvalidInput(
                f"The model ends a turn by {prompt.tokenizer.eos_token}, the template for {text.model_type!r} decoders "
                f"by {template.end}: its prompt template is not supported.",
                "model",
            )
        # Up to its length a sliding window hides nothing, so that is how long a conversation may be.
        window = getattr(text, "sliding_window", None) or text.max_position_embeddings
        info = ModelInfo(
            name=name,
            family=model.config.model_type,
            digest=digest,
            config_digest=config_digest(directory),
            text_digest=prompt.digest(directory),
            preprocessing=preprocess.VERSION,
            frames=cls.frames,
            media=cls.media,
            layers=text.num_hidden_layers,
            cut=round(text.num_hidden_layers / 3),
            max_positions=min(text.max_position_embeddings, window),
            framing=pixels.framing if isinstance(pixels, preprocess.ClipPixels) else Framing(),
        )
        decoder = Decoder(model.model.language_model, model.lm_head, apply_rotary_pos_emb)
        prompt = prompt.stopping_at(model.generation_config.eos_token_id)
        return cls(info, decoder, prompt, ClipTower.of(vision, model.config), model, pixels)

    @abstractmethod
    def layout(self, media: FrameBatch, side: int) -> Layout:
        """The stock sequence of a chunk whose tower passes have side * side patches each."""

    def embed(self, tokens: Tensor, source: Tensor) -> Tensor:
        """What the language model gets [K, C] of the tower's `tokens` at `source` (see `Layout`)."""
        projected: Tensor = self.model.model.multi_modal_projector(tokens[source])
        return projected

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
        """Tower features [F, 1 + P, C] and the CLS token's scores, for every pass of each chunk."""
        pixels = [self._preprocess(media) for media in chunks]
        tower = self.tower

        def encode(pixels: Tensor) -> TowerOutput:
            return tower.encode(pixels, register, placement)

        return self.batches(chunks[0].kind, encode, pixels, (tower, register, placement))

    def grid(self, media: FrameBatch) -> tuple[int, int]:
        """The same for all media."""
        del media
        return self.tower.side, self.tower.side

    def compose(self, media: FrameBatch, output: TowerOutput, keep_VP: Tensor, keep_cls: bool) -> MediaTokens:
        """The tokens of a chunk at their stock positions, and what closes it; CLS tokens iff `keep_cls` and stock."""
        layout = self.layout(media, self.tower.side)
        kept = compact(layout, keep_VP, keep_cls)
        visual = self.embed(output.features.flatten(0, 1), kept.source)
        end = upload(self.prompt.media_end_ids, visual.device)
        no_view, length = torch.full_like(end, -1), len(layout.source)
        return MediaTokens(
            ids=torch.cat([torch.full_like(kept.offsets, self.prompt.placeholder_id), end]),
            embeddings=torch.cat([visual, self.decoder.embed(end)]),
            positions=torch.cat([kept.offsets, length + torch.arange(len(end), device=end.device)])[None],
            view=torch.cat([kept.view, no_view]),
            patch=torch.cat([kept.patch, no_view]),
            length=length + len(end),
            encoded=int((layout.patch >= 0).sum()),
            pts_seconds=torch.from_numpy(media.pts_seconds.copy())[layout.frame],
            indices=torch.from_numpy(media.indices.copy())[layout.frame],
            grid=layout.grid,
            register_sum=self._register_sum(output),
            register_count=0 if output.register is None else len(output.register),
        )

    def shown(self, media: FrameBatch) -> Tensor:
        """The patches of every pass that the stock sequence has."""
        return self.layout(media, self.tower.side).shown

    def others(self, media: FrameBatch, keep_cls: bool) -> int:
        """CLS tokens iff they stay, newlines, and what closes the chunk."""
        layout = self.layout(media, self.tower.side)
        others = (layout.patch < 0) & (keep_cls | (layout.source < 0))
        return int(others.sum()) + len(self.prompt.media_end_ids)

    def trace(self, media: FrameBatch, neurons: tuple[Neuron, ...] | None) -> TowerTrace:
        """The tower's passes over a chunk, watched."""
        return self.tower.trace(self._preprocess(media), neurons)

    def _preprocess(self, media: FrameBatch) -> Tensor:
        """Pixels [F, 3, edge, edge]; resized on the CPU whatever the device, since the float path differs."""
        return to_device(self.pixels(media.frames), self.model.device, self.model.dtype)

    def _register_sum(self, output: TowerOutput) -> Tensor:
        """float32 [1, C]: the passes' registers, projected and summed."""
        if output.register is None:
            width = self.decoder.model.embed_tokens.embedding_dim
            return torch.zeros(1, width, device=output.scores.device)
        registers: Tensor = self.model.model.multi_modal_projector(output.register)
        return registers.float().sum(dim=0, keepdim=True)
