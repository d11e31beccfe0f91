"""The engine: a loaded model that builds prefix states and answers questions over them, in one process.

state = engine.begin(pruning)
for chunk in chunks:
    state, stats = engine.append(state, chunk, pruning)
for piece in engine.stream(state, "What is this?", pruning, sampling): ...
state = engine.replay(state, [answer.turn])        # and the next question goes over this
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, SamplingParams
from occam.engine import prefix, turn
from occam.engine.sampling import Sampler
from occam.errors import InvalidInput, NotCalibrated
from occam.models.base import ModelInfo, VideoLM
from occam.models.registry import load_model
from occam.stats import StageStats, VisualTokenCounts
from occam.tensors import PrefixState, RetentionMask
from occam.types import Answer, Evidence, FrameBatch, FrameEvidence, Turn


def _ignore(logits: Tensor) -> None:
    del logits


class Engine:
    """One model on one device; not thread-safe: one thread at a time runs it."""

    def __init__(self, lm: VideoLM, config: EngineConfig, clock: prefix.Clock = time.monotonic) -> None:
        self.lm = lm
        self.config = config
        self.clock = clock

    @classmethod
    def load(cls, config: EngineConfig, clock: prefix.Clock = time.monotonic) -> "Engine":
        """Load the model that `config` names; UnknownModel or InvalidInput where that cannot be."""
        torch.set_num_threads(config.threads)
        return cls(load_model(config), config, clock)

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.lm.info

    def pruning(
        self, strategy: str | None = None, lambda1: float | None = None, lambda2: float | None = None
    ) -> Pruning:
        """The strategy a request names, with the model's calibrated defaults for what it leaves open.

        NotCalibrated for `occam` on a model without an artefact; InvalidInput for an unknown name.
        """
        calibration = self.info.calibration
        name = strategy or ("none" if calibration is None else "occam")
        if name == "none":
            return NoPruning()
        if name != "occam":
            raise InvalidInput(f"There is no strategy {name!r}; there are 'occam' and 'none'.", "strategy")
        if calibration is None:
            raise NotCalibrated(
                f"Strategy 'occam' needs a calibration of {self.info.name!r}. Run `occam calibrate {self.info.name}`.",
                "strategy",
            )
        defaults = calibration.defaults
        return replace(
            defaults,
            lambda1=defaults.lambda1 if lambda1 is None else lambda1,
            lambda2=defaults.lambda2 if lambda2 is None else lambda2,
        )

    def key_facts(self, pruning: Pruning) -> dict[str, str | int | float]:
        """Every fact that two runs must share for their prefix states to be interchangeable; lambda2 is not one."""
        info, config = self.info, self.config
        facts: dict[str, str | int | float] = {
            "model": info.digest,
            "text": info.text_digest,
            "preprocessing": info.preprocessing,
            "device": torch.device(config.device).type,
            "dtype": config.dtype,
            "threads": config.threads,
            "chunk_frames": config.chunk_frames,
            "torch": str(torch.__version__),
            "strategy": pruning.name,
        }
        if isinstance(pruning, OccamToken):
            facts |= {
                "cut": pruning.cut,
                "lambda1": pruning.lambda1,
                "register": pruning.register,
                "placement": pruning.placement,
                "keep_cls": pruning.keep_cls,
                "neurons": info.calibration.digest if info.calibration else "",
            }
        return facts

    @torch.inference_mode()
    def begin(self, pruning: Pruning, system: str = "") -> PrefixState:
        """The state of the text in front of the media."""
        return prefix.begin(self.lm, pruning, system)

    @torch.inference_mode()
    def append(
        self, state: PrefixState, frames: FrameBatch, pruning: Pruning
    ) -> tuple[PrefixState, tuple[StageStats, ...]]:
        """The state with one chunk of frames behind it; the only way a state gets frames.

        VideoTooLarge where the unpruned frames pass the model's positions.
        """
        return prefix.append_frames(self.lm, state, frames, pruning, self.clock)

    @torch.inference_mode()
    def replay(self, state: PrefixState, turns: Sequence[Turn]) -> PrefixState:
        """The state with finished turns behind it, from their ids; a state out of a cache comes to the device here."""
        state = state.to(self.config.device)
        for finished in turns:
            state = prefix.append_turn(self.lm, state, finished)
        return state

    def turn_of(self, question: str, answer: str, first: bool) -> Turn:
        """A turn somebody else remembers as text (a client that resends its messages), as ids."""
        suffix, _ = self.lm.turn_ids(question, first)
        return Turn(
            suffix_ids=tuple(suffix), generated_ids=tuple(self.lm.answer_ids(answer)), closing_ids=(self.lm.end_id,)
        )

    def ask(
        self,
        state: PrefixState,
        question: str,
        pruning: Pruning,
        sampling: SamplingParams,
        on_logits: Callable[[Tensor], None] = _ignore,
    ) -> Answer:
        """The answer, without its stream."""
        events = self.stream(state, question, pruning, sampling, on_logits)
        return next(event for event in events if isinstance(event, Answer))

    def stream(
        self,
        state: PrefixState,
        question: str,
        pruning: Pruning,
        sampling: SamplingParams,
        on_logits: Callable[[Tensor], None] = _ignore,
    ) -> Iterator[str | Answer]:
        """Pieces of text as they are decoded, then the answer.

        on_logits: called with the float32 logits [vocabulary] of every generated position. QuestionTooLong where the
        unpruned conversation and `max_new_tokens` pass the model's positions.
        """
        first = not bool((state.ids == self.lm.end_id).any())
        suffix, span = self.lm.turn_ids(question, first)
        prefix.check_length(self.lm, state, len(suffix), sampling.max_new_tokens)
        with torch.inference_mode():
            prefilled = turn.prefill(self.lm, state, suffix, span, pruning, self.clock)
        started = self.clock()
        ids: list[int] = []
        text = ""
        position = state.next_position + len(suffix)
        tokens = turn.decode(self.lm, prefilled, position, Sampler(sampling), sampling.max_new_tokens, on_logits)
        while (token := _next_token(tokens)) is not None:
            ids.append(token)
            longer = self.lm.text(ids)
            # A character of several tokens decodes to U+FFFD until its last one.
            if len(longer) > len(text) and longer.startswith(text) and not longer.endswith("\ufffd"):
                yield longer[len(text) :]
                text = longer
        ended = ids[-1] == self.lm.end_id
        generated = StageStats(stage="generate", started_s=started, ended_s=self.clock(), tokens_out=len(ids))
        yield Answer(
            text=self.lm.text(ids),
            turn=Turn(
                suffix_ids=tuple(suffix), generated_ids=tuple(ids), closing_ids=() if ended else (self.lm.end_id,)
            ),
            finish_reason="stop" if ended else "length",
            prompt_tokens=len(state) + len(suffix),
            reused_tokens=len(state),
            completion_tokens=len(ids),
            visual_tokens=_counts(state, prefilled.mask),
            evidence=_evidence(state, prefilled.mask),
            stats=(*prefilled.stats, generated),
        )

    def warm_up(self) -> None:
        """Run one tiny conversation, so that the first request does not pay for lazy initialisation."""
        pruning = self.pruning()
        size = self.lm.frame_size
        frames = FrameBatch(
            frames=np.zeros((self.config.chunk_frames, size, size, 3), dtype=np.uint8),
            pts_seconds=np.arange(self.config.chunk_frames, dtype=np.float64),
            indices=np.arange(self.config.chunk_frames),
            digest="",
        )
        state, _ = self.append(self.begin(pruning), frames, pruning)
        self.ask(state, "what", pruning, SamplingParams(max_new_tokens=1))


def _next_token(tokens: Iterator[int]) -> int | None:
    """One step of decoding; inference mode is left between steps, since a generator may be resumed anywhere."""
    with torch.inference_mode():
        return next(tokens, None)


def _counts(state: PrefixState, mask: RetentionMask | None) -> VisualTokenCounts:
    stage1 = state.stage1
    return VisualTokenCounts(
        encoded=state.encoded, stage1=stage1, stage2=stage1 if mask is None else int(mask.keep.sum())
    )


def _evidence(state: PrefixState, mask: RetentionMask | None) -> Evidence:
    """The masks as per-frame grids; without stage II every stage I survivor is kept and has no score."""
    rows, columns = state.grid
    frames, patches = state.frame_pts.shape[0], rows * columns
    tested = state.patch >= 0
    where = (state.frame[tested] * patches + state.patch[tested]).cpu()
    stage1 = torch.zeros(frames * patches, dtype=torch.bool)
    stage1[where] = True
    stage2, scores = stage1.clone(), torch.full((frames * patches,), torch.nan)
    if mask is not None:
        stage2[where] = mask.keep.cpu()
        scores[where] = mask.scores.cpu()
    grids = (array.view(frames, rows, columns).numpy() for array in (stage1, stage2, scores))
    return Evidence(
        threshold=float("nan") if mask is None else float(mask.threshold),
        frames=tuple(
            FrameEvidence(
                index=int(index),
                pts_s=float(pts),
                of=patches,
                grid=(rows, columns),
                stage1=one,
                stage2=two,
                scores=score,
            )
            for index, pts, one, two, score in zip(state.frame_index, state.frame_pts, *grids, strict=True)
        ),
    )
