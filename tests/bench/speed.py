"""Ours beside stock `transformers` over the same weights in one process, with masks forced, and beside the floors.

Stage I keeps 40 % of the patches, stage II 136 of 2048, behind 11 of 32 layers (in shallower decoders at the same share
of depth). Both sides get pixels that are ready, and run in turn.
"""

import argparse
import tempfile
from pathlib import Path

from tests.bench import speed_floors, speed_load, speed_question, speed_together
from tests.bench.forced import forced_masks
from tests.bench.machine import described
from tests.bench.report import Report
from tests.bench.stock import Stock
from tests.bench.subject import Subject, precision, unhurried

MODELS = ("tiny-video-llava",)
PARTS = {
    "question": speed_question.measure,
    "encoder": speed_floors.encoder,
    "prefill": speed_floors.prefill,
    "together": speed_together.together,
    "decode": speed_floors.decode,
    "throughput": speed_load.throughput,
    "memory": speed_load.memory,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=f"of speed ({', '.join(PARTS)})")
    parser.add_argument("--clips", type=int, default=16, help="asked about for throughput, a question each (16)")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer, and steps of decoding timed (16)")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16], help="questions at once (1 4 16)")
    parser.add_argument(
        "--stock-together", type=int, nargs="*", default=[4, 16], help="prompts of stock batches (4 16)"
    )


def measure(model: str, args: argparse.Namespace) -> Report:
    """The chosen parts of one model."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject.of(model, Path(folder), args)
    engine, pruning = subject.engine, subject.pruning
    with forced_masks(), unhurried(engine):
        stock = Stock(engine)
        tables = [table for part in args.parts for table in PARTS[part](subject, stock, args)]
    facts = described(args.device) | {
        "dtype": precision(args),
        "decoder layers": f"{engine.info.layers}, cut at {pruning.cut}",
        "clip": f"{len(subject.clips[0])} frames, {subject.views.count} views of {subject.views.patches} patches",
        "chunk": f"{engine.config.chunk_frames} frames",
        "repeats": str(args.repeats),
    }
    usual = "bfloat16" if args.device.startswith("cuda") else "float32"
    dtype = "" if args.dtype == usual else args.dtype
    variant = dtype if args.quantization == "none" else args.quantization
    return Report(section="speed", model=model, device=args.device, facts=facts, tables=tuple(tables), variant=variant)
