"""What an int8 wire changes: answers over states that went through it, beside those over the same states, exact.

Both sides are asked alone. Logits are compared as long as the texts are the same, and at the token where they part.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from occam.config import EngineConfig, OccamToken
from occam.engine import Engine
from occam.kv.codec import Manifest, decode, encode
from occam.types import Answer
from pipelines.evaluation.accuracy import is_right, questions_about
from pipelines.evaluation.clips import clean_frames_of, scenes, state_of
from pipelines.evaluation.renderer import FIRST_TUNING_SEED
from tests.bench.flips import A_CLIP, Asked, answers_of, kept_margin
from tests.bench.machine import described
from tests.bench.report import Report, Table
from tests.bench.subject import precision

MODELS = ("tiny-video-llava", "tiny-qwen3-vl")


def add_options(parser: argparse.ArgumentParser) -> None:
    """None of its own: `--questions` are those of flips too."""
    del parser


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question over both wires.

    exact, int8: whether the answer was right; text: whether the texts differ
    kept: patches that the exact side kept; flipped: those that one side alone kept
    distance: the largest of a flipped patch from its threshold, in s_r; None where none flipped
    logits: the largest difference of two logits
    """

    exact: bool
    int8: bool
    text: bool
    kept: int
    flipped: int
    distance: float | None
    logits: float


def measure(model: str, args: argparse.Namespace) -> Report:
    """Ask one model."""
    engine = Engine.load(
        EngineConfig(
            model=model, device=args.device, dtype=args.dtype, quantization=args.quantization, threads=args.threads
        )
    )
    pruning = engine.pruning()
    assert isinstance(pruning, OccamToken), "an embedded model is calibrated"
    pairs, manifests = [], []
    for pair, both in islice(_asked(engine, pruning), args.questions):
        pairs.append(pair)
        manifests.append(both)
    facts = described(args.device) | {"dtype": precision(args)}
    tables = (_sides(pairs, manifests), _differences(pairs))
    return Report(section="wire", model=model, device=args.device, facts=facts, tables=tables)


def _asked(engine: Engine, pruning: OccamToken) -> Iterator[tuple[Pair, tuple[Manifest, Manifest]]]:
    """Questions about rendered clips, and the manifests of the states that they went over, without end."""
    for scene in scenes(FIRST_TUNING_SEED):
        state = state_of(engine, clean_frames_of(scene), pruning)
        exact, int8 = encode(state), encode(state, "int8")
        for question in questions_about(scene, A_CLIP):
            sides = [Asked(decode(*encoded), question.text) for encoded in (exact, int8)]
            answers = [answers_of(engine, pruning, [side])[0] for side in sides]
            yield compared(answers, sides, question.answer, pruning.lambda2), (exact[0], int8[0])


def compared(answers: list[Answer], sides: list[Asked], truth: str, lambda2: float) -> Pair:
    """The exact side's answer beside the other's."""
    exact, int8 = answers
    distances, parted = [0.0], False
    for place, (one, other) in enumerate(zip(*(side.logits for side in sides), strict=False)):
        if not parted:
            distances.append(float((one - other).abs().max()))
        parted = parted or exact.turn.generated_ids[place] != int8.turn.generated_ids[place]
    return Pair(
        exact=is_right(exact.text, truth),
        int8=is_right(int8.text, truth),
        text=exact.turn != int8.turn,
        kept=sum(frame.kept for frame in exact.evidence.frames),
        flipped=sum(
            int((one.stage2 != other.stage2).sum())
            for one, other in zip(exact.evidence.frames, int8.evidence.frames, strict=True)
        ),
        distance=kept_margin(exact, int8, lambda2),
        logits=max(distances),
    )


def _sides(pairs: list[Pair], manifests: list[tuple[Manifest, Manifest]]) -> Table:
    """Both wires by themselves."""
    exact, int8 = (statistics.mean(each[side].nbytes for each in manifests) for side in (0, 1))
    right = [100 * statistics.mean(values) for values in ([p.exact for p in pairs], [p.int8 for p in pairs])]
    return Table(
        title=f"{len(pairs)} questions over states of either wire",
        columns=("", "exact", "int8", "int8 / exact"),
        rows=(("answered right, %", *right, right[1] / right[0]), ("bytes of a state", exact, int8, int8 / exact)),
    )


def _differences(pairs: list[Pair]) -> Table:
    """How many questions the wire changed, and how much."""
    counts = {
        "another text": sum(pair.text for pair in pairs),
        "another kept set": sum(pair.flipped > 0 for pair in pairs),
        "right over the exact wire alone": sum(pair.exact > pair.int8 for pair in pairs),
        "right over int8 alone": sum(pair.int8 > pair.exact for pair in pairs),
    }
    kept, flipped = (statistics.mean(values) for values in ([p.kept for p in pairs], [p.flipped for p in pairs]))
    distance = max((pair.distance for pair in pairs if pair.distance is not None), default=0.0)
    return Table(
        title="int8 against exact",
        columns=("", "questions", "%"),
        rows=tuple((kind, count, 100 * count / len(pairs)) for kind, count in counts.items()),
        note=f"Patches that one side alone kept: {flipped:.3g} a question, of {kept:.3g} kept; at most {distance:.2e} "
        f"of s_r from the threshold. Largest difference of a logit: {max(pair.logits for pair in pairs):.3g}.",
    )
