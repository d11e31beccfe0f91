"""Prefill of several questions: packed as the engine does it, padded to the longest, and one after the other.

Padded means that hidden states, keys and values of all sequences lie in one tensor each, as long as the longest asks
for, with one masked attention call a layer. Only the passes through the layers differ: scoring, cuts and the head are
the engine's either way.

Legend: B sequences, T tokens of the longest in a pass, N places of a sequence in a layer, C channels, K key-value
heads, D head width, A axes of positions.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from occam.engine import turn
from occam.engine.turn import Asked, Prefilled
from occam.models.base import VideoLM
from occam.tensors import PrefixState
from occam.transfer import upload
from tests.bench.frames import noise
from tests.bench.report import Cell, Table
from tests.bench.rounds import Run, alternating
from tests.bench.stock import Stock
from tests.bench.subject import Subject

QUARTERS = (4, 3, 2, 1)
"""Of a clip's frames, that clips of several lengths have in turn."""
TABLES = {"Together over clips of one length": QUARTERS[:1], "Together over clips of several lengths": QUARTERS}
DISTANCE = "padded from packed"
PACKED, PADDED, GATHERED, ALONE = "packed", "padded", "gathered before", "one by one"
RIVALS = (PADDED, GATHERED, ALONE)
COLUMNS = (
    *("", DISTANCE, "tokens padded / packed", f"{PACKED} ms", f"{PADDED} ms"),
    *(f"{name} / {PACKED}" for name in RIVALS),
)
NOTE = (
    "distances are of the logits, relative to their norm; tokens are those behind the cut. Padded, the states' keys "
    "and values are gathered on the clock, for states come from a cache in any company; then without that."
)

KV = tuple[Tensor, Tensor]


def together(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """Questions over states that are there, up to the logits of their first tokens."""
    frames = [max(1, len(subject.clips[0]) * quarters // 4) for quarters in QUARTERS]
    subject = replace(subject, clips=tuple(noise(count, tuple(args.size)) for count in frames))
    states = [subject.state(clip) for clip in range(len(frames))]
    for title, quarters in TABLES.items():
        rows = []
        for batch in [each for each in args.together if each > 1]:
            asked = [subject.asked(states[number % len(quarters)], number).asked for number in range(batch)]
            rows.append((str(batch), *_compared(subject.engine.lm, asked, args)))
        lengths = ", ".join(map(str, frames[: len(quarters)]))
        yield Table(title=title, columns=COLUMNS, rows=tuple(rows), note=f"Over {lengths} frames; {NOTE}")


def _compared(lm: VideoLM, asked: Sequence[Asked], args: argparse.Namespace) -> tuple[Cell, ...]:
    """A row of the table, but for its name."""
    runs: dict[str, Run] = {
        PACKED: partial(packed, lm, asked),
        PADDED: lambda: padded(lm, asked, gathered={}),
        GATHERED: partial(padded, lm, asked, gathered={}),
        ALONE: lambda: [packed(lm, [each]) for each in asked],
    }
    (sequences, logits_BV), (_, padded_BV) = packed(lm, asked), padded(lm, asked, gathered={})
    behind = [each.kv.length(lm.decoder.layers - 1) for each in sequences]
    rounds = alternating(args.device, runs, args.repeats)
    return (
        float((padded_BV - logits_BV).norm() / logits_BV.norm()),
        len(behind) * max(behind) / sum(behind),
        *(1000 * rounds.median(name) for name in (PACKED, PADDED)),
        *(rounds.ratio(name, PACKED) for name in RIVALS),
    )


@torch.inference_mode()
def packed(lm: VideoLM, asked: Sequence[Asked]) -> tuple[list[Prefilled], Tensor]:
    """Questions behind their first pass, and the float32 logits [B, vocabulary] of it, as the engine computes them."""
    return turn.prefill(lm, asked, time.monotonic)


def padded(lm: VideoLM, asked: Sequence[Asked], gathered: dict[int, KV]) -> tuple[list[Prefilled], Tensor]:
    """The same, padded; gathered: keys and values of all by layer, put there unless an earlier call did."""
    run = partial(_run_padded, gathered=gathered)
    with mock.patch.object(turn, "lower_sequence", Row.of), mock.patch.object(turn, "_run", run):
        return packed(lm, asked)


@dataclass(frozen=True)
class Row:
    """One sequence of a padded pass: views of its keys and values by layer, in its state or among those of all."""

    held: dict[int, KV]

    @classmethod
    def of(cls, lm: VideoLM, state: PrefixState, room: int) -> "Row":
        """What the state holds, not copied: `PaddedKV` does that."""
        del lm, room
        return cls(dict(enumerate(zip(state.keys, state.values, strict=True))))

    def keys(self, layer: int) -> Tensor:
        """[K, N, D], a view."""
        return self.held[layer][0]

    def length(self, layer: int) -> int:
        """Places of it that are taken."""
        return self.keys(layer).shape[1] if layer in self.held else 0


class PaddedKV:
    """What stock layers get for their cache: every sequence from the first place on, new tokens behind its own past.

    All bring T tokens, padding included: that lies behind what is their own, where none of their tokens looks.
    """

    def __init__(
        self, rows: Sequence[Row], lengths: Sequence[int], first: int, gathered: dict[int, KV], device: torch.device
    ) -> None:
        """lengths: tokens of each sequence in the pass; first: layer of the pass, all of which hold the same pasts."""
        self.rows = rows
        self.past = [row.length(first) for row in rows]
        self.ends = [past + length for past, length in zip(self.past, lengths, strict=True)]
        self.gathered = gathered
        self.lanes_B1 = torch.arange(len(rows), device=device)[:, None]
        self.places_BT = upload(self.past, device)[:, None] + torch.arange(max(lengths), device=device)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> KV:
        """Put [B, K, T, D] of a layer behind the past of every sequence; all that the layer holds, [B, K, N, D]."""
        if layer_idx not in self.gathered:
            self.gathered[layer_idx] = self._gathered(keys, layer_idx, 0), self._gathered(values, layer_idx, 1)
        both = self.gathered[layer_idx]
        for held, new in zip(both, (keys, values), strict=True):
            held[self.lanes_B1, :, self.places_BT] = new.transpose(1, 2)
        for place, (row, end) in enumerate(zip(self.rows, self.ends, strict=True)):
            row.held[layer_idx] = both[0][place, :, :end], both[1][place, :, :end]
        return both

    def mask(self) -> Tensor:
        """Bool [B, 1, T, N]: a token sees its sequence's past, and those of the pass up to itself."""
        places = max(self.past) + self.places_BT.shape[1]
        return (torch.arange(places, device=self.places_BT.device) <= self.places_BT[..., None])[:, None]

    def _gathered(self, new: Tensor, layer: int, which: int) -> Tensor:
        batch, heads, tokens, width = new.shape
        held = new.new_empty(batch, heads, max(self.past) + tokens, width)
        for place, (row, past) in enumerate(zip(self.rows, self.past, strict=True)):
            if past:
                held[place, :, :past] = row.held[layer][which]
            held[place, :, past:] = 0  # a mask hides no NaN
        return held


def _run_padded(
    lm: VideoLM, sequences: Sequence[turn._Sequence], first: int, stop: int, gathered: dict[int, KV]
) -> list[turn._Sequence]:
    """What `turn._run` does, over [B, T, C]."""
    decoder, lengths = lm.decoder, [len(sequence.hidden) for sequence in sequences]
    x_BTC = pad_sequence([each.hidden for each in sequences], batch_first=True)
    positions_BTA = pad_sequence([each.positions.T for each in sequences], batch_first=True)
    cache = PaddedKV([each.kv for each in sequences], lengths, first, gathered, x_BTC.device)
    planes = [pad_sequence(level, batch_first=True) for level in zip(*(each.planes for each in sequences), strict=True)]
    rotary = decoder.rotary(x_BTC.flatten(0, 1), positions_BTA.flatten(0, 1).T)
    turned = tuple(each.view(*x_BTC.shape[:2], -1) for each in rotary)
    mask, scored_BTC = cache.mask(), x_BTC
    for index, layer in enumerate(decoder.model.layers[first:stop]):
        scored_BTC = x_BTC
        x_BTC = layer(x_BTC, attention_mask=mask, position_embeddings=turned, past_key_values=cache, use_cache=True)
        if index < len(planes):
            x_BTC = x_BTC + planes[index]
    return [
        replace(each, hidden=own[:length], scored=scored[:length], planes=each.planes[stop - first :])
        for each, own, scored, length in zip(sequences, x_BTC, scored_BTC, lengths, strict=True)
    ]
