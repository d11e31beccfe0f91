"""`make eval`: every strategy on the embedded models at equal average budgets, written into docs/results.md.

What was asked is logged under `--out`, and the same command goes on where it stopped.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from occam.config import EngineConfig
from occam.errors import OccamError
from occam.models.checkpoint import embedded_models
from pipelines.evaluation.comparison import BUDGETS, CONTROLS, STRATEGIES, markdown_of
from pipelines.evaluation.harness.evaluate import REPORT, evaluate
from pipelines.evaluation.harness.plan import Plan, Spec
from pipelines.evaluation.markdown import rewritten
from pipelines.evaluation.origin import Origin
from pipelines.evaluation.tasks.rendered import NAME, QUESTIONS
from pipelines.ingest.limits import Limits

DOCUMENT, OUT = Path("docs", "results.md"), Path("runs", "eval")
CHUNK = 8
"""Frames of a clip that are encoded together: all of them."""
EVERY = 10
"""Clips between two lines of progress."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and write, one model after the other; 1 with a sentence on stderr where that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluation", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="embedded models, or paths (all embedded ones)")
    parser.add_argument("--limit", type=int, default=QUESTIONS, help="questions a model (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another gives clips never asked about (%(default)s)")
    parser.add_argument("--tuning", type=int, default=50, help="clips that budgets are set on (%(default)s)")
    parser.add_argument("--threads", type=int, default=EngineConfig.threads, help="torch threads (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"logs and whole reports ({OUT})")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help=f"where the tables stand ({DOCUMENT})")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    origin = Origin.of(shlex.join(["python", "-m", "pipelines.evaluation", *arguments]))
    try:
        for model in options.models or embedded_models():
            _evaluate(model, options, origin)
    except OccamError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def _evaluate(model: str, options: argparse.Namespace, origin: Origin) -> None:
    """One model: its section of the document, and its whole report and pictures in a folder beside it."""
    name = Path(model).name
    section, document = f"eval {name}", options.document
    rewritten(document, section, "")  # a missing marker is said before hours of asking
    plan = Plan(
        tasks=(NAME,),
        strategies=tuple(map(Spec.parse, STRATEGIES)),
        budgets=BUDGETS,
        against=CONTROLS,
        out=options.out / name,
        limit=options.limit,
        seed=options.seed,
        tuning=options.tuning,
        pictures=1,
    )
    config = EngineConfig(model=model, threads=options.threads, chunk_frames=CHUNK)
    [table] = evaluate(config, plan, Limits(), partial(_say_progress, name))
    beside = document.parent / "eval" / name
    beside.mkdir(parents=True, exist_ok=True)
    for file in (REPORT, *(path.name for path in (plan.out / NAME).glob("*.png"))):
        shutil.copyfile(plan.out / NAME / file, beside / file)
    text = (
        f"{markdown_of(table)}\n\n![accuracy over patches kept](eval/{name}/accuracy.png)\n\n"
        f"The whole report, by kinds of questions too: [eval/{name}/{REPORT}](eval/{name}/{REPORT}). Made by {origin}."
    )
    document.write_text(rewritten(document, section, text))


def _say_progress(model: str, phase: str, done: int, total: int) -> None:
    if done % EVERY == 0 or done == total:
        print(f"{model}: {phase}, {done} of {total} clips", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
