"""What an int8 wire changes: answers over states that went through it, beside those over the same states, exact.

Both sides are asked alone.
"""

import argparse
import statistics
from collections.abc import Iterator
from itertools import islice

from occam.config import OccamToken
from occam.engine import Engine
from occam.kv.codec import Manifest, decode, encode
from pipelines.evaluation.accuracy import questions_about
from pipelines.evaluation.clips import clean_frames_of, scenes
from pipelines.evaluation.renderer import FIRST_TUNING_SEED
from tests.bench.approximation import Pair, compared, differences_table, sides_table
from tests.bench.flips import A_CLIP, Asked, answers_of
from tests.bench.machine import described
from tests.bench.report import Report
from tests.bench.subject import config_of, precision

MODELS = ("tiny-video-llava", "tiny-qwen3-vl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own: `--questions` are those of flips too."""
    del parser


def measure(model: str, args: argparse.Namespace) -> Report:
    """Ask one model."""
    engine = Engine.load(config_of(model, args))
    pruning = engine.pruning()
    assert isinstance(pruning, OccamToken), "an embedded model is calibrated"
    pairs, manifests = [], []
    for pair, both in islice(_asked(engine, pruning), args.questions):
        pairs.append(pair)
        manifests.append(both)
    facts = described(args.device) | {"dtype": precision(args)}
    exact, int8 = (statistics.mean(each[side].nbytes for each in manifests) for side in (0, 1))
    title = f"{len(pairs)} questions over states of either wire"
    tables = (sides_table(title, pairs, "a state", (exact, int8)), differences_table(pairs))
    return Report(section="wire", model=model, device=args.device, facts=facts, tables=tables)


def _asked(engine: Engine, pruning: OccamToken) -> Iterator[tuple[Pair, tuple[Manifest, Manifest]]]:
    """Questions about rendered clips, and the manifests of the states that they went over, without end."""
    for scene in scenes(FIRST_TUNING_SEED):
        state = engine.state_of(clean_frames_of(scene), pruning)
        exact, int8 = encode(state), encode(state, "int8")
        for question in questions_about(scene, A_CLIP):
            sides = [Asked(decode(*encoded), question.text) for encoded in (exact, int8)]
            answers = [answers_of(engine, pruning, [side])[0] for side in sides]
            yield compared(answers, sides, question.answer, pruning.lambda2), (exact[0], int8[0])
