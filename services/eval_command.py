"""`occam eval`: its arguments, and the evaluation that they describe."""

import argparse
from collections.abc import Callable
from functools import partial

Progress = Callable[[str, int, int], None]


def add_arguments(parser: argparse.ArgumentParser, progress: Progress) -> None:
    """Make `parser` that of the command, which tells `progress` how far it is."""
    parser.description = (
        "Accuracy, tokens kept and seconds of strategies at equal average budgets over a task, compared in pairs. "
        "Writes a log, results.json, report.md and plots into DIR/TASK; the same command goes on where it stopped."
    )
    parser.add_argument("model", metavar="MODEL", help="embedded model, checkpoint directory or hub name")
    parser.add_argument(
        "--task",
        action="append",
        metavar="TASK",
        help="embedded (the default), FILE.jsonl of {video, question, answer, choices}, or NAME:FOLDER of mvbench, "
        "video-mme, mlvu, longvideobench, egoschema, msvd-qa, msrvtt-qa, tgif-qa, activitynet-qa; may be repeated",
    )
    parser.add_argument(
        "--strategies",
        default="none,occam",
        metavar="S,...",
        help="NAME, or NAME:OPTION=VALUE:OPTION=VALUE (%(default)s)",
    )
    parser.add_argument(
        "--budgets", default="0.5,0.25,0.1", metavar="B,...", help="average shares of the patches kept (%(default)s)"
    )
    parser.add_argument(
        "--against", default="none,random", metavar="S,...", help="strategies to compare with (%(default)s)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many questions of a task")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of all that is drawn (%(default)s)")
    parser.add_argument(
        "--tuning", type=int, default=50, metavar="N", help="clips set aside to set budgets on (%(default)s)"
    )
    parser.add_argument(
        "--pictures", type=int, default=3, metavar="N", help="clips whose kept patches are drawn (%(default)s)"
    )
    parser.set_defaults(run=partial(_run, progress))


def _run(progress: Progress, options: argparse.Namespace) -> None:
    # Torch takes seconds to import, and `--help` needs none.
    from transformers.utils import logging

    from pipelines.evaluation.harness.evaluate import evaluate
    from pipelines.evaluation.harness.plan import Plan
    from pipelines.evaluation.harness.report import accuracy_table
    from services.media import limits_of
    from services.settings import Settings

    plan = Plan.of(
        options.task or ["embedded"],
        options.strategies,
        options.budgets,
        options.against,
        options.out,
        limit=options.limit,
        seed=options.seed,
        tuning=options.tuning,
        pictures=options.pictures,
    )
    logging.disable_progress_bar()
    settings = Settings.load()
    for table in evaluate(settings.engine(options.model), plan, limits_of(settings), progress):
        print(f"{table.task}: {table.questions} questions about {table.clips} clips\n\n{accuracy_table(table)}\n")
