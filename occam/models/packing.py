"""Several sequences in one pass of the decoder: packed behind one another, each attending to its own past alone.

Whatever works token by token (norms, projections, MLP) sees one long matrix, and so reads the weights once; attention
runs sequence by sequence, over keys whose number differs from sequence to sequence and from layer to layer. Nothing is
padded, and any sequences may share a pass.

Legend: T tokens of this pass over all sequences, N tokens of one sequence in a layer, H heads, K key-value heads, D
head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "occam_packed"
"""The name under which stock layers find `_attend`."""


class SequenceKV:
    """Keys and values of one sequence, as many in a layer as went through that layer; it grows in place.

    room: tokens that a layer can take behind its first block, or behind those it began with, before it moves
    """

    def __init__(self, layers: int, room: int, keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()) -> None:
        """keys, values: [K, N, D] of the first layers, copied."""
        self.room = room
        self._blocks: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._lengths = [0] * layers
        for layer, pair in enumerate(zip(keys, values, strict=True)):
            self.extend(layer, *pair)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put [K, T, D] behind what the layer holds."""
        start, stop = self._lengths[layer], self._lengths[layer] + keys.shape[1]
        block = self._blocks[layer]
        if block is None or stop > block[0].shape[1]:
            shape = (keys.shape[0], stop + self.room, keys.shape[2])
            moved = keys.new_empty(shape), values.new_empty(shape)
            if block is not None:
                for new, old in zip(moved, block, strict=True):
                    new[:, :start] = old[:, :start]
            self._blocks[layer] = block = moved
        block[0][:, start:stop] = keys
        block[1][:, start:stop] = values
        self._lengths[layer] = stop

    def forget(self, layer: int) -> None:
        """Give up what the layer holds, which lies elsewhere from now on."""
        self._blocks[layer] = None
        self._lengths[layer] = 0

    def keys(self, layer: int) -> Tensor:
        """[K, N, D], a view."""
        return self._of(layer, 0)

    def values(self, layer: int) -> Tensor:
        """[K, N, D], a view."""
        return self._of(layer, 1)

    def length(self, layer: int) -> int:
        """N."""
        return self._lengths[layer]

    def _of(self, layer: int, which: int) -> Tensor:
        block = self._blocks[layer]
        if block is None:
            raise ValueError(f"nothing has gone through layer {layer}")
        return block[which][:, : self._lengths[layer]]


class Pack:
    """What stock layers get for their cache: whose tokens those of a pass are.

    lengths: tokens of each sequence in the pass, T in all; behind one another, in this order
    """

    def __init__(self, sequences: Sequence[SequenceKV], lengths: Sequence[int]) -> None:
        self.sequences = sequences
        self.lengths = list(lengths)
        self._masks: dict[tuple[int, int], Tensor] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep [1, K, T, D] of a layer for every sequence; the caller's own come back, attention takes what is kept."""
        parts = zip(torch.split(keys[0], self.lengths, dim=1), torch.split(values[0], self.lengths, dim=1), strict=True)
        for sequence, (own_keys, own_values) in zip(self.sequences, parts, strict=True):
            sequence.extend(layer_idx, own_keys, own_values)
        return keys, values

    def mask(self, tokens: int, total: int, device: torch.device) -> Tensor | None:
        """Bool [1, 1, tokens, total]; None where the kernel's own causality, or a single query, says the same."""
        if tokens in (1, total):
            return None
        if (tokens, total) not in self._masks:
            seen = torch.ones(tokens, total, dtype=torch.bool, device=device).tril(total - tokens)
            self._masks[tokens, total] = seen[None, None]
        return self._masks[tokens, total]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pack: Pack | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Stock SDPA for each sequence of the pass over all that it holds; without a pack, stock SDPA.

    query: [1, H, T, D]; returns [1, T, H, D]
    """
    if pack is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole
    layer: int = module.layer_idx  # type: ignore[assignment]
    parts = []
    for own, sequence in zip(torch.split(query, pack.lengths, dim=2), pack.sequences, strict=True):
        keys, values = sequence.keys(layer)[None], sequence.values(layer)[None]
        mask = pack.mask(own.shape[2], keys.shape[2], query.device)
        parts.append(sdpa_attention_forward(module, own, keys, values, mask, **options)[0])
    return torch.cat(parts, dim=1), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
