"""What is measured: an engine over a real model's dimensions or an embedded model, and questions with forced masks."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from occam.calibration import Calibration
from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.models.prompt import Prompt
from occam.tensors import PrefixState
from occam.types import FrameBatch
from pipelines.evaluation.clips import state_of
from tests.bench.forced import Forced, cut_of
from tests.bench.frames import noise
from tests.bench.operations import Operations, Views, our_operations
from tests.real_checkpoints import FAMILIES

NEURONS = tuple((block, 7 * block) for block in range(10))
"""As many as the paper takes, each in a block of its own, which costs most."""
QUESTIONS = ("what is the color of the ball", "what is the ball", "where does the ball go then", "what is it")
"""Of words that tokenizers of random and embedded models both have."""


def engine_of(model: str, folder: Path, args: argparse.Namespace, **config: Any) -> Engine:
    """The model that is named; where it is a real one's dimensions, random, and with register neurons.

    folder: where such a one is written; SystemExit for an embedded model without a calibration
    """
    real = FAMILIES.get(model)
    if real:
        real.write(folder, min(args.layers, real.layers))
    config = {"device": args.device, "dtype": args.dtype, **config}
    engine = Engine.load(EngineConfig(model=str(folder) if real else model, **config))
    info = engine.info
    if real:
        cut = real.cut if real.cut < info.layers else info.cut
        calibration = Calibration(
            weights=info.digest, cut=cut, register="neurons", neurons=NEURONS, lambda1=0.0, lambda2=0.0
        )
        return Engine(engine.lm.calibrated(calibration), engine.config)
    if info.calibration is None:
        raise SystemExit(f"{model} has no calibration: strategy occam cannot run.")
    return engine


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine, clips, and the forced strategy that questions about them are asked with."""

    engine: Engine
    pruning: Forced
    clips: tuple[FrameBatch, ...]

    @classmethod
    def of(cls, model: str, folder: Path, args: argparse.Namespace) -> "Subject":
        """As the options say; what can be measured of a model that is not embedded knows no words."""
        engine = engine_of(model, folder, args, chunk_frames=args.chunk_frames, threads=args.threads)
        count, size = args.frames or engine.info.frames, tuple(args.size)
        clips = tuple(noise(count, size, seed) for seed in range(args.clips))
        register = engine.info.calibration.register
        return cls(engine=engine, pruning=Forced(cut=cut_of(engine.info.layers), register=register), clips=clips)

    def question(self, number: int) -> str:
        """Of several lengths, in turn."""
        return QUESTIONS[number % len(QUESTIONS)]

    def state(self, clip: int = 0, pruning: Forced | None = None) -> PrefixState:
        """The clip's state, from its frames."""
        return state_of(self.engine, self.clips[clip], pruning or self.pruning)

    def asked(self, state: PrefixState, number: int = 0, new_tokens: int = 1, pruning: Forced | None = None) -> Generation:
        """A question over a state, not started."""
        sampling = SamplingParams(max_new_tokens=new_tokens)
        return self.engine.generation(state, self.question(number), pruning or self.pruning, sampling)

    def cold(self, clip: int = 0, pruning: Forced | None = None) -> Generation:
        """A clip's first question from frames to its first token."""
        generation = self.asked(self.state(clip, pruning), clip, pruning=pruning)
        self.engine.start([generation])
        return generation

    @cached_property
    def views(self) -> Views:
        """What the tower gets of the first clip."""
        shown = self.engine.lm.shown(self.clips[0])
        return Views.of(self.engine, *shown.shape)

    def operations(self, pruning: Forced | None = None) -> Operations:
        """Of the first clip's first question under a forced strategy."""
        engine, frames, pruning = self.engine, self.clips[0], pruning or self.pruning
        state = engine.begin(pruning)
        lengths = [len(state)]
        step = engine.config.chunk_frames
        for start in range(0, len(frames), step):
            state, _ = engine.append(state, frames.chunk(start, min(start + step, len(frames))), pruning)
            lengths.append(len(state) - sum(lengths))
        generation = self.asked(state, pruning=pruning)
        engine.start([generation])
        mask = generation.prefilled.mask
        assert mask is not None
        lengths.append(1 + len(generation.asked.suffix))
        dropped = len(mask.keep) - int(mask.keep.sum())
        return our_operations(engine, self.views, pruning.cut, lengths, state.stage1, sum(lengths) - dropped)


@contextmanager
def unhurried(engine: Engine) -> Iterator[None]:
    """While it lasts, clips cost their pixels once, and no answer ends before its last token."""
    adapter, known = type(engine.lm), {}
    preprocess = adapter._preprocess

    def remembered(lm: Any, media: FrameBatch) -> Any:
        key = (media.digest, media.offset, len(media))
        if key not in known:
            known[key] = preprocess(lm, media)
        return known[key]

    with mock.patch.object(adapter, "_preprocess", remembered), mock.patch.object(Prompt, "is_stop", lambda *_: False):
        yield


def weights_bytes(engine: Engine) -> int:
    """What one decoding step has to read: layers, last norm and head."""
    decoder = engine.lm.decoder
    parts: tuple[torch.nn.Module, ...] = (*decoder.model.layers, decoder.model.norm, decoder.head)
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())
