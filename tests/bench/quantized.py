"""What linear maps in int8 change: answers of a model that has them, beside those of the same model without.

Both sides build states of their own and are asked alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice

from occam.config import OccamToken, Quantization
from occam.engine import Engine
from pipelines.evaluation.accuracy import questions_about
from pipelines.evaluation.clips import clean_frames_of, scenes
from pipelines.evaluation.renderer import FIRST_TUNING_SEED
from tests.bench.approximation import Pair, compared, differences_table, sides_table
from tests.bench.flips import A_CLIP, Asked, answers_of
from tests.bench.machine import described
from tests.bench.report import Report
from tests.bench.subject import config_of, weights_bytes

MODELS = ("tiny-video-llava", "tiny-qwen3-vl")
SIDES: tuple[Quantization, ...] = ("none", "int8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own: `--questions` are those of flips too."""
    del parser


def measure(model: str, args: argparse.Namespace) -> Report:
    """Ask one model."""
    engines = [Engine.load(config_of(model, args, device="cpu", quantization=side)) for side in SIDES]
    pruning = engines[0].pruning()
    assert isinstance(pruning, OccamToken), "an embedded model is calibrated"
    pairs = list(islice(_asked(engines, pruning), args.questions))
    exact, int8 = map(weights_bytes, engines)
    title = f"{len(pairs)} questions to a model with linear maps of either kind"
    tables = (sides_table(title, pairs, "the decoder's layers and head", (exact, int8)), differences_table(pairs))
    facts = described("cpu") | {"dtype": args.dtype}
    return Report(section="quantized", model=model, device="cpu", facts=facts, tables=tables)


def _asked(engines: Sequence[Engine], pruning: OccamToken) -> Iterator[Pair]:
    """Questions about rendered clips, without end."""
    for scene in scenes(FIRST_TUNING_SEED):
        states = [engine.state_of(clean_frames_of(scene), pruning) for engine in engines]
        for question in questions_about(scene, A_CLIP):
            sides = [Asked(state, question.text) for state in states]
            answers = [answers_of(engine, pruning, [side])[0] for engine, side in zip(engines, sides, strict=True)]
            yield compared(answers, sides, question.answer, pruning.lambda2)
