"""The engine: a loaded model that builds prefix states and answers questions over them, in one process.

state = engine.begin(pruning)
for chunk in chunks:
    state, stats = engine.append(state, chunk, pruning)
for piece in engine.stream(state, "What is this?", pruning, sampling): ...
state = engine.replay(state, [answer.turn])        # and the next question goes over this
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from occam.config import STRATEGIES, CDPruner, EngineConfig, OccamToken, Pruning, SamplingParams, check_kind
from occam.engine import generation as generating
from occam.engine import prefix
from occam.engine.decoding import SlotDecoding, decoding_of
from occam.engine.facts import key_facts
from occam.engine.generation import Generation, OnLogits
from occam.engine.plan import Plan, plan
from occam.engine.sharing import TowerLoad, shared, tower_load
from occam.engine.turn import Asked, prefill
from occam.errors import InvalidInput, NotCalibrated
from occam.models.base import ModelInfo, VideoLM
from occam.models.batches import OFTEN
from occam.models.registry import load_model
from occam.pruning import strategy_for
from occam.stats import Stage, StageStats
from occam.tensors import MediaTokens, MediumTokens, PrefixState
from occam.transfer import wait_for
from occam.types import Answer, FrameBatch, MediaKind, MediumShape, Turn

WARM_UP_SIZE = (224, 224)


def _ignore(logits: Tensor) -> None:
    del logits


class Engine:
    """One model on one device; not thread-safe: one thread at a time runs it."""

    def __init__(self, lm: VideoLM, config: EngineConfig, clock: prefix.Clock = time.monotonic) -> None:
        if config.chunk_frames % lm.info.group:
            raise InvalidInput(
                f"{lm.info.name} takes frames in groups of {lm.info.group}; chunk_frames must be a multiple of that, "
                f"got {config.chunk_frames}.",
                "chunk_frames",
            )
        self.lm = lm
        self.config = config
        self.clock = clock
        self.decode = decoding_of(lm.decoder, config.batch_sequences)

    @classmethod
    def load(cls, config: EngineConfig, clock: prefix.Clock = time.monotonic) -> "Engine":
        """Load the model that `config` names; UnknownModel, InvalidInput or NotCalibrated where that cannot be."""
        torch.set_num_threads(config.threads)
        engine = cls(load_model(config), config, clock)
        engine.pruning()
        return engine

    def over(self, lm: VideoLM) -> "Engine":
        """The same engine over another form of its model."""
        return Engine(lm, self.config, self.clock)

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.lm.info

    def pruning(self, strategy: str | None = None, /, **options: Any) -> Pruning:
        """The strategy a request names with its options (None leaves one open), calibrated defaults for `occam`.

        A lambda names `occam` too. NotCalibrated for that on a model without an artefact, or with one that lacks the
        neurons it names; InvalidInput for an unknown name, an option that the strategy has not, or one it lacks.
        """
        given = {name: value for name, value in options.items() if value is not None}
        calibration = self.info.calibration
        name = strategy or ("none" if calibration is None and not given else "occam")
        if name not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise InvalidInput(f"There is no strategy {name!r}; there are {known}.", "strategy")
        kind = STRATEGIES[name]
        wanted = {field.name: field for field in fields(kind)}
        for option in given:
            if option not in wanted:
                takes = ", ".join(wanted) or "no options"
                raise InvalidInput(f"Strategy {name!r} has no {option}; it takes {takes}.", option)
            check_kind(kind, option, given[option])
        if name == "occam":
            return self._calibrated(strategy, **given)
        if "cut" in wanted and wanted["cut"].default is MISSING:
            given = {"cut": calibration.cut if calibration else self.info.cut} | given
        for option, field in wanted.items():
            if option not in given and field.default is MISSING:
                raise InvalidInput(f"Strategy {name!r} needs {option}.", option)
        pruning = kind(**given)
        self._check_cuts(pruning)
        if strategy_for(pruning).merges and self.lm.decoder.axes > 1:
            raise InvalidInput(
                f"Strategy {name!r} cannot merge patches of {self.info.name}, whose positions have "
                f"{self.lm.decoder.axes} axes.",
                "merge",
            )
        return pruning

    @property
    def _named(self) -> str:
        """The model in words for whoever asks: not where it lies on this machine."""
        return Path(self.info.name).name

    def _calibrated(self, strategy: str | None, /, **options: Any) -> Pruning:
        """`occam` with the artefact's settings but for these; strategy: the name, if it was given."""
        calibration = self.info.calibration
        if calibration is None:
            raise NotCalibrated(
                f"Strategy 'occam' needs a calibration of {self._named!r}. Run `occam calibrate` on it.",
                next(iter(options), "strategy") if strategy is None else "strategy",
            )
        pruning = replace(calibration.defaults, **options)
        self._check_neurons(pruning)
        self._check_cuts(pruning)
        return pruning

    def _check_cuts(self, pruning: Pruning) -> None:
        """InvalidInput where the model has no layer behind a cut."""
        try:
            self.cuts(pruning)
        except ValueError as error:
            raise InvalidInput(f"Strategy {pruning.name!r}: {error}.", "cut") from error

    def cuts(self, pruning: Pruning) -> tuple[int, ...]:
        """Decoder layers before which it prunes, ascending."""
        return strategy_for(pruning).cuts(self.info.layers)

    def asked(self, pruning: Pruning, question: str) -> Pruning:
        """The strategy for this question: the same for all, but where it decides by the question before the decoder."""
        return replace(pruning, question=question) if isinstance(pruning, CDPruner) else pruning

    def chunk(self, pruning: Pruning, frames: int) -> int:
        """Frames of one `append`, of a medium that has `frames`."""
        return frames if strategy_for(pruning).whole else self.config.chunk_frames

    def _check_neurons(self, pruning: Pruning) -> None:
        """NotCalibrated where a register of neurons would have none: that is a zero token under a wrong name."""
        wanted = isinstance(pruning, OccamToken) and pruning.register == "neurons"
        if wanted and not (self.info.calibration and self.info.calibration.neurons):
            raise NotCalibrated(f"{self._named!r} has no register neurons. Run `occam calibrate` on it.", "register")

    def plan(
        self, media: Sequence[MediumShape], pruning: Pruning, system: str, questions: Sequence[str], first: bool = True
    ) -> Plan:
        """What media and questions about them will become, nothing run; see `occam.engine.plan`."""
        encoded = sum(self.visual_tokens(each.kind, len(each.pts_seconds), each.height, each.width) for each in media)
        return plan(self.lm, media, encoded, pruning, system, questions, first)

    def key_facts(self, pruning: Pruning) -> dict[str, str | int | float]:
        """Every fact that two runs must share for their prefix states to be interchangeable; lambda2 is not one."""
        return key_facts(self.lm, self.config, pruning)

    def visual_tokens(self, kind: MediaKind, frames: int, height: int, width: int) -> int:
        """Patch tokens that the tower makes of a medium, before stage I: what its answers will call `encoded`.

        height, width: of an upright frame, in pixels
        """
        together = min(frames, self.info.group)
        blank = FrameBatch(
            frames=np.zeros((together, height, width, 3), np.uint8),
            pts_seconds=np.zeros(together),
            indices=np.arange(together),
            digest="",
            kind=kind,
            planned=frames,
        )
        return int(self.lm.shown(blank).sum()) * -(-frames // together)

    @torch.inference_mode()
    def begin(self, pruning: Pruning, system: str = "") -> PrefixState:
        """The state of the text in front of the media.

        QuestionTooLong where that passes the model's positions; NotCalibrated for a register of neurons without any.
        """
        self._check_neurons(pruning)
        return prefix.begin(self.lm, pruning, system)

    def append(
        self, state: PrefixState, media: FrameBatch, pruning: Pruning
    ) -> tuple[PrefixState, tuple[StageStats, ...]]:
        """The state with one chunk of frames, or one image, behind it: encoded, then put through the lower layers.

        Raises what `encode` and `extend` raise.
        """
        tokens, encoding = self.encode(media, pruning)
        grown, prefill = self.extend(state, tokens, begins=media.offset == 0)
        return grown, (encoding, prefill)

    def state_of(self, media: FrameBatch, pruning: Pruning) -> PrefixState:
        """The state of one video or image, in chunks; raises what `begin` and `append` raise."""
        state, step = self.begin(pruning), self.chunk(pruning, len(media))
        for start in range(0, len(media), step):
            state, _ = self.append(state, media.chunk(start, min(start + step, len(media))), pruning)
        return state

    def encode(self, media: FrameBatch, pruning: Pruning) -> tuple[MediaTokens, StageStats]:
        """What the language model gets of one chunk, whatever stands in front of it: tower, stage I, projector.

        InvalidInput for a kind of media that model or strategy do not take.
        """
        return self.encode_together([(media, pruning)])[0]

    @torch.inference_mode()
    def encode_together(self, chunks: Sequence[tuple[FrameBatch, Pruning]]) -> list[tuple[MediaTokens, StageStats]]:
        """What `encode` gives of each chunk, bit for bit, from batches of the tower that they share (see `sharing`)."""
        for media, pruning in chunks:
            self._check_media(media, pruning)
        started = self.clock()
        encoded = prefix.encode(self.lm, chunks)
        stats = shared([self._stage("encode", started, tokens.encoded, len(tokens.ids)) for tokens in encoded])
        return list(zip(encoded, stats, strict=True))

    def tower_load(self, media: FrameBatch, pruning: Pruning) -> TowerLoad:
        """What a chunk asks of the tower, for `sharing`; raises what `encode` raises, and is safe in any thread."""
        self._check_media(media, pruning)
        return tower_load(self.lm, media, pruning)

    def _check_media(self, media: FrameBatch, pruning: Pruning) -> None:
        if media.kind not in self.info.media:
            taken = " and ".join(self.info.media)
            raise InvalidInput(f"{self.info.name} takes {taken} input, not {media.kind}.", "model")
        strategy = strategy_for(pruning)
        if media.kind not in strategy.media:
            taken = " and ".join(strategy.media)
            raise InvalidInput(f"Strategy {pruning.name!r} prunes {taken} input, not {media.kind}.", "strategy")
        if strategy.whole and media.offset:
            raise InvalidInput(f"Strategy {pruning.name!r} wants all frames of a video at once.", "chunk_frames")

    @torch.inference_mode()
    def extend(self, state: PrefixState, tokens: MediaTokens, begins: bool) -> tuple[PrefixState, StageStats]:
        """The state with an encoded chunk behind it; the only way a state gets media.

        tokens: what `encode` gave, on any device; begins: whether a video or image begins with this chunk. The same
        chunks give the same state, bit for bit. Where the unpruned conversation passes the model's positions,
        VideoTooLarge, or QuestionTooLong if most of it is the text in front.
        """
        started = self.clock()
        grown = prefix.extend(self.lm, state, tokens.to(self.config.device), begins)
        # What fetching must beat, and what others would else be charged with, are these seconds and not the launches'.
        wait_for(self.config.device)
        return grown, self._stage("prefill_lower", started, len(tokens.ids), len(tokens.ids))

    def _stage(self, stage: Stage, started: float, tokens_in: int, tokens_out: int) -> StageStats:
        return StageStats(
            stage=stage, started_s=started, ended_s=self.clock(), tokens_in=tokens_in, tokens_out=tokens_out
        )

    def fits(self, pruning: Pruning, state: PrefixState) -> bool:
        """Whether a state out of a cache is of this engine's shape and length: another would end the request later."""
        own = prefix.empty_state(self.lm, pruning)
        times = bool(state.view_pts.isfinite().all())
        return state.shape == own.shape and state.next_position <= self.info.max_positions and times

    def fits_media(self, medium: MediumTokens) -> bool:
        """The same of a medium's encoded chunks."""
        decoder = self.lm.decoder
        weight, axes = decoder.model.embed_tokens.weight, decoder.axes
        return sum(chunk.length for chunk in medium.chunks) <= self.info.max_positions and all(
            (chunk.embeddings.dtype, chunk.embeddings.shape[1]) == (weight.dtype, weight.shape[1])
            and (len(chunk.positions), len(chunk.planes)) == (axes, decoder.levels)
            and len(chunk.register_sum) == 1 + decoder.levels
            and bool(chunk.pts_seconds.isfinite().all())
            for chunk in medium.chunks
        )

    @torch.inference_mode()
    def replay(self, state: PrefixState, turns: Sequence[Turn]) -> PrefixState:
        """The state with finished turns behind it, from their ids; a state out of a cache comes to the device here.

        QuestionTooLong where the unpruned conversation passes the model's positions.
        """
        state = state.to(self.config.device)
        for finished in turns:
            state = prefix.append_turn(self.lm, state, finished)
        return state

    def turn_of(self, question: str, answer: str, first: bool) -> Turn:
        """A turn somebody else remembers as text (a client that resends its messages), as ids."""
        suffix, _ = self.lm.prompt.turn_ids(question, first)
        return Turn(
            suffix_ids=tuple(suffix),
            generated_ids=tuple(self.lm.prompt.answer_ids(answer)),
            closing_ids=(self.lm.prompt.end_id,),
        )

    def ask(
        self,
        state: PrefixState,
        question: str,
        pruning: Pruning,
        sampling: SamplingParams,
        on_logits: OnLogits = _ignore,
    ) -> Answer:
        """The answer, without its stream."""
        return self.answers([self.generation(state, question, pruning, sampling, on_logits)])[0]

    def stream(
        self,
        state: PrefixState,
        question: str,
        pruning: Pruning,
        sampling: SamplingParams,
        on_logits: OnLogits = _ignore,
    ) -> Iterator[str | Answer]:
        """Pieces of text as they are decoded, which together are the answer's, then the answer."""
        generation = self.generation(state, question, pruning, sampling, on_logits)
        self.start([generation])
        yield from generation.pieces()
        while (answer := _answer_of(generation)) is None:
            self.step([generation])
            yield from generation.pieces()
        yield answer

    def generation(
        self,
        state: PrefixState,
        question: str,
        pruning: Pruning,
        sampling: SamplingParams,
        on_logits: OnLogits = _ignore,
    ) -> Generation:
        """A question that can be answered together with others; nothing is computed yet.

        on_logits: called with the float32 logits [vocabulary] of every generated position. QuestionTooLong where the
        unpruned conversation and `max_new_tokens` pass the model's positions.
        """
        state = state.to(self.config.device)  # one out of a cache lies on the CPU
        suffix, span = self.lm.prompt.turn_ids(question, first=state.turns == 0)
        prefix.check_length(self.lm, state, len(suffix), "question", sampling.max_new_tokens)
        asked = Asked(state=state, suffix=tuple(suffix), question=span, pruning=pruning, most=sampling.max_new_tokens)
        return Generation(self.lm, asked, sampling, on_logits, self.clock)

    def start(self, generations: Sequence[Generation]) -> None:
        """The first token of each, those that prune before the same layers in one pass."""
        generating.start(self.lm, generations, self.clock)

    def step(self, generations: Sequence[Generation]) -> None:
        """One more token of each in one pass; others may join or leave between two steps."""
        generating.step(self.decode, generations, self.clock)

    def answers(self, generations: Sequence[Generation]) -> list[Answer]:
        """All of them, answered together; the first error of any."""
        self.start(generations)
        while running := [each for each in generations if _answer_of(each) is None]:
            self.step(running)
        return [each.answer for each in generations if each.answer is not None]

    def warm_up(self) -> None:
        """Run one tiny conversation, so that the first request does not pay for lazy initialisation.

        Where steps and batches of the tower are recorded it is about a clip of the usual length, for the first requests
        would pay for that too.
        """
        pruning, records = self.pruning(), isinstance(self.decode, SlotDecoding)
        least = self.config.chunk_frames
        count = (max(least, self.info.frames) if records else least) if "video" in self.info.media else 1
        frames = FrameBatch(
            frames=np.zeros((count, *WARM_UP_SIZE, 3), dtype=np.uint8),
            pts_seconds=np.arange(count, dtype=np.float64),
            indices=np.arange(count),
            digest="",
            kind=self.info.media[0],
        )
        state = self.state_of(frames, pruning)
        if self.config.device.startswith("cuda"):
            for _ in range(OFTEN):
                self.encode(frames.chunk(0, min(least, count)), pruning)
        self.ask(state, "what", pruning, SamplingParams(max_new_tokens=1))
        if records:
            self._step_together(state, pruning)

    @torch.inference_mode()
    def _step_together(self, state: PrefixState, pruning: Pruning) -> None:
        """One step of each power of two of answers, up to as many as may run; the tokens are any."""
        most = self.config.batch_sequences
        asked = self.generation(state, "what", pruning, SamplingParams()).asked
        running = [prefill(self.lm, [asked], self.clock)[0][0].kv for _ in range(most)]
        first = state.next_position + len(asked.suffix)
        for number in range((most - 1).bit_length() + 1):
            together = running[: 1 << number]
            logits_BV = self.decode(together, [0] * len(together), [first + number] * len(together))
            logits_BV.argmax(dim=-1).tolist()  # the next step may begin behind that only


def _answer_of(generation: Generation) -> Answer | None:
    """None while there is none; raises what ended it instead."""
    if generation.error:
        raise generation.error
    return generation.answer
