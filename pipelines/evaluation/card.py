"""`make card`: measure the embedded models and rewrite their cards in the document that describes them."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from occam.config import EngineConfig
from occam.engine import Engine
from occam.errors import OccamError
from occam.models.checkpoint import embedded_models
from pipelines.evaluation.card_measures import Material, measure
from pipelines.evaluation.card_text import markdown_of
from pipelines.evaluation.markdown import rewritten
from pipelines.evaluation.origin import Origin

DOCUMENT = Path("docs", "embedded-models.md")
PER_KIND = 120
EVERY = 10
"""Scenes between two lines of progress."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, one model after the other; 1 with a sentence on stderr where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluation.card", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="embedded models, or paths (all embedded ones)")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help=f"questions a kind ({PER_KIND})")
    parser.add_argument("--threads", type=int, default=EngineConfig.threads, help="torch threads (%(default)s)")
    parser.add_argument("--print", action="store_true", help="print the cards, and leave the document alone")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=f"where the cards stand ({DOCUMENT})")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    if options.per_kind < 1:
        parser.error(f"--per-kind must be at least 1, got {options.per_kind}")
    document = None if options.print else options.document
    origin = Origin.of(shlex.join(["python", "-m", "pipelines.evaluation.card", *arguments]))
    try:
        configs = [EngineConfig(model=name, threads=options.threads) for name in options.models or embedded_models()]
        _make(configs, options.per_kind, document, origin)
    except OccamError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _make(configs: Sequence[EngineConfig], per_kind: int, document: Path | None, origin: Origin) -> None:
    for config in configs:
        if document is not None:
            rewritten(document, f"card {config.model}", "")  # a missing marker is said before an hour of measuring
    _say("drawing the questions")
    material = Material.drawn(per_kind)
    for config in configs:
        card = measure(Engine.load(config), material, partial(_say_progress, config.model))
        text = markdown_of(card, origin)
        if document is None:
            print(text, flush=True)
        else:
            document.write_text(rewritten(document, f"card {config.model}", text))


def _say_progress(model: str, phase: str, done: int, total: int) -> None:
    if done % EVERY == 0 or done == total:
        _say(f"{model}: {phase}, {done} of {total} scenes")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
