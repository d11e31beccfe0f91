"""Answers in the making: many at once, a token each in one pass, joining and leaving between any two passes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from occam.config import SamplingParams
from occam.engine.decoding import Decode
from occam.engine.evidence import counts_of, evidence_of
from occam.engine.prefix import Clock
from occam.engine.sampling import choose, seeded
from occam.engine.turn import Asked, Prefilled, prefill
from occam.models.base import VideoLM
from occam.models.packing import SequenceKV
from occam.pruning import strategy_for
from occam.stats import StageStats
from occam.types import Answer, Turn

OnLogits = Callable[[Tensor], None]


class Generation:
    """One question on its way to its answer; `start` gives its first token, every `step` one more.

    answer: None until it is finished; error: what ended it instead, and it alone
    busy_s: seconds of the passes so far, those that it shared with others divided among them
    """

    def __init__(self, lm: VideoLM, asked: Asked, sampling: SamplingParams, on_logits: OnLogits, clock: Clock) -> None:
        """on_logits: called with the float32 logits [vocabulary] of every generated position."""
        self.asked = asked
        self.sampling = sampling
        self.busy_s = 0.0
        self._lm = lm
        self._on_logits = on_logits
        self._clock = clock
        self._prefilled: Prefilled | None = None
        self._clear()

    @property
    def prefilled(self) -> Prefilled:
        """Behind `start`; when it has ended, without keys and values."""
        if self._prefilled is None:
            raise ValueError("this question has not been started")
        return self._prefilled

    @property
    def position(self) -> int:
        """Of the last token, unpruned."""
        return self.asked.state.next_position + len(self.asked.suffix) + len(self.ids) - 1

    @property
    def tokens(self) -> int:
        """Of its state and its question: what prefilling it takes at most."""
        return len(self.asked.state) + len(self.asked.suffix)

    def begin(self, prefilled: Prefilled) -> None:
        """Take what the question's own pass gave, and forget an earlier start that failed behind it."""
        self._clear()
        self._prefilled = prefilled

    def _clear(self) -> None:
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.chance = seeded(self.sampling)
        self.ids: list[int] = []
        self._text = ""
        self._pieces: list[str] = []
        self._started_s = self._clock()

    def take(self, token: int, logits: Tensor) -> None:
        """The next token, chosen by these logits [vocabulary]."""
        self._on_logits(logits)
        self.ids.append(token)
        prompt = self._lm.prompt
        text, ended = prompt.text(self.ids), prompt.is_stop(token)
        last = ended or len(self.ids) == self.asked.most
        # A character of several tokens decodes to U+FFFD until its last one.
        if (last or not text.endswith("\ufffd")) and (piece := _behind(self._text, text)):
            self._pieces.append(piece)
            self._text = text
        if last:
            self.answer = self._finished(text, ended)
            self.forget()

    def fail(self, error: Exception) -> None:
        """End it without an answer."""
        self.error = error
        self.forget()

    def forget(self) -> None:
        """Give up keys and values: nobody goes on with them, and whoever awaits the answer may hold this for long."""
        if self._prefilled:
            self._prefilled = replace(self._prefilled, kv=SequenceKV(0, room=0))

    def pieces(self) -> list[str]:
        """The pieces of text since this was last asked; all of them together are the answer's text."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _finished(self, text: str, ended: bool) -> Answer:
        state, suffix, ids, end_id = self.asked.state, self.asked.suffix, self.ids, self._lm.prompt.end_id
        # A stop that is not the turn's own end is none of its text: the turn is closed as the template closes one.
        spoken, closing = (ids, ()) if ids[-1] == end_id else (ids[:-1] if ended else ids, (end_id,))
        mask = self.prefilled.mask
        prefill_s = sum(stage.work_s for stage in self.prefilled.stats)
        generated = StageStats(
            stage="generate",
            started_s=self._started_s,
            ended_s=self._clock(),
            tokens_out=len(ids),
            shared_s=max(0.0, self.busy_s - prefill_s),
        )
        return Answer(
            text=text,
            turn=Turn(suffix_ids=suffix, generated_ids=tuple(spoken), closing_ids=closing),
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(state) + len(suffix),
            reused_tokens=len(state),
            completion_tokens=len(ids),
            visual_tokens=counts_of(state, mask),
            evidence=evidence_of(state, mask),
            busy_s=self.busy_s,
            stats=(*self.prefilled.stats, generated),
        )


@torch.inference_mode()
def start(lm: VideoLM, generations: Sequence[Generation], clock: Clock) -> None:
    """Prefill questions and choose their first tokens; those that prune before the same layers share a pass."""
    for together in _by_cuts(lm, generations):
        started = clock()
        prefilled, logits_BV = prefill(lm, [generation.asked for generation in together], clock)
        for generation, own in zip(together, prefilled, strict=True):
            generation.begin(own)
        _take(together, logits_BV, started, clock)


@torch.inference_mode()
def step(decode: Decode, generations: Sequence[Generation], clock: Clock) -> None:
    """One more token of each, all in one pass; none of them may have its answer yet."""
    started = clock()
    logits_BV = decode(
        [generation.prefilled.kv for generation in generations],
        [generation.ids[-1] for generation in generations],
        [generation.position for generation in generations],
    )
    _take(generations, logits_BV, started, clock)


def _by_cuts(lm: VideoLM, generations: Sequence[Generation]) -> list[list[Generation]]:
    groups: dict[tuple[int, ...], list[Generation]] = {}
    for generation in generations:
        cuts = strategy_for(generation.asked.pruning).cuts(lm.decoder.layers)
        groups.setdefault(cuts, []).append(generation)
    return list(groups.values())


def _take(generations: Sequence[Generation], logits_BV: Tensor, started: float, clock: Clock) -> None:
    """Choose the next token of each, and divide the pass's time among them."""
    tokens = choose(logits_BV, [each.sampling for each in generations], [each.chance for each in generations])
    share = (clock() - started) / len(generations)
    for generation, token, logits_V in zip(generations, tokens, logits_BV, strict=True):
        generation.busy_s += share
        try:
            generation.take(token, logits_V)
        except Exception as error:  # noqa: BLE001 - what is wrong with one answer must not end the others
            generation.fail(error)


def _behind(text: str, longer: str) -> str:
    """What `longer` has behind `text`; nothing where it begins otherwise."""
    return longer.removeprefix(text) if longer.startswith(text) else ""
