"""`make eval`: what pruning costs a model in right answers, and whether what it keeps follows clip and question."""

import argparse

from occam.config import EngineConfig, Pruning
from occam.engine import Engine
from pipelines.evaluation.accuracy import accuracies
from pipelines.evaluation.adaptivity import Retention, busy_and_empty, coverage
from pipelines.evaluation.renderer import FIRST_TEST_SEED

FIRST_SEED = FIRST_TEST_SEED + 500_000


def main() -> None:
    """Print the tables of one model, under its calibrated strategy."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluation", description=__doc__)
    parser.add_argument("--model", default="tiny-video-llava")
    parser.add_argument("--clips", type=int, default=500, help="clips of the accuracy table, two questions each (500)")
    parser.add_argument("--pairs", type=int, default=250, help="pairs of questions about one clip (250)")
    parser.add_argument("--kinds", type=int, default=100, help="busy clips, and empty ones (100)")
    options = parser.parse_args()
    engine = Engine.load(EngineConfig(model=options.model))
    pruning = engine.pruning("occam")
    print(f"{options.model}, {pruning}\n", flush=True)
    _print_accuracy(engine, {"none": engine.pruning("none"), "occam": pruning}, options.clips)
    _print_retention(*busy_and_empty(engine, pruning, options.kinds))
    _print_coverage(engine, pruning, options.pairs)


def _print_accuracy(engine: Engine, strategies: dict[str, Pruning], clips: int) -> None:
    print("| strategy | questions right | both of a clip right | encoded | stage I | stage II |")
    print("|---|---|---|---|---|---|")
    scores = accuracies(engine, list(strategies.values()), FIRST_SEED, clips)
    for name, score in zip(strategies, scores, strict=True):
        kept = f"{score.kept.encoded:.0f} | {score.kept.stage1:.1f} | {score.kept.stage2:.1f}"
        print(f"| {name} | {score.questions} | {score.clips} | {kept} |", flush=True)


def _print_retention(busy: Retention, empty: Retention) -> None:
    print("\n| clips | after stage I | after stage II |")
    print("|---|---|---|")
    for name, kept in {"busy": busy, "empty": empty}.items():
        print(f"| {name} | {kept.stage1} | {kept.stage2} |", flush=True)


def _print_coverage(engine: Engine, pruning: Pruning, pairs: int) -> None:
    covered = coverage(engine, pruning, pairs)
    print(
        f"\nShare of an object's patches kept when it is asked about: {covered.asked}; when another object of the clip "
        f"is: {covered.other}; difference {covered.difference}, paired sign-flip p = {covered.p:.4f}."
    )


if __name__ == "__main__":
    main()
