"""Every line that a GPU is held to, by one command: correctness first, then each bar with its target.

python -m tests.bench gpu measures Video-LLaVA-7B and Qwen3-VL-8B in full depth, bfloat16 and random weights, and writes
gpu.json. Needs torch and transformers alone. Masks are forced, as in section speed. On a CPU it is a dry run, with a
small model, or few layers: `--device cpu --dtype float32 --model tiny-video-llava`.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import speed_floors, speed_load, speed_question, speed_together
from tests.bench.forced import forced_masks
from tests.bench.frames import noise
from tests.bench.gpu_checks import ALONE, COMPANY, FAILURES, SHARED, batches, overhead, steps, waits
from tests.bench.machine import described
from tests.bench.report import Report, Table
from tests.bench.shapes import made_in_place
from tests.bench.stock import Stock
from tests.bench.subject import Subject, chunked, precision, record, unhurried
from tests.real_checkpoints import FAMILIES

MODELS = tuple(FAMILIES)
DEFAULTS = {
    "device": "cuda",
    "dtype": "bfloat16",
    "layers": max(family.layers for family in FAMILIES.values()),
    "repeats": 3,
    "chunk_frames": 8,
    "parts": [],
    "stock_together": [],
    "json": Path("gpu.json"),
}
"""Of the command's options, where this section runs, which it does alone."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A cell that is held to a target: table (by how its title begins), row and column; least or most of it."""

    table: str
    row: str
    column: str
    least: float | None = None
    most: float | None = None

    def judged(self, tables: tuple[Table, ...]) -> tuple[str, float | None, str, str]:
        """What was measured, its target, and PASS or FAIL; neither where this run has no such figure."""
        target = f">= {self.least:g}" if self.most is None else f"<= {self.most:g}"
        value = self._value(tables)
        if value is None:
            return f"{self.table}: {self.row}, {self.column}", None, target, "not here"
        passed = value >= self.least if self.most is None else value <= self.most
        return f"{self.table}: {self.row}, {self.column}", value, target, "PASS" if passed else "FAIL"

    def _value(self, tables: tuple[Table, ...]) -> float | None:
        [table] = [table for table in tables if table.title.startswith(self.table)]
        [row] = [row for row in table.rows if row[0] == self.row]
        cell = row[table.columns.index(self.column)]
        assert not isinstance(cell, str), "a bar is a figure"
        return cell


BARS = (
    Bar(table="Cold question", row="encode + prefill + first token", column="stock / ours", least=3.4),
    Bar(table="Cold question", row="encode + prefill + first token", column="% of that", least=80),
    Bar(table="Follow-up", row=speed_question.STATES["memory"], column="% of cold unpruned stock", most=10),
    Bar(table="Decoding step", row="1", column="ours / floor", most=1.5),
    Bar(table="Encoder", row="ours", column="% of the matrix rate", least=40),
    Bar(table="Prefill", row="40 % of the patches", column="% of the matrix rate", least=40),
    Bar(table="Scoring", row="scoring + masking + compaction", column="% of encode + prefill", most=3),
)
ROUNDING = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Largest distance of two ways to compute the same logits, relative to them."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument(
        "--long", type=int, default=64, help="frames of the clip for shares of the matrix rate (gpu; 64)"
    )


def measure(model: str, args: argparse.Namespace) -> Report:
    """All bars of one model."""
    with tempfile.TemporaryDirectory() as folder, made_in_place():
        subject = Subject.of(model, Path(folder), args)
    record(subject)
    with forced_masks(), unhurried(subject.engine):
        tables = tuple(_tables(subject, args))
    rounding = ROUNDING[args.dtype]
    most = max(args.together)
    throughput = Bar(table="Throughput", row=f"ours, {most} together", column="stock one by one / this", least=10)
    correct = [
        Bar(table="One step", row=str(batch), column=column, most=rounding)
        for batch in args.together
        for column in ("slots from packed", "recorded from slots")
    ]
    correct += [
        Bar(table="Batches", row="recorded", column=ALONE, most=rounding),
        Bar(table="Batches", row="recorded", column=SHARED, most=0),
        Bar(table="Batches", row="recorded", column=FAILURES, most=0),
        *(Bar(table="Batches", row=row, column=COMPANY, most=0) for row in ("shared", "recorded")),
    ]
    correct += [
        Bar(table=table, row=str(batch), column=speed_together.DISTANCE, most=rounding)
        for table in speed_together.TABLES
        for batch in args.together
        if batch > 1
    ]
    bars = [bar.judged(tables) for bar in (*correct, *BARS, throughput)]
    verdict = Table(title="Bars", columns=("", "measured", "target", ""), rows=tuple(bars))
    failures = tuple(f"{name} is {value:.3g}, not {target}" for name, value, target, word in bars if word == "FAIL")
    facts = described(args.device) | {
        "dtype": precision(args),
        "decoder layers": f"{subject.engine.info.layers}, cut at {subject.pruning.cut}",
        "clip": f"{len(subject.clips[0])} frames, {args.long} for shares of the matrix rate",
        "chunk": f"{args.chunk_frames} frames, {args.long} for shares of the matrix rate",
        "repeats": str(args.repeats),
    }
    return Report(
        section="gpu",
        model=model,
        device=args.device,
        facts=facts,
        tables=(*tables, verdict),
        failures=failures,
    )


def _tables(subject: Subject, args: argparse.Namespace) -> Iterator[Table]:
    yield from steps(subject, args)
    yield from batches(subject, args)
    yield from waits(subject, args)
    stock, one = Stock(subject.engine), argparse.Namespace(**vars(args) | {"together": [max(args.together)]})
    yield from speed_question.measure(subject, stock, args)
    yield from speed_together.together(subject, stock, args)
    yield from speed_floors.decode(subject, stock, args)
    long = replace(subject, engine=chunked(subject.engine, args.long), clips=(noise(args.long, tuple(args.size)),))
    record(long)
    yield from speed_floors.encoder(long, stock, args)
    yield from speed_floors.prefill(long, stock, args)
    yield from overhead(subject, args)
    yield from speed_load.throughput(subject, stock, one)
