"""What OccamToken itself costs: seconds of scoring and masking as a share of encode + prefill, in one process.

Counted as overhead is all that runs because tokens are tested: the CLS row or the mutual scores with the register among
them, moving register neurons' work to the register, projecting it, both masks, and the gathers of what is kept. Each is
timed where the engine calls it; only stage I's gather, which is no function of its own, is timed again on the same
tensors. Encode + prefill is the same run's, pixels not counted. The register's own way through the tower is one token
more: it is the difference of towers with and without it, run in turn, and stands apart because it is near the noise.
Not counted: the same one token in the decoder's layers.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine, generation, prefix, turn
from occam.models import clip_tower, llava_family, qwen_layout, qwen_tower
from occam.models.decoder import Decoder
from occam.pruning.occam_token import OccamTokenStrategy
from occam.types import Answer, FrameBatch
from pipelines.evaluation.budgets import lambda1_for, lambda2_for
from pipelines.evaluation.material import Sample
from tests.bench.frames import noise
from tests.bench.stopwatch import Stopwatch
from tests.bench.subject import engine_of, launched, precision
from tests.real_checkpoints import FAMILIES

MODELS = tuple(FAMILIES)
QUESTION = "what colour is the ball ? where does it go then ? what is the colour of the ball then ?"

SCORES, NEURON_WORK, PROJECTED = "stage I: scores", "register: neurons", "register: projector"
MASK, LAYOUT, GATHER = "stage I: mask", "stage I: layout of the kept", "stage I: gather"
ROWS, MASK2, JOIN, GATHER2 = "stage II: rows", "stage II: mask", "stage II: join of stored and new", "stage II: gather"
OVERHEAD = (SCORES, NEURON_WORK, PROJECTED, MASK, LAYOUT, GATHER, ROWS, MASK2, JOIN, GATHER2)
PIXELS, TOWER, ENCODE, LOWER, UPPER = "pixels", "tower", "encode", "lower", "upper"
PARTS = ("begin", "append", "question")
REGISTER = "register: its own way through the tower"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine, the strategy and the clip it is measured with, and the decoder it stands for."""

    engine: Engine
    pruning: OccamToken
    frames: FrameBatch
    layers: int
    cut: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument(
        "--keep", type=float, nargs=2, default=(0.5, 0.1), help="shares of patches kept by the stages (0.5 0.1)"
    )


def measure(model: str, args: argparse.Namespace) -> None:
    """Measure and print one model's table."""
    with tempfile.TemporaryDirectory() as folder:
        subject = _subject(model, Path(folder), args)
    _once(subject)
    rounds = []
    for _ in range(args.repeats):
        seconds, answer = _once(subject)
        seconds[REGISTER] = _tower(seconds) - _tower(_without_register(subject))
        rounds.append(seconds)
    tokens, info = answer.visual_tokens, subject.engine.info
    print(
        f"{precision(args)} on {args.device}, {torch.get_num_threads()} threads, "
        f"{info.layers} of {subject.layers} decoder "
        f"layers, cut at {subject.pruning.cut}, {len(subject.frames)} frames, {tokens.encoded} patches encoded, "
        f"{tokens.stage1} after stage I, {tokens.stage2} after stage II; medians of {args.repeats} runs"
    )
    _report(subject, rounds)


def _subject(model: str, folder: Path, args: argparse.Namespace) -> Subject:
    """The model, random where it is a real one's dimensions, and thresholds that keep what was asked for."""
    engine = launched(engine_of(model, folder, args))
    info = engine.info
    base = replace(engine.pruning(), lambda1=0.0, lambda2=0.0)
    frames = noise(args.frames or info.frames, tuple(args.size))
    sample = [Sample.of(frames, [QUESTION])]
    [pruning] = lambda2_for(engine, [lambda1_for(engine, base, sample, args.keep[0])], sample, args.keep[1])
    real = FAMILIES.get(model)
    depth = (real.layers, real.cut) if real else (info.layers, base.cut)
    return Subject(engine=engine, pruning=pruning, frames=frames, layers=depth[0], cut=depth[1])


@contextmanager
def _watched(subject: Subject) -> Iterator[Stopwatch]:
    """A stopwatch inside the functions that count, and inside what they are a share of."""
    watch, adapter = Stopwatch(subject.engine.config.device), type(subject.engine.lm)
    functions: tuple[tuple[Any, str, str], ...] = (
        (clip_tower.ClipTower, "_cls_row", SCORES),
        (qwen_tower, "_mutual_scores", SCORES),
        (clip_tower, "shift_to_register", NEURON_WORK),
        (qwen_tower, "shift_to_register", NEURON_WORK),
        (adapter, "_register_sum", PROJECTED),
        (OccamTokenStrategy, "in_tower", MASK),
        (llava_family, "compact", LAYOUT),
        (qwen_layout.Layout, "keep", LAYOUT),
        (turn, "_evidence", ROWS),
        (OccamTokenStrategy, "in_decoder", MASK2),
        (turn, "_behind_state", JOIN),
        (turn._Sequence, "narrowed", GATHER2),
        (adapter, "_preprocess", PIXELS),
        (adapter, "encode", TOWER),
        (prefix, "encode", ENCODE),
        (prefix, "begin", "begin"),
        (Engine, "append", "append"),
        (generation, "prefill", "question"),
    )

    def side(decoder: Decoder, x: torch.Tensor, first: int, *rest: Any, **options: Any) -> str:
        del decoder, x, rest, options
        return LOWER if first < subject.pruning.cut else UPPER

    with ExitStack() as stack:
        for owner, attribute, name in functions:
            stack.enter_context(watch.inside(owner, attribute, name))
        stack.enter_context(watch.inside(Decoder, "run_layers", side))
        stack.enter_context(watch.inside(adapter, "compose", "compose", keep_calls=True))
        yield watch


def _once(subject: Subject) -> tuple[Counter[str], Answer]:
    """Seconds of one cold question by what they went into."""
    engine, pruning = subject.engine, subject.pruning
    with _watched(subject) as watch:
        state = engine.state_of(subject.frames, pruning)
        answer = engine.ask(state, QUESTION, pruning, SamplingParams(max_new_tokens=1))
    _gather_again(watch)
    return watch.seconds, answer


@torch.inference_mode()
def _gather_again(watch: Stopwatch) -> None:
    """The gather of kept patches, on the run's own tensors."""
    for (_, _, output, keep_VP, _), _ in watch.calls["compose"]:
        with watch.region(GATHER):
            for features in (output.features, *output.planes):
                features[:, -keep_VP.shape[1] :][keep_VP]


@torch.inference_mode()
def _without_register(subject: Subject) -> Counter[str]:
    """Seconds of the tower alone over the same chunks, no register in it."""
    engine, frames, pruning = subject.engine, subject.frames, subject.pruning
    step = engine.chunk(pruning, len(frames))
    with _watched(subject) as watch:
        for start in range(0, len(frames), step):
            engine.lm.encode([frames.chunk(start, min(start + step, len(frames)))], None, pruning.placement)
    return watch.seconds


def _tower(seconds: Counter[str]) -> float:
    """The tower's blocks, without what is counted by itself."""
    return seconds[TOWER] - seconds[PIXELS] - seconds[SCORES] - seconds[NEURON_WORK]


def _report(subject: Subject, rounds: list[Counter[str]]) -> None:
    """The table, the measured share, and the share scaled to the full depth; each of them without and with r."""
    ran, cut = subject.engine.info.layers, subject.pruning.cut
    overhead = np.array([sum(seconds[name] for name in OVERHEAD) for seconds in rounds])
    register = np.array([seconds[REGISTER] for seconds in rounds])
    measured = np.array([sum(seconds[name] for name in PARTS) - seconds[PIXELS] for seconds in rounds])
    scaled = np.array(
        [
            seconds[ENCODE]
            - seconds[PIXELS]
            + seconds[LOWER] / cut * subject.cut
            + seconds[UPPER] / (ran - cut) * (subject.layers - subject.cut)
            for seconds in rounds
        ]
    )
    for name in (*OVERHEAD, REGISTER):
        spent = np.array([seconds[name] for seconds in rounds])
        print(f"  {name:<42}{np.median(spent) * 1000:10.2f} ms {100 * np.median(spent / measured):8.3f} %")
    low, high = np.quantile(register, [0.25, 0.75]) * 1000
    print(f"  {'':<42}(quartiles {low:.2f} and {high:.2f} ms)")
    print(f"  {'encode + prefill':<42}{np.median(measured) * 1000:10.2f} ms")
    depths = {
        f"measured with {ran} layers": measured,
        f"scaled to {subject.layers} layers, cut at {subject.cut}": scaled,
    }
    for depth, whole in depths.items():
        bare, with_register = (100 * np.median(spent / whole) for spent in (overhead, overhead + register.clip(0)))
        print(f"  scoring + masking, {depth}: {bare:.2f} % ({with_register:.2f} % with the register's way)")
