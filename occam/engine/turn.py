"""One question over a prefix state: lower layers, the cuts, upper layers, decoding.

Legend: S tokens of the state, R registers of the turn (0 or 1), T tokens of the suffix, C channels, N tokens that a cut
tests.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import DynamicCache

from occam.config import OccamToken, Pruning
from occam.engine.prefix import Clock, lower_cache, register_planes, register_token, turn_positions
from occam.models.base import VideoLM
from occam.pruning import strategy_for
from occam.pruning.strategy import Projections, TextEvidence
from occam.stats import StageStats
from occam.tensors import PrefixState, RetentionMask

Chooser = Callable[[Tensor], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefilled:
    """A question that has gone through the model once.

    cache: layers below the first cut hold S + R + T tokens, those above a cut its survivors
    mask: what all cuts together keep of the state's patches, with the first one's scores; None where nothing is cut
    logits: float32 [vocabulary] of the next token
    """

    cache: DynamicCache
    mask: RetentionMask | None
    logits: Tensor
    stats: tuple[StageStats, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sequence:
    """Tokens on their way through the layers: what the state gives of them, then the turn's register and text.

    hidden: [1, N, C], leaving the layers so far; scored: [1, N', C], the input of the last of these, of its last N'
    tokens (below the first cut the turn's alone); positions: int64 [A, 1, N]; planes: [1, N, C] of the levels above
    tested: bool [N], patches
    """

    hidden: Tensor
    scored: Tensor
    positions: Tensor
    planes: tuple[Tensor, ...]
    tested: Tensor

    def narrowed(self, keep: Tensor) -> "_Sequence":
        """Less the patches outside bool `keep` [tested]."""
        rows = ~self.tested
        rows[self.tested] = keep
        return _Sequence(
            hidden=self.hidden[:, rows],
            scored=self.scored,
            positions=self.positions[:, :, rows],
            planes=tuple(plane[:, rows] for plane in self.planes),
            tested=self.tested[rows],
        )


def prefill(
    lm: VideoLM, state: PrefixState, suffix: list[int], question: tuple[int, int], pruning: Pruning, clock: Clock
) -> Prefilled:
    """Run a turn's suffix over the state and test the evidence anew at every cut.

    suffix: the turn's ids; question: where in them the question itself stands
    """
    decoder, strategy = lm.decoder, strategy_for(pruning)
    started = clock()
    cache = lower_cache(state)
    sequence = _enter(lm, state, suffix, cache)
    stops = (*strategy.cuts(decoder.layers), decoder.layers)
    part = isinstance(pruning, OccamToken) and pruning.evaluators == "question" and question[0] < question[1]
    asked = question if part else (0, len(suffix))
    mask: RetentionMask | None = None
    lowered = clock()
    for number, (cut, stop) in enumerate(pairwise(stops)):
        if bool(sequence.tested.any()):
            evidence = _evidence(lm, state, sequence, cut, asked, len(suffix), cache)
            chosen = strategy.in_decoder(number, evidence)
            mask = chosen if mask is None else _both(mask, chosen)
            sequence = sequence.narrowed(chosen.keep)
        if number == 0:
            lowered = clock()
        sequence = _run(lm, sequence, cut, stop, cache)
    logits = decoder.logits(sequence.hidden[:, -1:])[0, 0]
    text, visual = len(suffix), int((state.patch >= 0).sum())
    upper = visual if mask is None else int(mask.keep.sum())
    return Prefilled(
        cache=cache,
        mask=mask,
        logits=logits,
        stats=(
            StageStats(stage="prefill_lower", started_s=started, ended_s=lowered, tokens_in=text, tokens_out=text),
            StageStats(stage="prefill_upper", started_s=lowered, ended_s=clock(), tokens_in=visual, tokens_out=upper),
        ),
    )


def _enter(lm: VideoLM, state: PrefixState, suffix: list[int], cache: DynamicCache) -> _Sequence:
    """The turn through the layers below the first cut, behind the state that has been through them."""
    decoder, lower = lm.decoder, len(state.keys)
    register = register_token(state)
    x = decoder.embed(torch.tensor(suffix, device=state.ids.device))
    planes: list[Tensor] = []
    if register is not None:
        x = torch.cat([register[:1], x])
        planes = [plane[None] for plane in register_planes(register, len(suffix))]
    own = turn_positions(state, len(suffix), 0 if register is None else 1)[:, None]
    scored = decoder.run_layers(x[None], 0, lower - 1, cache, own, planes=planes)
    hidden = decoder.run_layers(scored, lower - 1, lower, cache, own, planes=planes[lower - 1 :])
    if lower == decoder.layers:
        # Nothing runs behind: the state's own tokens have no part in what is left to do.
        untested = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        return _Sequence(hidden=hidden, scored=scored, positions=own, planes=(), tested=untested)
    late = planes[lower:] or [torch.zeros_like(x[None])] * len(state.planes)
    return _Sequence(
        hidden=torch.cat([state.hidden[None], hidden], dim=1),
        scored=scored,
        positions=torch.cat([state.positions[:, None], own], dim=2),
        planes=tuple(torch.cat([plane[None], mine], dim=1) for plane, mine in zip(state.planes, late, strict=True)),
        tested=torch.cat([state.patch >= 0, torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)]),
    )


def _run(lm: VideoLM, sequence: _Sequence, first: int, stop: int, cache: DynamicCache) -> _Sequence:
    """The whole sequence through layers first..stop-1, whose caches are empty."""
    decoder, planes = lm.decoder, sequence.planes
    scored = decoder.run_layers(sequence.hidden, first, stop - 1, cache, sequence.positions, planes=planes)
    rest = planes[stop - 1 - first :]
    hidden = decoder.run_layers(scored, stop - 1, stop, cache, sequence.positions, planes=rest)
    return _Sequence(
        hidden=hidden,
        scored=scored,
        positions=sequence.positions,
        planes=planes[stop - first :],
        tested=sequence.tested,
    )


def _evidence(
    lm: VideoLM,
    state: PrefixState,
    sequence: _Sequence,
    cut: int,
    asked: tuple[int, int],
    text: int,
    cache: DynamicCache,
) -> TextEvidence:
    """What the strategy may look at before decoder layer `cut`; asked: the suffix tokens that score."""
    decoder, tested, total = lm.decoder, sequence.tested, sequence.hidden.shape[1]
    scored, start = sequence.scored, total - sequence.scored.shape[1]
    queries = total - text + torch.arange(*asked, device=tested.device)
    rows = decoder.rows(cut - 1, scored, sequence.positions[:, :, start:], queries - start, cache)[0]
    registers = 1 if state.register_count else 0

    def projections() -> Projections:
        q, k, rotated, v = decoder.qkv(cut, sequence.hidden[0], sequence.positions[:, 0])
        return Projections(queries=q[queries], keys=k[tested], rotated_keys=rotated[tested], values=v[tested])

    return TextEvidence(
        rows_TN=rows[:, tested],
        register_T=rows[:, total - text - 1] if registers else None,
        first_T=rows[:, 0],
        encoded=state.encoded,
        layers=decoder.layers,
        hidden=lambda: (sequence.hidden[0, tested], sequence.hidden[0, queries]),
        projections=projections,
    )


def _both(earlier: RetentionMask, later: RetentionMask) -> RetentionMask:
    """What a later cut leaves of an earlier one's choice, with the earlier one's scores."""
    keep = earlier.keep.clone()
    keep[earlier.keep] = later.keep
    return RetentionMask(keep=keep, scores=earlier.scores, threshold=earlier.threshold)


def decode(
    lm: VideoLM, prefilled: Prefilled, position: int, choose: Chooser, most: int, on_logits: Callable[[Tensor], None]
) -> Iterator[int]:
    """Generated ids, the end id included where the model gives it; `position` is the unpruned end of the suffix."""
    decoder, logits = lm.decoder, prefilled.logits
    device = logits.device
    for step in range(most):
        on_logits(logits)
        token = choose(logits)
        yield token
        if lm.prompt.is_stop(token) or step == most - 1:
            return
        x = decoder.embed(torch.tensor([[token]], device=device))
        positions = torch.full((decoder.axes, 1, 1), position + step, device=device)
        hidden = decoder.run_layers(x, 0, decoder.layers, prefilled.cache, positions)
        logits = decoder.logits(hidden)[0, 0]
