"""Video-LLaVA (arXiv 2311.10122) over the stock `transformers` classes, pruned and cached by the engine.

Stock layout of a first turn: `USER: <video>\\n{question} ASSISTANT:`, the placeholder standing for T x (1 + P) tokens,
CLS first in every frame. The tower is CLIP's, its features those of block -2.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from occam.calibration import Calibration
from occam.config import EngineConfig, RegisterMode, RegisterPlacement
from occam.models import preprocess
from occam.models.base import ModelInfo, TowerOutput
from occam.models.checkpoint import config_digest, load_stock
from occam.models.clip_tower import ClipTower
from occam.models.compact import compact_frames
from occam.models.decoder import Decoder
from occam.models.prompt import VICUNA, Prompt
from occam.registers import Neuron, TowerTrace
from occam.tensors import MediaTokens
from occam.types import FrameBatch

FRAMES = 8


@dataclass(frozen=True)
class VideoLlava:
    """The adapter; see `VideoLM` for what each method promises."""

    info: ModelInfo
    decoder: Decoder
    prompt: Prompt
    tower: ClipTower
    model: VideoLlavaForConditionalGeneration
    pixels: preprocess.ClipPixels

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> "VideoLlava":
        """Load a checkpoint directory in the stock layout; InvalidInput where its shape is not supported."""
        model = load_stock(VideoLlavaForConditionalGeneration, directory, config)
        tower = ClipTower.of(model.model.video_tower, model.config)
        text = model.config.text_config
        prompt = Prompt(AutoTokenizer.from_pretrained(directory), VICUNA, "<video>")
        info = ModelInfo(
            name=name,
            family="video_llava",
            digest=digest,
            config_digest=config_digest(directory),
            text_digest=prompt.digest(directory),
            preprocessing=preprocess.VERSION,
            frames=FRAMES,
            media=("video",),
            layers=text.num_hidden_layers,
            cut=round(text.num_hidden_layers / 3),
            max_positions=text.max_position_embeddings,
        )
        decoder = Decoder(model.model.language_model, model.lm_head, apply_rotary_pos_emb)
        return cls(info, decoder, prompt, tower, model, preprocess.ClipPixels.load(directory))

    def calibrated(self, calibration: Calibration) -> "VideoLlava":
        """The same model with this calibration, its register neurons installed."""
        return replace(
            self,
            info=replace(self.info, calibration=calibration),
            tower=self.tower.with_neurons(calibration.neurons),
        )

    def encode(self, media: FrameBatch, register: RegisterMode | None, placement: RegisterPlacement) -> TowerOutput:
        """Tower features [T, 1 + P, C] and the CLS token's scores, per frame."""
        return self.tower.encode(self._preprocess(media), register, placement)

    def compose(self, media: FrameBatch, output: TowerOutput, keep_VP: Tensor, keep_cls: bool) -> MediaTokens:
        """The frames' tokens at their stock positions; CLS tokens go on iff `keep_cls`, as the stock model has them."""
        project = self.model.model.multi_modal_projector
        kept = compact_frames(output.features, keep_VP, keep_cls)
        embeddings = project(kept.features)
        frames, side = len(media), round(output.scores.shape[1] ** 0.5)
        if output.register is None:
            register_sum, count = torch.zeros(embeddings.shape[1], device=embeddings.device), 0
        else:
            register_sum, count = project(output.register).float().sum(dim=0), frames
        return MediaTokens(
            ids=torch.full_like(kept.offsets, self.prompt.placeholder_id),
            embeddings=embeddings,
            positions=kept.offsets[None],
            view=kept.view,
            patch=kept.patch,
            length=frames * output.features.shape[1],
            encoded=output.scores.numel(),
            pts_seconds=torch.from_numpy(media.pts_seconds.copy()),
            indices=torch.from_numpy(media.indices.copy()),
            grid=torch.tensor([[side, side]]).expand(frames, 2),
            register_sum=register_sum[None],
            register_count=count,
        )

    def trace(self, media: FrameBatch, neurons: tuple[Neuron, ...] | None) -> TowerTrace:
        """One pass of the tower over frames, watched."""
        return self.tower.trace(self._preprocess(media), neurons)

    def _preprocess(self, media: FrameBatch) -> Tensor:
        """Pixels [T, 3, H, W]; resized on the CPU whatever the device, since the float path differs."""
        return self.pixels(media.frames).to(self.model.device, self.model.dtype)
