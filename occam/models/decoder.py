"""The language model's layer loop over stock Llama-style `transformers` layers: run any range, look into any layer.

Legend: A axes of positions, B batch, T tokens of this pass, N tokens in the cache with them, C channels, H heads,
K key-value heads, D head width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel

from occam.models.attention_rows import attention_rows

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Decoder:
    """Owns the layer loop of one language model.

    model: the stock decoder (`layers`, `norm`, `rotary_emb`, `embed_tokens`); head: its output projection
    rotate: the family's `apply_rotary_pos_emb(q, k, cos, sin)`
    axes: 1 for 1-D rotary positions, 3 for M-RoPE; levels: DeepStack planes, level i added behind layer i
    """

    def __init__(self, model: LlamaModel, head: nn.Module, rotate: Rotate, axes: int = 1, levels: int = 0) -> None:
        self.model = model
        self.head = head
        self.rotate = rotate
        self.axes = axes
        self.levels = levels

    @property
    def layers(self) -> int:
        """Depth."""
        return len(self.model.layers)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., C] of int64 ids [...]."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def run_layers(
        self,
        x_BTC: Tensor,
        first: int,
        stop: int,
        cache: DynamicCache,
        positions: Tensor,
        visible: Tensor | None = None,
        planes: Sequence[Tensor] = (),
    ) -> Tensor:
        """Hidden states after 0-based layers first..stop-1; their keys and values are appended to `cache`.

        positions: int64 [A, B, T]; visible: bool [B or 1, 1, T, N], needed only where causality alone does not say it
        (padding); by default every cached token and the earlier tokens of this pass are visible
        planes: [B, T, C] for each DeepStack level from `first` on; none says that no token has anything to add
        """
        if first == stop:
            return x_BTC
        if visible is None:
            past = cache.get_seq_length(first)
            visible = causal_mask(x_BTC.shape[1], past, x_BTC.device)
        rotary = self._rotary(x_BTC, positions)
        for index, layer in enumerate(self.model.layers[first:stop]):
            x_BTC = layer(
                x_BTC,
                attention_mask=visible,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=True,
            )
            if index < len(planes):
                x_BTC = x_BTC + planes[index]
        return x_BTC

    def logits(self, x_BTC: Tensor) -> Tensor:
        """float32 [B, T, vocabulary] of the last layer's output."""
        logits: Tensor = self.head(self.model.norm(x_BTC))
        return logits.float()

    def rows(self, layer: int, x_BTC: Tensor, positions: Tensor, queries: Tensor, cache: DynamicCache) -> Tensor:
        """Attention of chosen tokens at one layer over all it sees, heads averaged; float32 [B, Q, N].

        x_BTC: the layer's input; positions: int64 [A, B, T]; queries: int64 [Q], indices into T; cache: already holds
        this pass at that layer
        """
        block = self.model.layers[layer]
        attention = block.self_attn
        chosen = block.input_layernorm(x_BTC[:, queries])
        q_BQHD = attention.q_proj(chosen).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            q_BQHD = attention.q_norm(q_BQHD)
        q_BHQD = q_BQHD.transpose(1, 2)
        cos, sin = self._rotary(chosen, positions[:, :, queries])
        q_BHQD, _ = self.rotate(q_BHQD, q_BHQD, cos, sin)
        k_BKND = cache.layers[layer].keys
        past = k_BKND.shape[2] - x_BTC.shape[1]
        columns = torch.arange(k_BKND.shape[2], device=queries.device)
        return attention_rows(q_BHQD, k_BKND, attention.scaling, columns[None, :] <= past + queries[:, None])

    def qkv(self, layer: int, x_TC: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, rotated keys and values [T, H, D] that a layer makes of its input; key heads are expanded.

        Queries and keys are those behind the per-head norm; positions: int64 [A, T]
        """
        block = self.model.layers[layer]
        attention = block.self_attn
        normed = block.input_layernorm(x_TC)

        def heads(name: str) -> Tensor:
            projected: Tensor = getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, attention.head_dim))
            norm = getattr(attention, f"{name}_norm", None)
            normalised: Tensor = projected if norm is None else norm(projected)
            return normalised

        q_THD, k_TKD, v_TKD = heads("q"), heads("k"), heads("v")
        cos, sin = self._rotary(x_TC[None], positions[:, None])
        k_KTD = k_TKD.transpose(0, 1)[None]
        rotated_TKD = self.rotate(k_KTD, k_KTD, cos, sin)[0][0].transpose(0, 1)
        groups = q_THD.shape[1] // k_TKD.shape[1]
        keys, rotated, values = (x.repeat_interleave(groups, dim=1) for x in (k_TKD, rotated_TKD, v_TKD))
        return q_THD, keys, rotated, values

    def _rotary(self, x_BTC: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin; the stock 1-D embedding takes [B, T], the stock M-RoPE takes [3, B, T]."""
        rotary: tuple[Tensor, Tensor] = self.model.rotary_emb(x_BTC, positions if self.axes > 1 else positions[0])
        return rotary


def causal_mask(tokens: int, past: int, device: torch.device) -> Tensor | None:
    """Bool [1, 1, T, past + T], or None where the kernel's own causality (or a single query) says the same."""
    if tokens == 1 or past == 0:
        return None
    return torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)[None, None]
