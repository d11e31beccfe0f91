"""What one worker's questions took and kept lately, from which it says what others will."""

from collections import OrderedDict, deque
from collections.abc import Sequence

from occam.engine.plan import Plan
from occam.kv.break_even import BreakEven, Pace
from occam.stats import StageStats, VisualTokenCounts
from services.messages import Forecast, Medium, PruningChoice

# Seconds of a frame decoded, a patch encoded and a token prefilled, as long as nothing was measured.
_DECODE_S, _ENCODE_S, _PREFILL_S = 0.01, 0.001, 0.0005
_ANSWERS = 64  # that an average is of
_PRUNINGS = 64  # that averages are kept of


class Recent:
    """Paces of stages, and the shares of tokens that each pruning kept; for one event loop.

    break_even: knows what states take, waiting for frames included
    """

    def __init__(self, break_even: BreakEven) -> None:
        self._break_even = break_even
        self._decode, self._encode = Pace(), Pace()
        self._kept: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()

    def worked(self, media: Sequence[Medium], stats: Sequence[StageStats]) -> None:
        """Learn what a state took; of several media it is not known which were decoded for it."""
        decode_s = sum(stage.seconds for stage in stats if stage.stage == "decode")
        if decode_s and len(media) == 1:
            self._decode.observe(decode_s, len(media[0].indices))
        encodings = [stage for stage in stats if stage.stage == "encode"]
        self._encode.observe(sum(stage.seconds for stage in encodings), sum(stage.tokens_in for stage in encodings))

    def kept(self, pruning: PruningChoice, tokens: VisualTokenCounts) -> None:
        """Learn what shares of its tokens an answer kept."""
        if tokens.encoded:
            shares = self._kept.setdefault(_name(pruning), deque(maxlen=_ANSWERS))
            shares.append((tokens.stage1 / tokens.encoded, tokens.stage2 / tokens.encoded))
            self._kept.move_to_end(_name(pruning))
            if len(self._kept) > _PRUNINGS:
                self._kept.popitem(last=False)

    def forecast(self, plan: Plan, pruning: PruningChoice, frames: int, past: int, cached: bool) -> Forecast:
        """What questions take whose state is `cached`, or has to be made of `frames`; past: tokens of earlier turns."""
        shares = self._kept.get(_name(pruning), ())
        stage1, stage2 = ([share[stage] for share in shares] for stage in (0, 1))
        kept = plan.encoded if not stage1 else round(plan.encoded * sum(stage1) / len(stage1))
        encoded, decoded = (0, 0) if cached else (plan.encoded, frames)
        state = plan.beside + kept
        paces = (self._decode.seconds(decoded), self._encode.seconds(encoded), self._break_even.encode_s(encoded))
        prefill_s = self._break_even.prefill_s(1)
        decode_s, encode_s, both_s = paces
        if decode_s is None or encode_s is None:
            decode_s, encode_s = decoded * _DECODE_S, encoded * _ENCODE_S
        return Forecast(
            encoded=plan.encoded,
            stage1=kept if stage1 else None,
            stage2=round(plan.encoded * sum(stage2) / len(stage2)) if stage2 else None,
            state_tokens=state,
            turns=plan.turns,
            past=past,
            cached=cached,
            kv_bytes=state * plan.token_nbytes,
            decode_s=decode_s,
            encode_s=encode_s,
            both_s=decode_s + encode_s if both_s is None else both_s,
            token_s=_PREFILL_S if prefill_s is None else prefill_s,
            measured=prefill_s is not None and None not in paces,
        )


def _name(pruning: PruningChoice) -> str:
    return repr((pruning.strategy, sorted(pruning.options.items())))
