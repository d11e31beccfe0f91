"""What is measured: an engine over a real model's dimensions or an embedded model, and questions with forced masks."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from occam.calibration import Calibration
from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.models.batches import OFTEN, Batches, batches_of
from occam.models.prompt import Prompt
from occam.tensors import PrefixState
from occam.types import FrameBatch
from tests.bench.forced import Forced, cut_of
from tests.bench.frames import noise
from tests.bench.operations import Operations, Views, our_operations
from tests.real_checkpoints import FAMILIES

NEURONS = tuple((block, 7 * block) for block in range(10))
"""As many as the paper takes, each in a block of its own, which costs most."""
QUESTIONS = ("what is the color of the ball", "what is the ball", "where does the ball go then", "what is it")
"""Of words that tokenizers of random and embedded models both have."""


def config_of(model: str, args: argparse.Namespace, **more: Any) -> EngineConfig:
    """How the options say that a model runs."""
    how = {name: getattr(args, name) for name in ("device", "dtype", "quantization", "threads")}
    return EngineConfig(model=model, **how | more)


def engine_of(model: str, folder: Path, args: argparse.Namespace, **config: Any) -> Engine:
    """The model that is named; where it is a real one's dimensions, random, and with register neurons.

    folder: where such a one is written; SystemExit for an embedded model without a calibration
    """
    real = FAMILIES.get(model)
    if real:
        real.write(folder, min(args.layers, real.layers))
    engine = Engine.load(config_of(str(folder) if real else model, args, **config))
    info = engine.info
    if real:
        cut = real.cut if real.cut < info.layers else info.cut
        calibration = Calibration(
            weights=info.digest, cut=cut, register="neurons", neurons=NEURONS, lambda1=0.0, lambda2=0.0
        )
        return engine.over(engine.lm.calibrated(calibration))
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
        """As the options say."""
        engine = _unbounded(engine_of(model, folder, args, chunk_frames=args.chunk_frames))
        count, size = args.frames or engine.info.frames, tuple(args.size)
        clips = tuple(noise(count, size, seed) for seed in range(args.clips))
        register = engine.info.calibration.register
        return cls(engine=engine, pruning=Forced(cut=cut_of(engine.info.layers), register=register), clips=clips)

    def question(self, number: int) -> str:
        """Of several lengths, in turn."""
        return QUESTIONS[number % len(QUESTIONS)]

    def state(self, clip: int = 0) -> PrefixState:
        """The clip's state, from its frames."""
        return self.engine.state_of(self.clips[clip], self.pruning)

    def asked(self, state: PrefixState, number: int = 0, new_tokens: int = 1) -> Generation:
        """A question over a state, not started."""
        sampling = SamplingParams(max_new_tokens=new_tokens)
        return self.engine.generation(state, self.question(number), self.pruning, sampling)

    def cold(self) -> Generation:
        """The first clip's question, from frames to its first token."""
        generation = self.asked(self.state())
        self.engine.start([generation])
        return generation

    @property
    def views(self) -> Views:
        """What the tower gets of a clip."""
        return Views.of(self.engine, *self.engine.lm.shown(self.clips[0]).shape)

    def operations(self) -> Operations:
        """Of the first clip's question, by the tokens that its masks leave."""
        engine, frames = self.engine, self.clips[0]
        state = engine.begin(self.pruning)
        lengths = [len(state)]
        step = engine.config.chunk_frames
        for start in range(0, len(frames), step):
            state, _ = engine.append(state, frames.chunk(start, min(start + step, len(frames))), self.pruning)
            lengths.append(len(state) - sum(lengths))
        generation = self.asked(state)
        engine.start([generation])
        mask = generation.prefilled.mask
        assert mask is not None, "a forced strategy has a cut"
        lengths.append(1 + len(generation.asked.suffix))
        upper = sum(lengths) - int((~mask.keep).sum())
        return our_operations(engine, self.views, self.pruning.cut, lengths, state.stage1, upper)


def chunked(engine: Engine, frames: int) -> Engine:
    """The same in chunks of so many frames, and in the batches of the tower that go with them."""
    config = replace(engine.config, chunk_frames=frames)
    return Engine(replace(engine.lm, batches=batches_of(config, engine.info.group)), config, engine.clock)


def launched(engine: Engine) -> Engine:
    """The same with no batch of the tower recorded: a replay runs nothing that a stopwatch could stand in."""
    views = engine.lm.batch_views("video")
    return engine.over(replace(engine.lm, batches=Batches(views)))


def record(subject: Subject) -> None:
    """Run the tower until its batches are recorded where they ever are, as in a worker that has been asked before."""
    engine = subject.engine
    if engine.config.device.startswith("cuda"):
        for _ in range(OFTEN):
            engine.encode(subject.clips[0].chunk(0, engine.config.chunk_frames), subject.pruning)


def _unbounded(engine: Engine) -> Engine:
    """Without the model's bound of positions, which is none of speed: clips may be of any length."""
    lm = engine.lm
    return engine.over(replace(lm, info=replace(lm.info, max_positions=sys.maxsize)))


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

    with (
        mock.patch.object(adapter, "_preprocess", remembered),
        mock.patch.object(Prompt, "is_stop", return_value=False),
    ):
        yield


def weights_bytes(engine: Engine) -> int:
    """What one decoding step has to read: layers, last norm and head."""
    decoder = engine.lm.decoder
    parts: tuple[torch.nn.Module, ...] = (*decoder.model.layers, decoder.model.norm, decoder.head)
    return sum(tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers()))


def precision(args: argparse.Namespace) -> str:
    """In words, what both sides compute in."""
    return str(args.dtype) if args.quantization == "none" else f"{args.dtype}, linear maps {args.quantization}"


def multiplied(engine: Engine) -> torch.dtype:
    """What its linear maps multiply."""
    dtype: torch.dtype = torch.int8 if engine.config.quantization == "int8" else engine.lm.model.dtype
    return dtype
