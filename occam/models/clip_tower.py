"""CLIP's vision tower with the test-time register, over the stock `transformers` modules.

Legend: F frames, N tokens of a frame (CLS, P patches, and the register last where there is one), C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPVisionModel, PretrainedConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from occam.config import RegisterMode, RegisterPlacement
from occam.errors import InvalidInput
from occam.models.attention_rows import attention_rows
from occam.models.base import TowerOutput
from occam.registers import Neuron, TowerTrace, shift_to_register, units_of


class ClipTower:
    """Runs the blocks up to the feature layer; owns the block loop, so that the register can enter and be fed.

    feature_layer: index into the stock `hidden_states` (-2 in the LLaVA family)
    """

    def __init__(self, vision: CLIPVisionModel, feature_layer: int, neurons: Sequence[Neuron] = ()) -> None:
        self.vision = vision
        self.feature_layer = feature_layer
        layers = vision.encoder.layers
        count = feature_layer if feature_layer >= 0 else len(layers) + 1 + feature_layer
        self.blocks = list(layers)[:count]
        self.neurons = tuple(neurons)
        self._units = units_of(self.neurons, count, vision.device)

    @classmethod
    def of(cls, vision: CLIPVisionModel, config: PretrainedConfig) -> "ClipTower":
        """The tower of a LLaVA-style model; InvalidInput where it is not CLIP's, or mixes several feature layers."""
        if config.vision_config.model_type != "clip_vision_model":
            raise InvalidInput(f"Vision towers of type {config.vision_config.model_type!r} are not supported.", "model")
        if not isinstance(config.vision_feature_layer, int):
            raise InvalidInput("Checkpoints that mix several vision feature layers are not supported.", "model")
        return cls(vision, config.vision_feature_layer)

    @property
    def side(self) -> int:
        """Patches along a pass."""
        config = self.vision.config
        return int(config.image_size) // int(config.patch_size)

    def with_neurons(self, neurons: Sequence[Neuron]) -> "ClipTower":
        """The same tower with these register neurons."""
        return ClipTower(self.vision, self.feature_layer, neurons)

    def encode(
        self, pixels: Tensor, register: RegisterMode | None, placement: RegisterPlacement = "after_norm"
    ) -> TowerOutput:
        """Features [F, 1 + P, C] (CLS first), register [F, C], CLS scores and keys of `pixels` [F, 3, H, W].

        Features are those of the feature layer, scores the CLS row of the last block that ran, as are the keys.
        """
        with_register = register in ("neurons", "zero_token")
        fed = register == "neurons"
        hidden = self._embed(pixels, placement if with_register else None)
        for block, units in zip(self.blocks, self._units, strict=True):
            scored = hidden
            hidden, _ = _run_block(block, hidden, units if fed else None)
        row, keys = self._cls_row(self.blocks[-1], scored)
        if not with_register:
            return TowerOutput(
                features=hidden, register=None, scores=row[:, 1:], register_scores=None, keys=keys[:, 1:]
            )
        return TowerOutput(
            features=hidden[:, :-1],
            register=hidden[:, -1],
            scores=row[:, 1:-1],
            register_scores=row[:, -1],
            keys=keys[:, 1:-1],
        )

    def trace(self, pixels: Tensor, neurons: Sequence[Neuron] | None) -> TowerTrace:
        """Run with a trial set of register neurons and report norms, activations and attention (see `registers`)."""
        hidden = self._embed(pixels, None if neurons is None else "after_norm")
        end = hidden.shape[1] if neurons is None else -1
        norms, activations = [], []
        for block, units in zip(self.blocks, units_of(neurons or (), len(self.blocks), pixels.device), strict=True):
            scored = hidden
            hidden, mlp = _run_block(block, hidden, units)
            norms.append(hidden[:, 1:end].float().norm(dim=-1))
            activations.append(mlp[:, 1:end])
        row, _ = self._cls_row(self.blocks[-1], scored)
        share = row.new_zeros(row.shape[0]) if neurons is None else row[:, -1]
        return TowerTrace(norms=norms, activations=activations, row=row[:, 1:end], register_share=share)

    def _embed(self, pixels: Tensor, placement: RegisterPlacement | None) -> Tensor:
        """Patch and CLS embeddings behind the first norm, a zero token appended where one is placed."""
        hidden = self.vision.embeddings(pixels)
        zero = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2])
        if placement == "before_norm":
            hidden = torch.cat([hidden, zero], dim=1)
        hidden = self.vision.pre_layrnorm(hidden)
        return torch.cat([hidden, zero], dim=1) if placement == "after_norm" else hidden

    @staticmethod
    def _cls_row(block: CLIPEncoderLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The CLS token's attention over all tokens at one block, heads averaged, float32 [F, N]; keys [F, N, H, D]."""
        attention = block.self_attn
        normed = block.layer_norm1(hidden)
        q_BHTD = attention.q_proj(normed[:, :1]).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        k_BHND = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        return attention_rows(q_BHTD, k_BHND, attention.scale)[:, 0], k_BHND.transpose(1, 2)


def _run_block(block: CLIPEncoderLayer, hidden: Tensor, units: Tensor | None) -> tuple[Tensor, Tensor]:
    """One encoder block, opened at the MLP's activations, which feed the register's `units` [K]; output and those."""
    hidden = hidden + block.self_attn(block.layer_norm1(hidden), attention_mask=None)[0]
    mlp = block.mlp.activation_fn(block.mlp.fc1(block.layer_norm2(hidden)))
    if units is not None and len(units):
        mlp = shift_to_register(mlp, units, first=1)
    return hidden + block.mlp.fc2(mlp), mlp
