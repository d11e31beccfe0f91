"""What answering together changes: texts and kept sets of a batch that are not those of each question alone.

A kept set flips where a score lies next to its threshold, a text where two logits lie next to each other; for every
flip the distance is printed that decided it, in the run of the question alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine
from occam.tensors import PrefixState
from occam.types import Answer
from pipelines.evaluation.accuracy import questions_about
from pipelines.evaluation.clips import clean_frames_of, scenes
from pipelines.evaluation.renderer import FIRST_TUNING_SEED
from tests.bench.machine import described
from tests.bench.report import Report, Table
from tests.bench.subject import config_of, precision

MODELS = ("tiny-video-llava", "tiny-qwen3-vl")
TOGETHER, NEW_TOKENS, A_CLIP = 16, 8, 4
MOST = 0.1
"""Percent of the questions that may flip."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument("--questions", type=int, default=1000, help="of flips, and of wire (1000)")


@dataclass
class Asked:
    """One question, and the logits of its answer's tokens."""

    state: PrefixState
    text: str
    logits: list[Tensor] = field(default_factory=list)


def measure(model: str, args: argparse.Namespace) -> Report:
    """Count and print one model's flips."""
    engine = Engine.load(config_of(model, args))
    pruning = engine.pruning()
    assert isinstance(pruning, OccamToken), "an embedded model is calibrated"
    rows: list[tuple[str, float | None, float | None]] = []
    asked = islice(_questions(engine, pruning), args.questions)
    for first in range(0, args.questions, TOGETHER):
        batch = list(islice(asked, TOGETHER))
        alone = [answers_of(engine, pruning, [each])[0] for each in batch]
        logits = [each.logits for each in batch]
        together = answers_of(engine, pruning, batch)
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            kept = kept_margin(one, other, pruning.lambda2)
            text = None if one.turn == other.turn else text_margin(one, other, logits[number])
            if kept is not None or text is not None:
                rows.append((f"question {first + number}", kept, text))
    facts = described(args.device) | {"dtype": precision(args)}
    return Report(
        section="flips",
        model=model,
        device=args.device,
        facts=facts,
        tables=_tables(rows, args.questions),
        failures=too_many(len(rows), args.questions),
    )


def too_many(flipped: int, questions: int) -> tuple[str, ...]:
    """What is said of more flips than may be."""
    share = 100 * flipped / questions
    return (f"{share:.3g} % of {questions} questions flipped, of which {MOST:g} % may",) if share > MOST else ()


def _tables(rows: Sequence[tuple[str, float | None, float | None]], questions: int) -> tuple[Table, ...]:
    """How many flipped, and each that did."""
    differ = {kind: sum(row[place] is not None for row in rows) for place, kind in ((1, "kept set"), (2, "text"))}
    counts = Table(
        title=f"{questions} questions, {TOGETHER} together against each alone",
        columns=("", "differ", "% of questions"),
        rows=tuple((kind, count, 100 * count / questions) for kind, count in differ.items()),
    )
    flips = Table(
        title="Flips",
        columns=(
            "",
            "largest distance of a flipped patch from its threshold, in s_r",
            "lead of the first token's logit",
        ),
        rows=tuple((name, *(margin and f"{margin:.2e}" for margin in margins)) for name, *margins in rows),
    )
    return (counts, flips) if rows else (counts,)


def answers_of(engine: Engine, pruning: OccamToken, batch: Sequence[Asked]) -> list[Answer]:
    """Of all in the batch, together; their logits are the newest run's."""
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS)
    generations = []
    for each in batch:
        each.logits = []
        generations.append(engine.generation(each.state, each.text, pruning, sampling, each.logits.append))
    return engine.answers(generations)


def kept_margin(one: Answer, other: Answer, lambda2: float) -> float | None:
    """The largest |s - threshold| of a patch that only one of them kept, in units of the reference's score, or None."""
    threshold = one.evidence.threshold
    distances = [
        np.abs(mine.scores - threshold)[mine.stage2 != theirs.stage2]
        for mine, theirs in zip(one.evidence.frames, other.evidence.frames, strict=True)
    ]
    flipped = np.concatenate(distances)
    return float(flipped.max() / (threshold / lambda2)) if len(flipped) else None


def text_margin(one: Answer, other: Answer, logits: Sequence[Tensor]) -> float:
    """How far the first token that differs was ahead of the next best, alone."""
    mine, theirs = one.turn.generated_ids, other.turn.generated_ids
    same = [a == b for a, b in zip(mine, theirs, strict=False)]
    place = same.index(False) if False in same else len(same)
    best = torch.topk(logits[place], 2).values
    return float(best[0] - best[1])


def _questions(engine: Engine, pruning: OccamToken) -> Iterator[Asked]:
    """About rendered clips, without end."""
    for scene in scenes(FIRST_TUNING_SEED):
        state = engine.state_of(clean_frames_of(scene), pruning)
        yield from (Asked(state, question.text) for question in questions_about(scene, A_CLIP))
