"""Seconds of one question as ratios to the stock model's, all measured in one run, medians of repeats.

Rival: stock `transformers` generating over the whole prompt. Floor: a follow-up with no video in front of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from occam.config import EngineConfig, NoPruning, Pruning, SamplingParams
from occam.engine import Engine
from occam.kv.codec import decode, encode
from occam.types import FrameBatch
from tests.bench.frames import noise
from tests.bench.subject import precision

MODELS = ("tiny-video-llava",)
QUESTION, FOLLOW_UP = "what color is the star", "how many objects are there"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument("--new-tokens", type=int, default=4)


def measure(model: str, args: argparse.Namespace) -> None:
    """Measure and print one table."""
    engine = Engine.load(
        EngineConfig(model=model, device=args.device, dtype=args.dtype, quantization=args.quantization, chunk_frames=8)
    )
    sampling = SamplingParams(max_new_tokens=args.new_tokens)
    edge = engine.lm.pixels.crop
    frames = noise(engine.info.frames, (edge, edge))
    rows = {"stock transformers, whole prompt": stock(engine, frames, args.new_tokens)}
    for pruning in (NoPruning(), engine.pruning()):
        rows |= ours(engine, frames, pruning, sampling)
    text_only = engine.begin(NoPruning())
    rows["floor: no video at all"] = lambda: engine.ask(text_only, FOLLOW_UP, NoPruning(), sampling)
    seconds = {name: median_seconds(run, args.repeats) for name, run in rows.items()}
    rival = next(iter(seconds.values()))
    print(f"{model}, {precision(args)} on {args.device}, {torch.get_num_threads()} threads, {args.repeats} repeats")
    for name, value in seconds.items():
        print(f"{name:<48} {value * 1000:9.1f} ms   {value / rival:6.3f} of stock")


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall seconds of `run` after one run that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def stock(engine: Engine, frames: FrameBatch, new_tokens: int) -> Callable[[], object]:
    """The rival: preprocess, tower, prompt and decoding by the stock class."""
    lm, model = engine.lm, engine.lm.model
    state = engine.state_of(frames, NoPruning())
    suffix, _ = lm.prompt.turn_ids(QUESTION, first=True)
    ids = torch.tensor([[*state.ids.tolist(), *suffix]], device=model.device)

    def run() -> object:
        return model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values_videos=lm.pixels(frames.frames)[None].to(model.device, model.dtype),
            max_new_tokens=new_tokens,
            do_sample=False,
        )

    return run


def ours(
    engine: Engine, frames: FrameBatch, pruning: Pruning, sampling: SamplingParams
) -> dict[str, Callable[[], object]]:
    """Cold, follow-up in memory, and follow-up from the codec's bytes, under one strategy."""
    state = engine.state_of(frames, pruning)
    first = engine.ask(state, QUESTION, pruning, sampling)
    encoded = encode(state)

    def follow_up(warm: bool) -> object:
        prefix = state if warm else decode(*encoded)
        return engine.ask(engine.replay(prefix, [first.turn]), FOLLOW_UP, pruning, sampling)

    kept = f"{first.visual_tokens.encoded} > {first.visual_tokens.stage1} > {first.visual_tokens.stage2} tokens"
    return {
        f"{pruning.name}: cold ({kept})": lambda: engine.ask(
            engine.state_of(frames, pruning), QUESTION, pruning, sampling
        ),
        f"{pruning.name}: follow-up, state in memory": lambda: follow_up(warm=True),
        f"{pruning.name}: follow-up, state from bytes": lambda: follow_up(warm=False),
    }
