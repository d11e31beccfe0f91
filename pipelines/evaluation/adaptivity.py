"""Does the number kept follow the clip, and does the set kept follow the question? Measured, whichever way it falls.

`python -m pipelines.evaluation.adaptivity MODEL` prints it of a model's calibrated strategy.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from occam.config import EngineConfig, Pruning, SamplingParams
from occam.engine import Engine
from occam.types import Answer, Evidence
from pipelines.evaluation.clips import frames_of, scenes
from pipelines.evaluation.questions import Question, ask
from pipelines.evaluation.renderer import BUSY, EMPTY, FIRST_TEST_SEED, Scene, SceneConfig
from pipelines.evaluation.statistics import Estimate, estimate, paired_p

ABOUT_ONE_OBJECT = ("color", "shape", "size", "direction", "when", "vanishes", "side", "half")
PAIRS = SceneConfig(objects=(2, 4), dot_probability=0.0)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Tokens kept a clip, of `encoded`, after stage I and after stage II."""

    encoded: int
    stage1: Estimate
    stage2: Estimate


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Share of an object's patches among the kept ones: when it is asked about, and when another object is.

    p: one-sided, of asked > other, paired over clips
    """

    asked: Estimate
    other: Estimate
    difference: Estimate
    p: float


def retention(engine: Engine, pruning: Pruning, config: SceneConfig, clips: int, first_seed: int) -> Retention:
    """How much is kept on clips of one kind, over one question a clip."""
    encoded, stage1, stage2 = 0, [], []
    source = scenes(first_seed, config)
    for _ in range(clips):
        scene = next(source)
        question = about_one_object(scene, np.random.default_rng(scene.seed))[0]
        counts = _ask(engine, scene, [question], pruning)[0].visual_tokens
        encoded = counts.encoded
        stage1.append(counts.stage1)
        stage2.append(counts.stage2)
    return Retention(encoded=encoded, stage1=estimate(stage1), stage2=estimate(stage2))


def busy_and_empty(engine: Engine, pruning: Pruning, clips: int = 60) -> tuple[Retention, Retention]:
    """Retention on busy clips (four objects, clutter) and on empty ones (one object, none)."""
    return (
        retention(engine, pruning, BUSY, clips, FIRST_TEST_SEED + 700_000),
        retention(engine, pruning, EMPTY, clips, FIRST_TEST_SEED + 800_000),
    )


def coverage(engine: Engine, pruning: Pruning, pairs: int = 250) -> Coverage:
    """Ask about two objects of a clip, and see whose patches were kept; a clip is one sample, the mean of its two."""
    asked, other = [], []
    for scene, first, second in _pairs(pairs):
        answers = _ask(engine, scene, [first, second], pruning)
        covered = [[_covered(a.evidence, scene, q.objects[0]) for q in (first, second)] for a in answers]
        asked.append((covered[0][0] + covered[1][1]) / 2)
        other.append((covered[0][1] + covered[1][0]) / 2)
    differences = np.array(asked) - np.array(other)
    return Coverage(
        asked=estimate(asked), other=estimate(other), difference=estimate(differences), p=paired_p(differences)
    )


def _ask(engine: Engine, scene: Scene, questions: list[Question], pruning: Pruning) -> list[Answer]:
    state = engine.state_of(frames_of(scene), pruning)
    return [engine.ask(state, question.text, pruning, SamplingParams(max_new_tokens=1)) for question in questions]


def about_one_object(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions that name exactly one object, one per object that can be named."""
    found: dict[int, Question] = {}
    for kind in rng.permutation(ABOUT_ONE_OBJECT * 6):
        question = ask(scene, str(kind), rng)
        if question is not None and len(question.objects) == 1:
            found.setdefault(question.objects[0], question)
    return list(found.values())


def _pairs(count: int) -> Iterator[tuple[Scene, Question, Question]]:
    source, made = scenes(FIRST_TEST_SEED + 600_000, PAIRS), 0
    while made < count:
        scene = next(source)
        questions = about_one_object(scene, np.random.default_rng(scene.seed))
        if len(questions) >= 2:
            made += 1
            yield scene, questions[0], questions[1]


def _covered(evidence: Evidence, scene: Scene, index: int) -> float:
    """Share of the object's area, over all frames, that lies on kept patches."""
    kept: npt.NDArray[np.bool_] = np.stack([frame.stage2 for frame in evidence.frames])
    cover = scene.patch_cover(scene.objects[index], kept.shape[1])
    return float(cover[kept].sum() / cover.sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.evaluation.adaptivity", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=100, help="busy clips, and empty ones (%(default)s)")
    parser.add_argument("--pairs", type=int, default=250, help="pairs of questions about one clip (%(default)s)")
    options = parser.parse_args()
    engine = Engine.load(EngineConfig(model=options.model))
    pruning = engine.pruning("occam")
    print(f"{options.model}, {pruning}", flush=True)
    for name, kept in zip(("busy", "empty"), busy_and_empty(engine, pruning, options.clips), strict=True):
        print(f"{name} clips: {kept.stage1} patches after stage I, {kept.stage2} after stage II", flush=True)
    covered = coverage(engine, pruning, options.pairs)
    print(
        f"share of an object's patches kept when it is asked about: {covered.asked}; when another object of the clip "
        f"is: {covered.other}; difference {covered.difference}, paired sign-flip p = {covered.p:.4f}"
    )


if __name__ == "__main__":
    main()
