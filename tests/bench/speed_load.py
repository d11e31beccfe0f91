"""Many questions over as many clips, from frames to the last token, and the memory that one of them takes."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

from tests.bench.machine import free_bytes, peak_bytes
from tests.bench.report import Table
from tests.bench.rounds import alternating
from tests.bench.stock import Stock
from tests.bench.subject import Subject

SEQUENTIAL = "stock, one by one"


def throughput(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """All clips' questions, so many at once; every answer has the same number of tokens."""
    runs: dict[str, Callable[[], object]] = {SEQUENTIAL: partial(theirs, subject, stock, args.answer, 1)}
    for batch in args.stock_together:
        if batch * cache_bytes(subject, stock) < free_bytes(args.device) / 2:
            runs[f"stock, batches of {batch}"] = partial(theirs, subject, stock, args.answer, batch)
    runs |= {f"ours, {batch} together": partial(ours, subject, args.answer, batch) for batch in args.together}
    rounds = alternating(args.device, runs, args.repeats)
    questions = len(subject.clips)
    yield Table(
        title=f"Throughput: {questions} questions over {questions} clips, {args.answer} tokens each",
        columns=("", "s", "answers a second", "stock one by one / this"),
        rows=tuple(
            (name, rounds.median(name), questions / rounds.median(name), rounds.ratio(SEQUENTIAL, name))
            for name in runs
        ),
        note="From pixels to the last token. Stock batches are padded on the left; where memory has no room, left out.",
    )


def ours(subject: Subject, answer: int, batch: int) -> list[tuple[int, ...]]:
    """The ids of all answers, so many questions at once."""
    ids = []
    for start in range(0, len(subject.clips), batch):
        asked = range(start, min(start + batch, len(subject.clips)))
        generations = [subject.asked(subject.state(clip), clip, answer) for clip in asked]
        ids += [each.turn.generated_ids for each in subject.engine.answers(generations)]
    return ids


def theirs(subject: Subject, stock: Stock, answer: int, batch: int) -> list[tuple[int, ...]]:
    """The same by the stock model, unpruned."""
    ids: list[tuple[int, ...]] = []
    for start in range(0, len(subject.clips), batch):
        clips = subject.clips[start : start + batch]
        questions = [subject.question(start + place) for place in range(len(clips))]
        inputs = stock.inputs(clips, questions)
        generated = stock.generate(inputs, answer).sequences[:, inputs["input_ids"].shape[1] :]
        ids += map(tuple, generated.tolist())
    return ids


def cache_bytes(subject: Subject, stock: Stock) -> int:
    """What the stock model remembers of one prompt."""
    prompt = stock.inputs(subject.clips[:1], [subject.question(0)])["input_ids"]
    attention = subject.engine.lm.decoder.model.layers[0].self_attn
    projections = (attention.k_proj, attention.v_proj)
    width = sum(each.out_features * each.weight.itemsize for each in projections)
    return prompt.shape[1] * width * subject.engine.lm.decoder.layers


def memory(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """Peaks of a cold question."""
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    peaks = {
        "ours": peak_bytes(args.device, subject.cold),
        "stock": peak_bytes(args.device, lambda: stock.generate(inputs, 1)),
    }
    yield Table(
        title="Memory of a cold question",
        columns=("", "peak MiB", "above what lay there before, MiB"),
        rows=tuple((name, peak / 2**20, more / 2**20) for name, (peak, more) in peaks.items()),
        note="Allocated on the device."
        if args.device.startswith("cuda")
        else "Resident, weights and libraries included.",
    )
