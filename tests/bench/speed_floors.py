"""Encoder, prefill and decoding beside what the machine can do: operations over its rate, bytes over its bandwidth."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from occam.engine.generation import Generation
from tests.bench.frames import noise
from tests.bench.machine import bandwidth, free_bytes, matrix_rate
from tests.bench.operations import stock_operations
from tests.bench.report import Cell, Table
from tests.bench.rounds import Run, alternating
from tests.bench.speed_question import llm_alone
from tests.bench.stock import Stock
from tests.bench.subject import Subject, chunked, multiplied, record, weights_bytes

BATCHES = (1, 2, 4, 8, 16)
"""Frames in one batch of the tower, of as many requests as they may be: what more of them can gain."""
KEPT = (1.0, 0.4, 0.1)
"""Shares of the patches that stage I leaves to the prefill; stage II drops none of them."""


def encoder(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """Tower, stage I and projector a frame: of a clip in the engine's chunks, and of so many frames in one batch."""
    engine, frames = subject.engine, subject.clips[0]
    prompt = stock.inputs(subject.clips[:1], [subject.question(0)])
    theirs = stock_operations(engine, subject.views, subject.pruning.cut, prompt["input_ids"].shape[1]).encode
    pixels = prompt["pixel_values_videos"]
    media = {"pixel_values_videos": pixels, "video_grid_thw": prompt.get("video_grid_thw")}

    @torch.inference_mode()
    def rival() -> None:
        stock.model.model.get_video_features(**{name: value for name, value in media.items() if value is not None})

    clips = {"ours": frames} | {
        f"ours, {count} in one batch": noise(count, tuple(args.size))
        for count in BATCHES
        if count % engine.info.group == 0
    }
    engines = {name: chunked(engine, len(clip)) for name, clip in clips.items()} | {"ours": engine}
    subjects = {name: replace(subject, engine=engines[name], clips=(clip,)) for name, clip in clips.items()}
    for each in subjects.values():
        record(each)
    runs: dict[str, Run] = {name: partial(_encode, each) for name, each in subjects.items()} | {"stock": rival}
    rounds = alternating(args.device, runs, args.repeats)
    rate = matrix_rate(args.device, multiplied(engine))
    counts = {name: each.operations().encode for name, each in subjects.items()}
    counts["stock"] = theirs
    yield Table(
        title="Encoder",
        columns=("", "s a frame", "operations a second", "% of the matrix rate"),
        rows=tuple(
            (name, rounds.median(name) / len(clips.get(name, frames)), *_rate(count / rounds.median(name), rate))
            for name, count in counts.items()
        ),
        note=_rate_note(rate, multiplied(engine)),
    )


def _encode(subject: Subject) -> None:
    """A clip in chunks."""
    engine, frames, step = subject.engine, subject.clips[0], subject.engine.config.chunk_frames
    for start in range(0, len(frames), step):
        engine.encode(frames.chunk(start, min(start + step, len(frames))), subject.pruning)


def prefill(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """The whole prompt through the decoder, by how much of it stage I has kept."""
    kept = {
        f"{100 * share:g} % of the patches": replace(
            subject, pruning=replace(subject.pruning, stage1=share, stage2=1.0)
        )
        for share in KEPT
    }
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    theirs = stock_operations(subject.engine, subject.views, subject.pruning.cut, inputs["input_ids"].shape[1])
    runs = {name: llm_alone(each) for name, each in kept.items()} | {"stock": stock.llm(inputs)}
    counts = {name: each.operations().llm for name, each in kept.items()} | {"stock": theirs.llm}
    rounds = alternating(args.device, runs, args.repeats)
    rate = matrix_rate(args.device, multiplied(subject.engine))
    yield Table(
        title="Prefill by kept tokens",
        columns=("", "s", "stock / ours", "operations a second", "% of the matrix rate"),
        rows=tuple(
            (name, rounds.median(name), rounds.ratio("stock", name), *_rate(count / rounds.median(name), rate))
            for name, count in counts.items()
        ),
        note=f"All of what stage I keeps goes through all layers. {_rate_note(rate, multiplied(subject.engine))}",
    )


def decode(subject: Subject, stock: Stock, args: argparse.Namespace) -> Iterator[Table]:
    """One step of several answers at once."""
    nbytes, rate = weights_bytes(subject.engine), bandwidth(args.device)
    inputs = stock.inputs(subject.clips[:1], [subject.question(0)])
    state, prefilled = subject.state(), stock.generate(inputs, 1)
    held = sum(tensor.nbytes for layer in prefilled.past_key_values.layers for tensor in (layer.keys, layer.values))
    rows: list[tuple[Cell, ...]] = []
    for batch in args.together:
        running = [subject.asked(state, new_tokens=args.answer * (args.repeats + 1) + 2) for _ in range(batch)]
        subject.engine.start(running)
        runs: dict[str, Run] = {"ours": partial(_steps, subject, running, args.answer)}
        # A copy of all that is remembered, and that of a layer again in every step.
        if fits := 2 * batch * held < free_bytes(args.device):
            runs["stock"] = stock.steps(inputs, batch, prefilled, args.answer)
        rounds = alternating(args.device, runs, args.repeats)
        step = {name: rounds.median(name) / args.answer for name in runs}
        stocks = (1000 * step["stock"], rounds.ratio("stock", "ours")) if fits else (None, None)
        rows.append((str(batch), 1000 * step["ours"], *stocks, step["ours"] * rate / nbytes))
    yield Table(
        title="Decoding step",
        columns=("together", "ours ms", "stock ms", "stock / ours", "ours / floor"),
        rows=tuple(rows),
        note=f"The floor reads the weights once: {nbytes:,} bytes at the {rate / 1e9:.3g} GB a second measured, "
        f"{1000 * nbytes / rate:.3g} ms. Where memory has no room for what stock remembers, that is left out.",
    )


def _steps(subject: Subject, running: Sequence[Generation], count: int) -> None:
    for _ in range(count):
        subject.engine.step(running)


def _rate(achieved: float, rate: float) -> tuple[str, float]:
    return f"{achieved / 1e9:,.3g} G", 100 * achieved / rate


def _rate_note(rate: float, dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return (
        f"The matrix rate is that of a large {name} product in the same run: {rate / 1e9:,.3g} G operations a second."
    )
