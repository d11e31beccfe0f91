"""How one more token of every running answer is computed, and the one place that decides it."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from occam.models.decoder import Decoder
from occam.models.packing import Pack, SequenceKV
from occam.models.recording import CudaGraphs
from occam.models.slots import Slots
from occam.transfer import upload

_LOG = logging.getLogger(__name__)

Decode = Callable[[Sequence[SequenceKV], Sequence[int], Sequence[int]], Tensor]
"""Sequences, the token that each goes on with and its unpruned position; float32 logits [B, vocabulary] of the next."""


def decoding_of(decoder: Decoder, lanes: int) -> Decode:
    """Packed on a CPU, where launches cost little; on a GPU in slots, each step one CUDA graph.

    On either, who runs beside an answer moves its logits within rounding. lanes: sequences that run together as a rule.
    A mixture of experts asks its router on the way, which no graph can.
    """
    weight = decoder.model.embed_tokens.weight
    if not weight.is_cuda or any(hasattr(layer.mlp, "experts") for layer in decoder.model.layers):
        return partial(packed, decoder)
    free, _ = torch.cuda.mem_get_info(weight.device)
    return SlotDecoding(decoder, Slots(decoder, lanes, most_bytes=free // 2, record=CudaGraphs(weight.device)))


def packed(
    decoder: Decoder, sequences: Sequence[SequenceKV], tokens: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """All in one pass, each over exactly what it holds."""
    device = decoder.model.embed_tokens.weight.device
    x = decoder.embed(upload(tokens, device))
    at = upload(positions, device).expand(decoder.axes, -1)
    hidden = decoder.run_layers(x, 0, decoder.layers, Pack(sequences, [1] * len(tokens)), at)
    return decoder.logits(hidden)


class SlotDecoding:
    """In slots, and packed whenever these would take more memory than they may.

    packed_steps: how often that was so
    """

    def __init__(self, decoder: Decoder, slots: Slots) -> None:
        self.packed_steps = 0
        self._decoder = decoder
        self._slots = slots

    def __call__(self, sequences: Sequence[SequenceKV], tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """See `Decode`."""
        logits_BV = self._slots.decode(sequences, tokens, positions)
        if logits_BV is not None:
            return logits_BV
        if not self.packed_steps:
            _LOG.warning("Slots for %d answers would take too much memory: they are decoded packed", len(sequences))
        self.packed_steps += 1
        return packed(self._decoder, sequences, tokens, positions)
