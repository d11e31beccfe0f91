"""Decoding where launches cost more than sums: sequences in slots of fixed shape, so that a step can be recorded once.

A step over a `Pack` makes its calls sequence by sequence, over lengths that change with every token. Here each running
sequence has a lane of tensors that stay where they are, and what changes from step to step (tokens, positions,
lengths) is read from one small buffer: a recorded step (a CUDA graph) is right for every later one of its shape.
Lanes and places are taken in powers of two, so there are few shapes.

Legend: B lanes of a step, L layers, C channels, H heads, K key-value heads, G query heads of one, D head width, M the
most places of a lane in any layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from occam.models.decoder import Decoder
from occam.models.packing import SequenceKV
from occam.models.recording import Record

Run = Callable[[], Tensor]

PLACES = 256
"""Least places of a lane in a layer, of which there are as many as the largest power of two needs."""
RECORDINGS = 64
"""Kept at most: users name cuts, and every set of lengths by layer is another shape."""


class Slots:
    """Lanes for sequences that are decoded together, and the step over them.

    A sequence lies here from its first step on, its own tensors given up, until it is left out of a step or forgotten.
    """

    def __init__(self, decoder: Decoder, lanes: int, most_bytes: int, record: Record) -> None:
        """lanes: laid out from the start, if they fit; most_bytes: of all lanes together."""
        self._decoder = decoder
        self._first_lanes = _power(lanes)
        self._most_bytes = most_bytes
        self._record = record
        self._lane_of: WeakKeyDictionary[SequenceKV, int] = WeakKeyDictionary()
        self._lengths = torch.zeros(decoder.layers, 0, dtype=torch.int64)
        self._recordings: dict[tuple[int, ...], Run] = {}
        self._inputs = torch.zeros(0, dtype=torch.int64)
        self._inputs_there = self._inputs
        self._tear_down()

    def decode(self, sequences: Sequence[SequenceKV], tokens: Sequence[int], positions: Sequence[int]) -> Tensor | None:
        """One token more of every sequence; float32 logits [B, vocabulary] of the next ones, None without room.

        positions: unpruned, of these tokens. The caller reads something of the result before the next call.
        """
        if not self._seat(sequences):
            return None
        lanes = [self._lane_of[sequence] for sequence in sequences]
        batch, places = _power(len(sequences)), _places(self._lengths[:, lanes])
        count = (2 + self._decoder.layers) * batch
        inputs = self._inputs[:count].view(-1, batch).zero_()
        inputs[:2, lanes] = torch.tensor([tokens, positions])
        inputs[2:, lanes] = self._lengths[:, lanes]
        self._inputs_there[:count].copy_(self._inputs[:count], non_blocking=True)
        logits_BV = self._recorded(batch, places)()
        self._lengths[:, lanes] += 1
        return torch.stack([logits_BV[lane] for lane in lanes])

    def _recorded(self, batch: int, places: Sequence[int]) -> Run:
        shape = (batch, *places)
        if shape not in self._recordings:
            if len(self._recordings) == RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[shape] = self._record(partial(self._step, batch, places))
        return self._recordings[shape]

    def _step(self, batch: int, places: Sequence[int]) -> Tensor:
        """All layers over the first `batch` lanes; those of nobody read and write their first place."""
        decoder = self._decoder
        inputs = self._inputs_there[: (2 + decoder.layers) * batch].view(-1, batch)
        ids_B, positions_B, lengths_LB = inputs[0], inputs[1], inputs[2:]
        x = decoder.embed(ids_B)
        cos, sin = decoder.rotary(x, positions_B.expand(decoder.axes, -1))
        half = sin.shape[-1] // 2
        turn = cos[0, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[0, :, None]
        behind_LBM = torch.arange(max(places), device=x.device) > lengths_LB[:, :, None]
        hidden_LBM = torch.zeros_like(behind_LBM, dtype=x.dtype).masked_fill(behind_LBM, float("-inf"))
        lanes = torch.arange(batch, device=x.device)
        for layer, (block, count) in enumerate(zip(decoder.model.layers, places, strict=True)):
            keys, values = (held[layer][:batch, :, :count] for held in (self._keys, self._values))
            q_BKGD, k_BKD, v_BKD = _projected(block, x, turn)
            keys[lanes, :, lengths_LB[layer]] = k_BKD
            values[lanes, :, lengths_LB[layer]] = v_BKD
            mask = hidden_LBM[layer, :, None, None, :count]
            attended = F.scaled_dot_product_attention(
                q_BKGD, keys, values, attn_mask=mask, scale=block.self_attn.scaling
            )
            x = x + block.self_attn.o_proj(attended.flatten(1))
            x = x + block.mlp(_normed(block.post_attention_layernorm, x))
        return decoder.logits(x)

    def _seat(self, sequences: Sequence[SequenceKV]) -> bool:
        """Every sequence in one of the first lanes, all others in none; False, and nobody in any, without room."""
        for sequence in set(self._lane_of) - set(sequences):
            self._leave(sequence)
        lanes = _power(len(sequences))
        if not self._make_room(lanes, _places(torch.stack([self._expected(each) for each in sequences], dim=1))):
            for sequence in list(self._lane_of):
                self._leave(sequence)
            return False
        free = [lane for lane in range(lanes) if lane not in self._lane_of.values()]
        for sequence in sequences:
            if self._lane_of.get(sequence, lanes) >= lanes:
                self._enter(sequence, free.pop(0))
        return True

    def _expected(self, sequence: SequenceKV) -> Tensor:
        """Its length by layer, [L]; of one that is new, with all it has room for, lest lanes be laid out again soon."""
        if sequence in self._lane_of:
            return self._lengths[:, self._lane_of[sequence]]
        return torch.tensor([sequence.length(layer) + sequence.room for layer in range(len(self._keys))])

    def _enter(self, sequence: SequenceKV, lane: int) -> None:
        """Move a sequence into a lane, from its own tensors or from the lane it has."""
        if sequence in self._lane_of:
            self._leave(sequence)
        for layer in range(len(self._keys)):
            length = sequence.length(layer)
            for held, own in ((self._keys, sequence.keys(layer)), (self._values, sequence.values(layer))):
                held[layer][lane, :, :length] = own
                held[layer][lane, :, length:] = 0  # hidden by a mask, which hides no NaN of who was here before
            self._lengths[layer, lane] = length
            sequence.forget(layer)
        self._lane_of[sequence] = lane

    def _leave(self, sequence: SequenceKV) -> None:
        """Give a sequence what its lane holds."""
        lane = self._lane_of.pop(sequence)
        for layer, length in enumerate(self._lengths[:, lane].tolist()):
            sequence.extend(layer, self._keys[layer][lane, :, :length], self._values[layer][lane, :, :length])

    def _make_room(self, lanes: int, places: Sequence[int]) -> bool:
        """Lay the lanes out anew where these are too few or too short; False where they would take too many bytes."""
        if lanes <= self._lanes and all(new <= old for new, old in zip(places, self._places, strict=True)):
            return True
        longest = [max(pair) for pair in zip(places, self._places, strict=True)]
        for shape in ((max(lanes, self._first_lanes), longest), (lanes, places)):
            if self._bytes(*shape) <= self._most_bytes and self._lay_out(*shape):
                return True
        return False

    def _lay_out(self, lanes: int, places: Sequence[int]) -> bool:
        """New lanes, all zeros, in place of those there are; False, and none at all, where memory is out."""
        seated = list(self._lane_of)
        for sequence in seated:
            self._leave(sequence)
        self._tear_down()
        try:
            self._allocate(lanes, places)
        except torch.OutOfMemoryError:
            self._tear_down()
            return False
        self._lanes, self._places = lanes, list(places)
        for lane, sequence in enumerate(seated):
            self._enter(sequence, lane)
        return True

    def _allocate(self, lanes: int, places: Sequence[int]) -> None:
        weight = self._decoder.model.embed_tokens.weight
        heads, width = self._decoder.kv_shape
        for layer, count in enumerate(places):
            for held in (self._keys, self._values):
                held[layer] = weight.new_zeros(lanes, heads, count, width)
        self._lengths = torch.zeros(len(places), lanes, dtype=torch.int64)
        self._inputs = torch.zeros((2 + len(places)) * lanes, dtype=torch.int64, pin_memory=weight.is_cuda)
        self._inputs_there = self._inputs.to(weight.device, copy=True)

    def _tear_down(self) -> None:
        """No lanes, which nobody may be in, and no recording that would read them."""
        layers = self._decoder.layers
        self._recordings.clear()
        self._lanes, self._places = 0, [0] * layers
        self._keys = [self._decoder.model.embed_tokens.weight.new_empty(0)] * layers
        self._values = list(self._keys)

    def _bytes(self, lanes: int, places: Sequence[int]) -> int:
        heads, width = self._decoder.kv_shape
        itemsize: int = self._decoder.model.embed_tokens.weight.itemsize
        return 2 * lanes * sum(places) * heads * width * itemsize


def _projected(block: LlamaDecoderLayer, x_BC: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries [B, K, G, D] and keys [B, K, D], and values [B, K, D] of a layer's input.

    The stock layer's arithmetic in a third of its calls; turn: cos and sin [B, 1, D], sin negative in its first half
    """
    attention = block.self_attn
    normed = _normed(block.input_layernorm, x_BC)
    q_BHD, k_BKD, v_BKD = (
        project(normed).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q_BHD, k_BKD = _normed(attention.q_norm, q_BHD), _normed(attention.k_norm, k_BKD)
    both = torch.cat([q_BHD, k_BKD], dim=1)
    cos, sin = turn
    both = torch.addcmul(both * cos, both.roll(attention.head_dim // 2, dims=-1), sin)
    heads = k_BKD.shape[1]
    return both[:, :-heads].view(len(both), heads, -1, attention.head_dim), both[:, -heads:], v_BKD


def _normed(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    """A stock RMS norm in one call."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _places(lengths_LB: Tensor) -> list[int]:
    """For one token more of each, by layer."""
    return [_power(longest + 1, PLACES) for longest in lengths_LB.amax(dim=1).tolist()]


def _power(count: int, least: int = 1) -> int:
    """The smallest power of two that is not less."""
    return max(least, 1 << (count - 1).bit_length())
