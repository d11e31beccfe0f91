"""Questions over prefix states: lower layers, the cuts, upper layers, in one pass for all that prune at the same ones.

Legend: S tokens of a state, R registers of a turn (0 or 1), T tokens of its suffix, C channels, N tokens of a sequence,
B sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from occam.config import OccamToken, Pruning
from occam.engine.prefix import Clock, lower_sequence, register_planes, register_token, turn_positions
from occam.models.base import VideoLM
from occam.models.packing import Pack, SequenceKV
from occam.pruning import strategy_for
from occam.pruning.strategy import Projections, TextEvidence
from occam.stats import Stage, StageStats
from occam.tensors import PrefixState, RetentionMask
from occam.transfer import to_device, upload

ROOM = 256
"""Tokens of an answer that a sequence has place for at most; a longer one is moved whenever so many more have come."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A question, ready to go through the model.

    suffix: the turn's ids; question: where in them the question itself stands; most: tokens of the answer
    """

    state: PrefixState
    suffix: tuple[int, ...]
    question: tuple[int, int]
    pruning: Pruning
    most: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefilled:
    """A question that has gone through the model once.

    kv: layers below the first cut hold S + R + T tokens, those above a cut its survivors
    mask: what all cuts together keep of the state's patches, with the first one's scores; None where nothing is cut
    """

    kv: SequenceKV
    mask: RetentionMask | None
    stats: tuple[StageStats, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sequence:
    """Tokens on their way through the layers: what the state gives of them, then the turn's register and text.

    hidden: [N, C], leaving the layers so far; scored: [N', C], the input of the last of these, of its last N' tokens
    (below the first cut the turn's alone); positions: int64 [A, N]; planes: [N, C] of the levels above
    patches: int64 [P] on the CPU, which of the tokens are patches; mask: what the cuts so far have kept
    """

    asked: Asked
    kv: SequenceKV
    hidden: Tensor
    scored: Tensor
    positions: Tensor
    planes: tuple[Tensor, ...]
    patches: Tensor
    mask: RetentionMask | None = None

    def narrowed(self, chosen: RetentionMask) -> "_Sequence":
        """Less the patches that a cut drops; their number is what a device has to be waited for."""
        keep = chosen.keep.cpu()
        rest = torch.ones(len(self.hidden), dtype=torch.bool)
        rest[self.patches[~keep]] = False
        place = rest.cumsum(dim=0) - 1
        rows = to_device(rest.nonzero().squeeze(1), self.hidden.device)
        return replace(
            self,
            hidden=self.hidden[rows],
            positions=self.positions[:, rows],
            planes=tuple(plane[rows] for plane in self.planes),
            patches=place[self.patches[keep]],
            mask=chosen if self.mask is None else _both(self.mask, chosen),
        )


def prefill(lm: VideoLM, questions: Sequence[Asked], clock: Clock) -> tuple[list[Prefilled], Tensor]:
    """Run the suffixes over their states and test the evidence anew at every cut; all must have the same cuts.

    Returns also the float32 logits [B, vocabulary] of the next tokens.
    """
    decoder = lm.decoder
    [cuts] = {strategy_for(asked.pruning).cuts(decoder.layers) for asked in questions}
    started = lowered = clock()
    sequences = _enter(lm, questions)
    for number, (cut, stop) in enumerate(pairwise((*cuts, decoder.layers))):
        sequences = [_pruned(lm, sequence, number, cut) for sequence in sequences]
        if number == 0:
            lowered = clock()
        sequences = _run(lm, sequences, cut, stop)
    logits_BV = decoder.logits(torch.stack([sequence.hidden[-1] for sequence in sequences]))
    ended = clock()
    times = started, lowered if cuts else ended, ended
    prefilled = [
        Prefilled(kv=sequence.kv, mask=sequence.mask, stats=_stats(sequence, len(questions), times))
        for sequence in sequences
    ]
    return prefilled, logits_BV


def _enter(lm: VideoLM, questions: Sequence[Asked]) -> list[_Sequence]:
    """The turns through the layers below the first cut, behind their states, which have been through them."""
    entering = [_entering(lm, asked) for asked in questions]
    lower = len(questions[0].state.keys)
    return [_behind_state(lm, sequence) for sequence in _run(lm, entering, 0, lower)]


def _entering(lm: VideoLM, asked: Asked) -> _Sequence:
    """A turn in front of the first layer."""
    decoder, state = lm.decoder, asked.state
    register = register_token(state)
    x = decoder.embed(upload(asked.suffix, state.ids.device))
    planes: tuple[Tensor, ...] = tuple(torch.zeros_like(x) for _ in range(decoder.levels))
    if register is not None:
        x = torch.cat([register[:1], x])
        planes = register_planes(register, len(asked.suffix))
    return _Sequence(
        asked=asked,
        kv=lower_sequence(lm, state, room=len(x) + min(asked.most, ROOM)),
        hidden=x,
        scored=x,
        positions=turn_positions(state, len(asked.suffix), 0 if register is None else 1),
        planes=planes,
        patches=torch.zeros(0, dtype=torch.int64),
    )


def _behind_state(lm: VideoLM, turn: _Sequence) -> _Sequence:
    """A turn joined to its state, both having been through the lower layers."""
    state = turn.asked.state
    if len(state.keys) == lm.decoder.layers:
        # Nothing runs behind: the state's own tokens have no part in what is left to do.
        return turn
    return replace(
        turn,
        hidden=torch.cat([state.hidden, turn.hidden]),
        positions=torch.cat([state.positions, turn.positions], dim=1),
        planes=tuple(torch.cat(pair) for pair in zip(state.planes, turn.planes, strict=True)),
        patches=(state.patch >= 0).cpu().nonzero().squeeze(1),
    )


def _run(lm: VideoLM, sequences: Sequence[_Sequence], first: int, stop: int) -> list[_Sequence]:
    """Whole sequences through layers first..stop-1, in one pass."""
    decoder = lm.decoder
    lengths = [len(sequence.hidden) for sequence in sequences]
    pack = Pack([sequence.kv for sequence in sequences], lengths)
    positions = torch.cat([sequence.positions for sequence in sequences], dim=1)
    planes = [torch.cat(level) for level in zip(*(sequence.planes for sequence in sequences), strict=True)]
    x = torch.cat([sequence.hidden for sequence in sequences])
    scored = decoder.run_layers(x, first, stop - 1, pack, positions, planes)
    hidden = decoder.run_layers(scored, stop - 1, stop, pack, positions, planes[stop - 1 - first :])
    return [
        replace(sequence, hidden=own, scored=own_scored, planes=sequence.planes[stop - first :])
        for sequence, own, own_scored in zip(
            sequences, torch.split(hidden, lengths), torch.split(scored, lengths), strict=True
        )
    ]


def _pruned(lm: VideoLM, sequence: _Sequence, number: int, cut: int) -> _Sequence:
    """What the strategy lets past its cut `number`, before decoder layer `cut`."""
    if not len(sequence.patches):
        return sequence
    strategy = strategy_for(sequence.asked.pruning)
    return sequence.narrowed(strategy.in_decoder(number, _evidence(lm, sequence, cut)))


def _evidence(lm: VideoLM, sequence: _Sequence, cut: int) -> TextEvidence:
    """What the strategy may look at before decoder layer `cut`."""
    decoder, total, device = lm.decoder, len(sequence.hidden), sequence.hidden.device
    tested = to_device(sequence.patches, device)
    state, text = sequence.asked.state, len(sequence.asked.suffix)
    scored, start = sequence.scored, total - len(sequence.scored)
    queries = total - text + torch.arange(*_evaluators(sequence.asked), device=device)
    rows = decoder.rows(cut - 1, scored, sequence.positions[:, start:], queries - start, sequence.kv)

    def projections() -> Projections:
        q, k, rotated, v = decoder.qkv(cut, sequence.hidden, sequence.positions)
        return Projections(queries=q[queries], keys=k[tested], rotated_keys=rotated[tested], values=v[tested])

    return TextEvidence(
        rows_TN=rows[:, tested],
        register_T=rows[:, total - text - 1] if state.register_count else None,
        first_T=rows[:, 0],
        encoded=state.encoded,
        layers=decoder.layers,
        hidden=lambda: (sequence.hidden[tested], sequence.hidden[queries]),
        projections=projections,
    )


def _evaluators(asked: Asked) -> tuple[int, int]:
    """The tokens of the suffix that score."""
    part = isinstance(asked.pruning, OccamToken) and asked.pruning.evaluators == "question"
    return asked.question if part and asked.question[0] < asked.question[1] else (0, len(asked.suffix))


def _both(earlier: RetentionMask, later: RetentionMask) -> RetentionMask:
    """What a later cut leaves of an earlier one's choice, with the earlier one's scores."""
    keep = earlier.keep.clone()
    keep[earlier.keep] = later.keep
    return RetentionMask(keep=keep, scores=earlier.scores, threshold=earlier.threshold)


def _stats(sequence: _Sequence, shared: int, times: tuple[float, float, float]) -> tuple[StageStats, ...]:
    """Of both halves of a prefill that `shared` questions took together; times: its start, middle and end."""
    text, visual = len(sequence.asked.suffix), sequence.asked.state.stage1
    upper = visual if sequence.mask is None else len(sequence.patches)
    started, lowered, ended = times
    halves: tuple[tuple[Stage, float, float, int, int], ...] = (
        ("prefill_lower", started, lowered, text, text),
        ("prefill_upper", lowered, ended, visual, upper),
    )
    return tuple(
        StageStats(
            stage=stage,
            started_s=first,
            ended_s=last,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            shared_s=(last - first) / shared,
        )
        for stage, first, last, tokens_in, tokens_out in halves
    )
