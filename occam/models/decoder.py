"""The language model's layer loop over stock Llama-style `transformers` layers: run any range, look into any layer.

Legend: A axes of positions, T tokens of this pass, N tokens of a sequence with those of its past, C channels, H heads,
K key-value heads, D head width; B is 1 wherever stock code wants a batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from occam.models.attention_rows import attention_rows
from occam.models.packing import ATTENTION, Pack, SequenceKV

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Decoder:
    """Owns the layer loop of one language model.

    model: the stock decoder (`layers`, `norm`, `rotary_emb`, `embed_tokens`); head: its output projection
    rotate: the family's `apply_rotary_pos_emb(q, k, cos, sin)`
    axes: 1 for 1-D rotary positions, 3 for M-RoPE; levels: DeepStack planes, level i added behind layer i
    """

    def __init__(self, model: LlamaModel, head: nn.Module, rotate: Rotate, axes: int = 1, levels: int = 0) -> None:
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.head = head
        self.rotate = rotate
        self.axes = axes
        self.levels = levels

    @property
    def layers(self) -> int:
        """Depth."""
        return len(self.model.layers)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """Key-value heads, and their width."""
        attention = self.model.layers[0].self_attn
        return attention.k_proj.out_features // attention.head_dim, attention.head_dim

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings [..., C] of int64 ids [...]."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def run_layers(
        self, x_TC: Tensor, first: int, stop: int, pack: Pack, positions: Tensor, planes: Sequence[Tensor] = ()
    ) -> Tensor:
        """Hidden states [T, C] after 0-based layers first..stop-1; their keys and values go to the pack's sequences.

        positions: int64 [A, T]; every token sees what its sequence held before this pass, and its earlier ones of it
        planes: [T, C] for each DeepStack level from `first` on; none says that no token has anything to add
        """
        if first == stop:
            return x_TC
        x = x_TC[None]
        rotary = self.rotary(x_TC, positions)
        for index, layer in enumerate(self.model.layers[first:stop]):
            x = layer(x, position_embeddings=rotary, past_key_values=pack, use_cache=True, pack=pack)
            if index < len(planes):
                x = x + planes[index]
        return x[0]

    def logits(self, x_TC: Tensor) -> Tensor:
        """float32 [T, vocabulary] of the last layer's output."""
        logits: Tensor = self.head(self.model.norm(x_TC))
        return logits.float()

    def rows(self, layer: int, x_TC: Tensor, positions: Tensor, queries: Tensor, sequence: SequenceKV) -> Tensor:
        """Attention of chosen tokens at one layer over all they see, heads averaged; float32 [Q, N].

        x_TC: the layer's input; positions: int64 [A, T]; queries: int64 [Q], indices into T; sequence: already holds
        these T, behind all others, at that layer
        """
        block = self.model.layers[layer]
        attention = block.self_attn
        chosen = block.input_layernorm(x_TC[None, queries])
        q_BQHD = attention.q_proj(chosen).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            q_BQHD = attention.q_norm(q_BQHD)
        q_BHQD = q_BQHD.transpose(1, 2)
        cos, sin = self.rotary(chosen[0], positions[:, queries])
        q_BHQD, _ = self.rotate(q_BHQD, q_BHQD, cos, sin)
        k_BKND = sequence.keys(layer)[None]
        past = k_BKND.shape[2] - len(x_TC)
        columns = torch.arange(k_BKND.shape[2], device=queries.device)
        return attention_rows(q_BHQD, k_BKND, attention.scaling, columns[None, :] <= past + queries[:, None])[0]

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
        cos, sin = self.rotary(x_TC, positions)
        k_KTD = k_TKD.transpose(0, 1)[None]
        rotated_TKD = self.rotate(k_KTD, k_KTD, cos, sin)[0][0].transpose(0, 1)
        groups = q_THD.shape[1] // k_TKD.shape[1]
        keys, rotated, values = (x.repeat_interleave(groups, dim=1) for x in (k_TKD, rotated_TKD, v_TKD))
        return q_THD, keys, rotated, values

    def rotary(self, x_TC: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [1, T, D]; the stock 1-D embedding takes [B, T], the stock M-RoPE takes [3, B, T]."""
        stock = positions[:, None] if self.axes > 1 else positions
        rotary: tuple[Tensor, Tensor] = self.model.rotary_emb(x_TC[None], stock)
        return rotary
