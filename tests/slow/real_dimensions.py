"""A day in the life of checkpoints of real dimensions and random weights: registers, calibration, two questions.

python -m tests.slow.real_dimensions [--device cuda] [--layers 32] prints tokens and seconds of every stage. Needs torch
and transformers, no Ray, decoder or Redis.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from occam.calibration import ARTEFACT_NAME
from occam.config import EngineConfig, NoPruning, Pruning, SamplingParams
from occam.engine import Engine
from occam.kv.codec import decode, encode
from occam.stats import StageStats
from occam.types import Answer, FrameBatch
from pipelines.evaluation.calibrate import Plan, calibrate, find_registers
from pipelines.evaluation.material import Sample
from pipelines.evaluation.premise import described
from tests.parity import checkpoint_qwen
from tests.real_checkpoints import FAMILIES

QUESTIONS = ("what colour is the ball ?", "where does it go then ?")
T = TypeVar("T")
SAMPLING = SamplingParams(max_new_tokens=4)


def live(folder: Path, device: str, frames: int, say: Callable[[str], None] = print) -> list[Answer]:
    """Find registers, calibrate, ask, and ask on over a state out of the codec; every answer, in that order.

    frames: of the two generated clips; the follow-up's answer must come out the same cold and warm, AssertionError else
    """
    config = EngineConfig(model=str(folder), device=device, dtype="bfloat16")
    samples = [Sample.of(_noise(frames, seed), QUESTIONS[:1]) for seed in (0, 1)]
    calibration, found = _timed(say, "occam registers", lambda: find_registers(config, Plan(), lambda _: samples))
    say(described(found))
    calibration.save(folder / ARTEFACT_NAME)
    report = _timed(say, "occam calibrate", lambda: calibrate(config, Plan(), lambda _: samples))
    say(str(report))
    report.calibration.save(folder / ARTEFACT_NAME)
    engine = _timed(say, "load", lambda: Engine.load(config))
    _converse(engine, samples[0].frames(), engine.pruning(), lambda _: None)  # the first run pays for what is lazy
    answers = []
    for pruning in (NoPruning(), engine.pruning()):
        say(f"\nstrategy {pruning.name}")
        answers += _converse(engine, samples[0].frames(), pruning, say)
    return answers


def _converse(engine: Engine, frames: FrameBatch, pruning: Pruning, say: Callable[[str], None]) -> list[Answer]:
    with _clock(say, "state from frames"):
        state = engine.state_of(frames, pruning)
    first = engine.ask(state, QUESTIONS[0], pruning, SAMPLING)
    _stages(say, "question", first)
    with _clock(say, "state from bytes"):
        warm = decode(*encode(state))
    second = engine.ask(engine.replay(warm, [first.turn]), QUESTIONS[1], pruning, SAMPLING)
    _stages(say, "follow-up", second)
    cold = engine.ask(engine.replay(engine.state_of(frames, pruning), [first.turn]), QUESTIONS[1], pruning, SAMPLING)
    assert cold.turn == second.turn
    assert [f.stage2.tolist() for f in cold.evidence.frames] == [f.stage2.tolist() for f in second.evidence.frames]
    return [first, second]


def _stages(say: Callable[[str], None], name: str, answer: Answer) -> None:
    tokens = answer.visual_tokens
    say(f"{name}: {tokens.encoded} patches encoded, {tokens.stage1} after stage I, {tokens.stage2} after stage II")
    for stage in answer.stats:
        say(f"  {_line(stage)}")


def _line(stage: StageStats) -> str:
    return f"{stage.stage:<14}{stage.seconds:8.3f} s  {stage.tokens_in:>6} tokens in, {stage.tokens_out} out"


def _timed(say: Callable[[str], None], name: str, run: Callable[[], T]) -> T:
    with _clock(say, name):
        return run()


@contextmanager
def _clock(say: Callable[[str], None], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    say(f"{name}: {time.perf_counter() - started:.2f} s")


def _noise(count: int, seed: int) -> FrameBatch:
    return FrameBatch(
        frames=checkpoint_qwen.random_frames(count, 240, 320, seed),
        pts_seconds=np.arange(count) / 2,
        indices=np.arange(count),
        digest=f"noise-{seed}",
    )


def main() -> None:
    """Both families, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow.real_dimensions", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder; the real ones have 32 and 36 (4)")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor()
    print(f"{device}, torch {torch.__version__}, bfloat16, {options.layers} decoder layers, {options.frames} frames")
    for name, (write, _, _) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n== {name}")
            _timed(print, "write", lambda write=write, folder=folder: write(Path(folder), options.layers))
            live(Path(folder), options.device, options.frames)


if __name__ == "__main__":
    main()
