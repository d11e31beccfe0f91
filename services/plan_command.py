"""`occam plan`: its arguments, and the table that it prints."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from occam.errors import InvalidInput
from services.settings import Settings

if TYPE_CHECKING:
    from services.plan import Load, Size

_COLUMNS = (
    "model", "strategy", "kept", "frames", "visual tokens", "KV a video", "embeddings", "Redis", "tokens/s", "rate",
    "workers", "GPUs",
)  # fmt: skip
_LARGE = "*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make `parser` that of the command."""
    parser.description = (
        "What a load takes: visual tokens and bytes of a video, Redis memory, workers and GPUs, of each model at each "
        "share of tokens that stage I keeps. Bytes and times to live are those of the settings (OCCAM_*)."
    )
    parser.add_argument("--model", action="append", help="model to plan for, may be repeated (OCCAM_MODELS)")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--videos-per-day", type=float, metavar="N", help="new videos in a day")
    load.add_argument("--questions-per-second", type=float, metavar="N", help="questions, about new videos and others")
    parser.add_argument("--questions", type=int, default=3, metavar="N", help="questions about each video (3)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="length of a video (60)")
    parser.add_argument("--frame-size", type=_frame_size, default=(1280, 720), metavar="WxH", help="pixels (1280x720)")
    parser.add_argument("--fps", type=float, help="frames a second, instead of the model's fixed number")
    parser.add_argument("--max-frames", type=int, metavar="N", help="at most so many frames")
    parser.add_argument("--answer-tokens", type=int, default=64, metavar="N", help="of an answer, at most (64)")
    parser.add_argument("--peak", type=float, default=1.0, metavar="X", help="busiest moment over the average (1)")
    parser.add_argument(
        "--retention", type=float, action="append", metavar="SHARE", help="kept by stage I, repeatable (1, .5, .25)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="visual tokens a second of a worker that answers too (it is measured)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a row")
    parser.set_defaults(run=_run)


def _frame_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"a size is two numbers, as 1280x720, not {text!r}")
    return int(width), int(height)


def _run(options: argparse.Namespace) -> None:
    # Torch takes seconds to import, and `--help` needs none.
    from transformers.utils import logging

    from occam.engine import Engine
    from services.plan import size

    logging.disable_progress_bar()
    settings, load = Settings.load(), _load(options)
    retentions = options.retention or (1.0, 0.5, 0.25)
    for share in retentions:
        if not 0 < share <= 1:
            raise InvalidInput(f"--retention must lie in (0, 1], got {share:g}.", "retention")
    rows: list[Size] = []
    for model in options.model or settings.models:
        engine = Engine.load(settings.engine(model))
        rows += size(settings, engine, load, retentions, options.rate)
    print("\n".join(json.dumps(asdict(row)) for row in rows) if options.json else _table(rows))


def _load(options: argparse.Namespace) -> "Load":
    from services.messages import FrameChoice
    from services.plan import DAY_S, Load

    for name in ("videos_per_day", "questions_per_second", "questions", "seconds", "answer_tokens", "peak", "rate"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InvalidInput(f"--{name.replace('_', '-')} must be above 0, got {value:g}.", name)
    videos = options.videos_per_day or options.questions_per_second * DAY_S / options.questions
    width, height = options.frame_size
    return Load(
        videos_per_day=videos,
        questions=options.questions,
        seconds=options.seconds,
        width=width,
        height=height,
        frames=FrameChoice(fps=options.fps, max_frames=options.max_frames),
        answer_tokens=options.answer_tokens,
        peak=options.peak,
    )


def _table(rows: "Sequence[Size]") -> str:
    lines = [_COLUMNS, *map(_cells, rows)]
    note = (
        ""
        if all(row.kv_stored and row.embeddings_stored for row in rows)
        else f"\n{_LARGE} more than OCCAM_KV_ENTRY_BYTES: not in Redis"
    )
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    table = "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )
    return table + note


def _cells(row: "Size") -> tuple[str, ...]:
    return (
        row.model,
        row.strategy,
        f"{row.retention:.0%}",
        str(row.frames),
        str(row.visual_tokens),
        _bytes(row.kv_bytes) + ("" if row.kv_stored else _LARGE),
        _bytes(row.embedding_bytes) + ("" if row.embeddings_stored else _LARGE),
        _bytes(row.redis_bytes),
        f"{row.tokens_per_second:.4g}",
        f"{row.rate:.4g}",
        str(row.workers),
        f"{row.gpus:g}",
    )


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"
