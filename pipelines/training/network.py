"""The training forward over the stock model's own weights.

It differs from the stock forward in what it can leave out: pruned visual tokens, other conversations' text, and
the lower half of the attention matrix that no one may see. Unpruned, it gives the stock logits.

Shapes: B clips, F frames, N tokens a frame, P prefix tokens, T text tokens, S = P + T, D width, H heads, K head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.training.model import normalize
from pipelines.training.packing import REGISTER, PackedText
from pipelines.training.tokenizer import USER, encode

LOOK_LAYER, TAP_LAYERS = 2, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """Visual tokens of a batch: hidden [B, V, D], their positions [B, V], and the mean register [B, D]."""

    hidden: torch.Tensor
    positions: torch.Tensor
    register: torch.Tensor | None

    def select(self, index_BV: torch.Tensor) -> "Prefix":
        """Only the tokens of these indices, in their order; positions stay what they were."""
        return Prefix(
            hidden=_gather(self.hidden, index_BV),
            positions=self.positions.gather(1, index_BV),
            register=self.register,
        )


def run_tower(model: VideoLlava, frames: torch.Tensor, zero_token: bool) -> torch.Tensor:
    """Features of uint8 frames [M, 3, 96, 96] at the configured layer, [M, N (+ 1), D].

    The zero token is appended after `pre_layrnorm`, without a position embedding.
    """
    tower = model.model.video_tower
    hidden = tower.pre_layrnorm(tower.embeddings(normalize(frames)))
    if zero_token:
        hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
    for layer in tower.encoder.layers[: model.config.vision_feature_layer + 1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def project(model: VideoLlava, features: torch.Tensor, clips: int, zero_token: bool) -> Prefix:
    """Features of all clips' frames as the visual prefix, the register being the mean over each clip's frames."""
    projected = model.model.multi_modal_projector(features)
    projected = projected.unflatten(0, (clips, -1))
    register = projected[:, :, -1].mean(dim=1) if zero_token else None
    hidden = (projected[:, :, :-1] if zero_token else projected).flatten(1, 2)
    positions = torch.arange(1, 1 + hidden.shape[1]).expand(clips, -1)
    return Prefix(hidden=hidden, positions=positions, register=register)


@dataclass(frozen=True, kw_only=True, eq=False)
class LateDrop:
    """Visual tokens that go on past `layer` decoder layers: indices [B, V'] into the prefix that entered."""

    layer: int
    index: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LlmOutput:
    """text: hidden states of the text after the last norm [B, T, D]

    visual: hidden states of the visual tokens after TAP_LAYERS layers [B, V, D], those that were not dropped by then
    looks: attention logits [B, T, S] of head 0 in the layer that stage II scores with
    """

    text: torch.Tensor
    visual: torch.Tensor
    looks: torch.Tensor


def run_llm(model: VideoLlava, prefix: Prefix, text: PackedText, late: LateDrop | None = None) -> LlmOutput:
    """The language model over visual prefix and packed text."""
    llm = model.model.language_model
    opening = llm.embed_tokens(torch.tensor(encode(USER))).expand(prefix.hidden.shape[0], -1, -1)
    embedded = llm.embed_tokens(text.ids.clamp(min=0))
    if prefix.register is not None:
        embedded = torch.where((text.ids == REGISTER)[..., None], prefix.register[:, None], embedded)
    hidden = torch.cat([opening, prefix.hidden, embedded], dim=1)
    positions = torch.cat([torch.zeros_like(prefix.positions[:, :1]), prefix.positions, text.positions], dim=1)
    cos, sin = llm.rotary_emb(hidden, positions)
    length = prefix.hidden.shape[1] + 1
    for number, layer in enumerate(llm.layers):
        if late is not None and number == late.layer:
            keep = _with_text(late.index, length, text.ids.shape[1])
            hidden, cos, sin = (_gather(values, keep) for values in (hidden, cos, sin))
            length = late.index.shape[1] + 1
        mask = visible_mask(text.allowed, length)
        if number == LOOK_LAYER:
            looks = head_logits(layer, 0, hidden, cos, sin, length) + mask[:, 0]
        if number == TAP_LAYERS:
            visual = hidden[:, 1:length]
        last = number == len(llm.layers) - 1
        hidden = decoder_layer(layer, hidden, cos, sin, mask, length, text_only=last)
    return LlmOutput(text=llm.norm(hidden), visual=visual, looks=looks)


def visible_mask(allowed_BTT: torch.Tensor, length: int) -> torch.Tensor:
    """The text rows' mask over prefix and text, additive [B, 1, T, S]."""
    mask = torch.zeros(allowed_BTT.shape, dtype=torch.float32).masked_fill_(~allowed_BTT, float("-inf"))
    return F.pad(mask, (length, 0))[:, None]


def decoder_layer(
    layer: nn.Module,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor,
    length: int,
    text_only: bool,
) -> torch.Tensor:
    """One stock Llama layer; prefix rows attend causally to the prefix alone, text rows by the mask.

    text_only: give the text rows alone, [B, T, D]: after the last layer no one reads the others
    """
    attention, mlp = layer.self_attn, layer.mlp
    x_BSD = _rms_norm(hidden, layer.input_layernorm)
    qkv = _fused(x_BSD, attention.q_proj, attention.k_proj, attention.v_proj)
    q_BHSK, k_BHSK, v_BHSK = (x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in qkv)
    q_BHSK, k_BHSK = (_rotate(x, cos[:, None], sin[:, None]) for x in (q_BHSK, k_BHSK))
    mixed = F.scaled_dot_product_attention(q_BHSK[:, :, length:], k_BHSK, v_BHSK, attn_mask=mask)
    if text_only:
        hidden = hidden[:, length:]
    else:
        prefix = (part[:, :, :length] for part in (q_BHSK, k_BHSK, v_BHSK))
        mixed = torch.cat([F.scaled_dot_product_attention(*prefix, is_causal=True), mixed], dim=2)
    hidden = hidden + F.linear(mixed.transpose(1, 2).flatten(2), attention.o_proj.weight)
    x_BSD = _rms_norm(hidden, layer.post_attention_layernorm)
    gate, up = _fused(x_BSD, mlp.gate_proj, mlp.up_proj)
    return hidden + F.linear(F.silu(gate) * up, mlp.down_proj.weight)


def head_logits(
    layer: nn.Module, head: int, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, length: int
) -> torch.Tensor:
    """One head's scaled products of the text's queries with all keys, unmasked, [B, T, S]."""
    attention = layer.self_attn
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    x_BSD = _rms_norm(hidden, layer.input_layernorm)
    q_BTK = _rotate(F.linear(x_BSD[:, length:], attention.q_proj.weight[rows]), cos[:, length:], sin[:, length:])
    k_BSK = _rotate(F.linear(x_BSD, attention.k_proj.weight[rows]), cos, sin)
    return q_BTK @ k_BSK.mT * attention.scaling


def _fused(x: torch.Tensor, *projections: nn.Module) -> tuple[torch.Tensor, ...]:
    """Several projections of one input as one product: narrow products waste half of the CPU."""
    weights = [projection.weight for projection in projections]
    return F.linear(x, torch.cat(weights)).split([weight.shape[0] for weight in weights], dim=-1)


def _rms_norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


def _gather(values_BVD: torch.Tensor, index_BV: torch.Tensor) -> torch.Tensor:
    return values_BVD.gather(1, index_BV[..., None].expand(-1, -1, values_BVD.shape[-1]))


def _with_text(index_BV: torch.Tensor, length: int, text: int) -> torch.Tensor:
    """Indices into the whole sequence: the opening, the kept visual tokens, all text."""
    rows = index_BV.shape[0]
    return torch.cat(
        [torch.zeros(rows, 1, dtype=torch.long), index_BV + 1, torch.arange(length, length + text).expand(rows, -1)],
        dim=1,
    )
