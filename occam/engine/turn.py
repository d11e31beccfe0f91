"""One question over a prefix state: lower layers, stage II, upper layers, decoding.

Legend: S tokens of the state, R registers of the turn (0 or 1), T tokens of the suffix, C channels, V visual tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from occam.config import OccamToken, Pruning
from occam.engine.prefix import Clock, lower_cache, register_planes, register_token, turn_positions
from occam.models.base import VideoLM
from occam.pruning import strategy_for
from occam.pruning.strategy import TextEvidence
from occam.stats import StageStats
from occam.tensors import PrefixState, RetentionMask

Chooser = Callable[[Tensor], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefilled:
    """A question that has gone through the model once.

    cache: layers below the cut hold S + R + T tokens, those above it the survivors; mask: stage II over the state's
    patches, None where nothing is cut; logits: float32 [vocabulary] of the next token
    """

    cache: DynamicCache
    mask: RetentionMask | None
    logits: Tensor
    stats: tuple[StageStats, ...]


def prefill(
    lm: VideoLM, state: PrefixState, suffix: list[int], question: tuple[int, int], pruning: Pruning, clock: Clock
) -> Prefilled:
    """Run a turn's suffix over the state and test the evidence anew.

    suffix: the turn's ids; question: where in them the question itself stands
    """
    decoder, lower = lm.decoder, len(state.keys)
    started = clock()
    register = register_token(state)
    registers = 0 if register is None else 1
    x = decoder.embed(torch.tensor(suffix, device=state.ids.device))
    planes: list[Tensor] = []
    if register is not None:
        x = torch.cat([register[:1], x])
        planes = [plane[None] for plane in register_planes(register, len(suffix))]
    positions = turn_positions(state, len(suffix), registers)[:, None]
    cache = lower_cache(state)
    scored = decoder.run_layers(x[None], 0, lower - 1, cache, positions, planes=planes)
    hidden = decoder.run_layers(scored, lower - 1, lower, cache, positions, planes=planes[lower - 1 :])

    tested = state.patch >= 0
    mask = None
    if lower < decoder.layers and bool(tested.any()):
        whole = isinstance(pruning, OccamToken) and pruning.evaluators == "turn"
        first, last = (0, len(suffix)) if whole or question[0] == question[1] else question
        queries = registers + torch.arange(first, last, device=x.device)
        rows = decoder.rows(lower - 1, scored, positions, queries, cache)[0]
        evidence = TextEvidence(
            rows_TV=rows[:, : len(state)][:, tested], register_T=rows[:, len(state)] if registers else None
        )
        mask = strategy_for(pruning).stage2(evidence)
    lowered = clock()

    kept = torch.ones_like(tested)
    if mask is not None:
        kept[tested] = mask.keep
    if lower < decoder.layers:
        hidden = torch.cat([state.hidden[kept][None], hidden], dim=1)
        positions = torch.cat([state.positions[:, None, kept], positions], dim=2)
        late = planes[lower:] or [torch.zeros_like(x[None])] * len(state.planes)
        late = [torch.cat([plane[kept][None], own], dim=1) for plane, own in zip(state.planes, late, strict=True)]
        hidden = decoder.run_layers(hidden, lower, decoder.layers, cache, positions, planes=late)
    logits = decoder.logits(hidden[:, -1:])[0, 0]
    text, visual = len(suffix), int(tested.sum())
    upper = int((kept & tested).sum())
    return Prefilled(
        cache=cache,
        mask=mask,
        logits=logits,
        stats=(
            StageStats(stage="prefill_lower", started_s=started, ended_s=lowered, tokens_in=text, tokens_out=text),
            StageStats(stage="prefill_upper", started_s=lowered, ended_s=clock(), tokens_in=visual, tokens_out=upper),
        ),
    )


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
        if token == lm.prompt.end_id or step == most - 1:
            return
        x = decoder.embed(torch.tensor([[token]], device=device))
        positions = torch.full((decoder.axes, 1, 1), position + step, device=device)
        hidden = decoder.run_layers(x, 0, decoder.layers, prefilled.cache, positions)
        logits = decoder.logits(hidden)[0, 0]
