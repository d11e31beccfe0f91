"""The training forward over a stock decoder's own weights.

It differs from the stock forward in what it can leave out: pruned visual tokens, other conversations' text, and
the lower half of the attention matrix that no one may see. Unpruned, it gives the stock logits.

Shapes: B clips, P prefix tokens, V visual ones among them, T text tokens, S = P + T, A position axes, D width, H heads,
K head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.training.packing import REGISTER, PackedText
from pipelines.training.student import Prefix, Student, gather, narrow

LOOK_LAYER, LOOK_HEAD = 2, 0
POINT_LAYER, OPENING_HEAD, CLOSING_HEAD = 4, 1, 2
"""Where attention is taught: to the objects that the text names, then to where each is first and last on screen."""
TAP_LAYERS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class LateDrop:
    """Visual tokens that go on past `layer` decoder layers (DeepStack's or more): indices [B, V'] into what entered."""

    layer: int
    index: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One head's masked attention logits of the text rows [B, T, S], and the columns of the visual tokens [B, V]."""

    logits: Tensor
    visual: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """text: hidden states of the text after the last norm [B, T, D]

    visual: hidden states of the visual tokens after TAP_LAYERS layers [B, V, D], those that were not dropped by then
    look, opening, closing: what the taught heads attend to
    """

    text: Tensor
    visual: Tensor
    look: Look
    opening: Look
    closing: Look


def run(student: Student, prefix: Prefix, text: PackedText, late: LateDrop | None = None) -> Output:
    """The language model, of more than POINT_LAYER layers, over visual prefix and packed text."""
    llm, visual, length = student.llm, prefix.visual, prefix.hidden.shape[1]
    hidden = torch.cat([prefix.hidden, _embedded(llm, prefix, text)], dim=1)
    planes = [_with_registers(plane, prefix, text, level) for level, plane in enumerate(prefix.planes, start=1)]
    cos, sin = _angles(llm, hidden, prefix.positions, text.positions)
    looks = {}
    for number, layer in enumerate(llm.layers):
        if late is not None and number == late.layer:
            keep_BP, visual = narrow(visual, late.index, length)
            keep_BS = F.pad(keep_BP, (0, text.ids.shape[1]))
            keep_BS[:, keep_BP.shape[1] :] = torch.arange(length, length + text.ids.shape[1])
            hidden, cos, sin = (gather(values, keep_BS) for values in (hidden, cos, sin))
            length = keep_BP.shape[1]
        mask = visible_mask(text.allowed, length)
        if number == TAP_LAYERS:
            tapped = gather(hidden, visual)
        for taught, head in ((LOOK_LAYER, LOOK_HEAD), (POINT_LAYER, OPENING_HEAD), (POINT_LAYER, CLOSING_HEAD)):
            if number == taught:
                logits = head_logits(layer, head, hidden, cos, sin, length)
                looks[taught, head] = Look(logits=logits + mask[:, 0], visual=visual)
        last = number == len(llm.layers) - 1
        hidden = decoder_layer(layer, hidden, cos, sin, mask, length, text_only=last)
        if number < len(planes):
            hidden = hidden + planes[number]
    return Output(
        text=llm.norm(hidden),
        visual=tapped,
        look=looks[LOOK_LAYER, LOOK_HEAD],
        opening=looks[POINT_LAYER, OPENING_HEAD],
        closing=looks[POINT_LAYER, CLOSING_HEAD],
    )


def visible_mask(allowed_BTT: Tensor, length: int) -> Tensor:
    """The text rows' mask over prefix and text, additive [B, 1, T, S]."""
    mask = torch.zeros(allowed_BTT.shape).masked_fill_(~allowed_BTT, float("-inf"))
    return F.pad(mask, (length, 0))[:, None]


def decoder_layer(
    layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, length: int, text_only: bool
) -> Tensor:
    """One stock layer; prefix rows attend causally to the prefix alone, text rows by the mask.

    text_only: give the text rows alone, [B, T, D]: after the last layer no one reads the others
    """
    attention, mlp = layer.self_attn, layer.mlp
    x_BSD = _rms_norm(hidden, layer.input_layernorm)
    qkv = _fused(x_BSD, attention.q_proj, attention.k_proj, attention.v_proj)
    q_BSHK, k_BSHK, v_BSHK = (x.view(*x.shape[:2], -1, attention.head_dim) for x in qkv)
    q_BHSK, k_BHSK = (
        _rotate(_normed(attention, name, x).transpose(1, 2), cos[:, None], sin[:, None])
        for name, x in (("q_norm", q_BSHK), ("k_norm", k_BSHK))
    )
    v_BHSK = v_BSHK.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q_BHSK[:, :, length:], k_BHSK, v_BHSK, attn_mask=mask)
    if text_only:
        hidden = hidden[:, length:]
    else:
        q, k, v = (part[:, :, :length] for part in (q_BHSK, k_BHSK, v_BHSK))
        mixed = torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True), mixed], dim=2)
    hidden = hidden + F.linear(mixed.transpose(1, 2).flatten(2), attention.o_proj.weight)
    x_BSD = _rms_norm(hidden, layer.post_attention_layernorm)
    gate, up = _fused(x_BSD, mlp.gate_proj, mlp.up_proj)
    return hidden + F.linear(F.silu(gate) * up, mlp.down_proj.weight)


def head_logits(layer: Any, head: int, hidden: Tensor, cos: Tensor, sin: Tensor, length: int) -> Tensor:
    """One head's scaled products of the text's queries with all keys, unmasked, [B, T, S]."""
    attention = layer.self_attn
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    x_BSD = _rms_norm(hidden, layer.input_layernorm)
    q_BTK = _normed(attention, "q_norm", F.linear(x_BSD[:, length:], attention.q_proj.weight[rows]))
    k_BSK = _normed(attention, "k_norm", F.linear(x_BSD, attention.k_proj.weight[rows]))
    q_BTK, k_BSK = _rotate(q_BTK, cos[:, length:], sin[:, length:]), _rotate(k_BSK, cos, sin)
    logits: Tensor = q_BTK @ k_BSK.mT / attention.head_dim**0.5
    return logits


def _embedded(llm: Any, prefix: Prefix, text: PackedText) -> Tensor:
    """The text's embeddings [B, T, D], the mean register where one goes."""
    embedded: Tensor = llm.embed_tokens(text.ids.clamp(min=0))
    if prefix.register is None:
        return embedded
    return torch.where((text.ids == REGISTER)[..., None], prefix.register[:, :1], embedded)


def _with_registers(plane_BPD: Tensor, prefix: Prefix, text: PackedText, level: int) -> Tensor:
    """A DeepStack plane over prefix and text [B, S, D]: zero on text but for the registers."""
    if prefix.register is None:
        return F.pad(plane_BPD, (0, 0, 0, text.ids.shape[1]))
    register = (text.ids == REGISTER)[..., None] * prefix.register[:, level, None]
    return torch.cat([plane_BPD, register], dim=1)


def _angles(llm: Any, hidden: Tensor, prefix_ABP: Tensor, text_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the stock rotation [B, S, K]; on text all axes agree."""
    axes = len(prefix_ABP)
    positions = torch.cat([prefix_ABP, text_BT.expand(axes, -1, -1)], dim=2)
    cos, sin = llm.rotary_emb(hidden, positions if axes > 1 else positions[0])
    return cos, sin


def _normed(attention: Any, name: str, x: Tensor) -> Tensor:
    """Queries or keys after the per-head norm, in families that have one."""
    return _rms_norm(x, getattr(attention, name)) if hasattr(attention, name) else x


def _fused(x: Tensor, *projections: nn.Linear) -> tuple[Tensor, ...]:
    """Several projections of one input as one product: narrow products waste half of the CPU."""
    weights = [projection.weight for projection in projections]
    return torch.split(F.linear(x, torch.cat(weights)), [weight.shape[0] for weight in weights], dim=-1)


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin
