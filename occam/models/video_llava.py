"""Video-LLaVA (arXiv 2311.10122) over the stock `transformers` classes, pruned and cached by the engine.

Stock layout of a first turn: `USER: <video>\\n{question} ASSISTANT:`, the placeholder standing for T x (1 + P) tokens,
CLS first in every frame. The tower is CLIP's, its features those of block -2.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, VideoLlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from occam.calibration import Calibration
from occam.config import EngineConfig, RegisterMode, RegisterPlacement
from occam.errors import InvalidInput
from occam.models import preprocess
from occam.models.base import ModelInfo
from occam.models.checkpoint import text_digest
from occam.models.clip_tower import ClipTower, TowerOutput
from occam.models.decoder import Decoder
from occam.types import FrameBatch

FRAMES = 8
USER, ASSISTANT = "USER: ", " ASSISTANT:"


@dataclass(frozen=True)
class VideoLlava:
    """The adapter; see `VideoLM` for what each method promises."""

    info: ModelInfo
    decoder: Decoder
    tower: ClipTower
    model: VideoLlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    pixels: preprocess.ClipPixels

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> "VideoLlava":
        """Load a checkpoint directory in the stock layout; InvalidInput where its shape is not supported."""
        model = VideoLlavaForConditionalGeneration.from_pretrained(
            directory, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        )
        model.eval().requires_grad_(False).to(config.device)
        if not isinstance(model.config.vision_feature_layer, int):
            raise InvalidInput("Checkpoints that mix several vision feature layers are not supported.", "model")
        tokenizer = AutoTokenizer.from_pretrained(directory)
        tower = ClipTower(model.model.video_tower, model.config.vision_feature_layer)
        text = model.config.text_config
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        info = ModelInfo(
            name=name,
            family="video_llava",
            digest=digest,
            text_digest=text_digest(directory, USER + ASSISTANT),
            preprocessing=preprocess.VERSION,
            frames=FRAMES,
            grid=(side, side),
            layers=text.num_hidden_layers,
            max_positions=text.max_position_embeddings,
        )
        decoder = Decoder(model.model.language_model, model.lm_head, apply_rotary_pos_emb)
        return cls(info, decoder, tower, model, tokenizer, preprocess.ClipPixels.load(directory))

    def calibrated(self, calibration: Calibration) -> "VideoLlava":
        """The same model with this calibration, its register neurons installed."""
        tower = ClipTower(self.tower.vision, self.model.config.vision_feature_layer, calibration.neurons)
        return replace(self, info=replace(self.info, calibration=calibration), tower=tower)

    def preprocess(self, frames: FrameBatch) -> Tensor:
        """Pixels [T, 3, H, W]; resized on the CPU whatever the device, since the float path differs."""
        return self.pixels(frames.frames).to(self.model.device, self.model.dtype)

    def encode(self, pixels: Tensor, register: RegisterMode | None, placement: RegisterPlacement) -> TowerOutput:
        """Tower features [T, 1 + P, C] and the CLS token's scores."""
        return self.tower.encode(pixels, register, placement)

    def project(self, features: Tensor) -> Tensor:
        """Tower features into the language model's space."""
        projected: Tensor = self.model.model.multi_modal_projector(features)
        return projected

    @property
    def placeholder_id(self) -> int:
        """The id of `<video>`."""
        return int(self.model.config.video_token_id)

    @property
    def end_id(self) -> int:
        """The id of `</s>`."""
        return int(self.tokenizer.eos_token_id)

    def prefix_ids(self, system: str) -> list[int]:
        """BOS where the tokenizer adds one, the system text, and the user's role marker."""
        self._refuse_control_tokens(system, "system")
        opening = f"{system} {USER}" if system else USER
        ids: list[int] = self.tokenizer.encode(opening + self.tokenizer.convert_ids_to_tokens(self.placeholder_id))
        return ids[: ids.index(self.placeholder_id)]

    def turn_ids(self, question: str, first: bool) -> tuple[list[int], tuple[int, int]]:
        """Everything behind the media or behind the last turn's end, and the span of the question in it."""
        self._refuse_control_tokens(question, "question")
        anchor_id = self.placeholder_id if first else self.end_id
        before = "\n" if first else USER
        anchor = self.tokenizer.convert_ids_to_tokens(anchor_id)

        def behind_anchor(text: str) -> list[int]:
            ids: list[int] = self.tokenizer.encode(anchor + text, add_special_tokens=False)
            return ids[ids.index(anchor_id) + 1 :]

        ids = behind_anchor(before + question + ASSISTANT)
        start = _common_prefix(ids, behind_anchor(before))
        stop = len(ids) - _common_prefix(ids[::-1], self.tokenizer.encode(ASSISTANT, add_special_tokens=False)[::-1])
        return ids, (min(start, stop), stop)

    def _refuse_control_tokens(self, text: str, param: str) -> None:
        """A placeholder or an end of turn inside a text would be taken for a real one."""
        for token in self.tokenizer.convert_ids_to_tokens([self.placeholder_id, self.end_id]):
            if token in text:
                raise InvalidInput(f"The {param} contains {token}, which is the model's own control token.", param)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer's text."""
        prompt = self.tokenizer.encode(ASSISTANT, add_special_tokens=False)
        return list(self.tokenizer.encode(f"{ASSISTANT} {answer}", add_special_tokens=False)[len(prompt) :])

    @property
    def frame_size(self) -> int:
        """Edge of the centre crop."""
        return self.pixels.crop

    def text(self, ids: list[int]) -> str:
        """Plain text of generated ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _common_prefix(left: list[int], right: list[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
