"""Budgets are met on the samples they were set on, for every layout of patches and any number of questions a clip."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from occam.config import EngineConfig, OccamToken, RegisterMode, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.types import FrameBatch
from pipelines.evaluation.budgets import lambda1_for, lambda2_for
from pipelines.evaluation.calibrate import Plan, calibrate
from pipelines.evaluation.clips import frames_of, scenes
from pipelines.evaluation.material import Sample
from pipelines.evaluation.premise import RULES
from tests.parity.checkpoint import write_checkpoint
from tests.parity.checkpoint_llava import random_image, write_llava, write_llava_next
from tests.parity.checkpoint_qwen import write_checkpoint as write_qwen

QUESTIONS = ("what colour is the ball ?", "where does it go", "what is it", "is the ball it ?")
BASE = OccamToken(lambda1=1.0, lambda2=1.0, cut=2, register="zero_token")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return loaded(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def clips() -> list[FrameBatch]:
    return [frames_of(scene) for scene in islice(scenes(7), 3)]


def loaded(folder: Path) -> Engine:
    (folder / "occam.json").unlink(missing_ok=True)
    return Engine.load(EngineConfig(model=str(folder), threads=1))


def asked(clips: Sequence[FrameBatch], *questions: int) -> list[Sample]:
    return [Sample.of(clip, QUESTIONS[:count]) for clip, count in zip(clips, questions, strict=True)]


def kept(engine: Engine, pruning: OccamToken, samples: list[Sample]) -> tuple[float, float, float]:
    """Patches encoded, and kept by either stage, on average over all questions."""
    counts = []
    for sample in samples:
        state = engine.state_of(sample.frames(), pruning)
        for question in sample.questions:
            tokens = engine.ask(state, question, pruning, SamplingParams(max_new_tokens=1)).visual_tokens
            counts.append((tokens.encoded, tokens.stage1, tokens.stage2))
    encoded, stage1, stage2 = np.mean(counts, axis=0).tolist()
    return encoded, stage1, stage2


@pytest.mark.parametrize("register", ["zero_token", "mean_threshold"])
@pytest.mark.parametrize(("stage1", "stage2"), [(0.7, 0.2), (1.0, 0.5), (0.4, 0.4)])
def test_on_its_own_samples_the_budget_is_met(
    engine: Engine, clips: list[FrameBatch], register: RegisterMode, stage1: float, stage2: float
) -> None:
    samples = asked(clips, 1, 4, 2)
    pruning = lambda1_for(engine, replace(BASE, register=register), samples, stage1)
    (pruning,) = lambda2_for(engine, [pruning], samples, stage2)
    encoded, first, second = kept(engine, pruning, samples)
    assert first == pytest.approx(stage1 * encoded, abs=4 / 7 + 1e-6), "a patch of the clip that is asked about most"
    assert second == pytest.approx(min(stage2 * encoded, first), abs=1 / 7 + 1e-6)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9], ids=str)
def test_one_pass_meets_the_budget_under_every_rule(engine: Engine, clips: list[FrameBatch], share: float) -> None:
    samples = asked(clips, 1, 4, 2)
    base = lambda1_for(engine, BASE, samples, 0.7)
    for pruning in lambda2_for(engine, [replace(base, rule=rule) for rule in RULES], samples, share):
        encoded, first, second = kept(engine, pruning, samples)
        step = 0.5 if pruning.rule == "top_k" else 2 / 7
        assert second == pytest.approx(min(share * encoded, first), abs=step + 1e-6), pruning.rule
        assert (pruning.lambda1, pruning.cut) == (base.lambda1, base.cut)


IMAGES = ((30, 150), (150, 30), (100, 160), (56, 112))


@pytest.mark.parametrize("size", IMAGES, ids=str)
def test_padding_of_tiles_is_no_part_of_a_budget(tmp_path: Path, size: tuple[int, int]) -> None:
    engine = loaded(write_llava_next(tmp_path))
    samples = [Sample.of(random_image(*size, seed), QUESTIONS[:2]) for seed in range(3)]
    assert engine.lm.shown(samples[0].frames()).all() == (size == IMAGES[-1]), "all but the last are padded"
    (pruning,) = lambda2_for(engine, [lambda1_for(engine, BASE, samples, 0.85)], samples, 0.25)
    encoded, first, second = kept(engine, pruning, samples)
    assert first == pytest.approx(0.85 * encoded, abs=1 / 3 + 1e-6)
    assert second == pytest.approx(0.25 * encoded, abs=1 / 6 + 1e-6)


@pytest.mark.parametrize("write", [write_checkpoint, write_llava, write_llava_next, write_qwen])
def test_every_family_says_which_patches_stand_in_its_sequence(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    """As many as its composer counts, in the shape of its scores, for media of odd sizes and numbers of frames."""
    engine = loaded(write(tmp_path))
    media = [random_image(*size) for size in IMAGES] if "image" in engine.info.media else []
    if "video" in engine.info.media:
        frames = np.random.default_rng(0).integers(0, 255, (3, 40, 130, 3), dtype=np.uint8)
        media += [
            FrameBatch(frames=frames, pts_seconds=np.arange(3.0), indices=np.arange(3), digest="").chunk(0, count)
            for count in (1, 3)
        ]
    for medium in media:
        [output] = engine.lm.encode([medium], "zero_token", "after_norm")
        shown = engine.lm.shown(medium)
        composed = engine.lm.compose(medium, output, shown.new_ones(shown.shape), keep_cls=False)
        assert shown.shape == output.scores.shape
        assert int(shown.sum()) == composed.encoded == int((composed.patch >= 0).sum())
        only = engine.lm.compose(medium, output, shown, keep_cls=False)
        assert only.patch.tolist() == composed.patch.tolist(), "keeping what stands there keeps everything"


def test_a_number_of_tokens_is_an_average_over_questions(tmp_path: Path) -> None:
    """A large image with one question and a small one with four: neither a clip's nor a patch's weight will do."""
    folder = write_llava_next(tmp_path)
    samples = [Sample.of(random_image(200, 200), QUESTIONS[:1]), Sample.of(random_image(20, 60, 1), QUESTIONS)]
    plan = Plan(stage1=0.9, stage2=20, cut=2)
    (folder / "occam.json").unlink()
    report = calibrate(EngineConfig(model=str(folder), threads=1), plan, lambda _: samples)
    for trial in report.trials[1:]:
        assert isinstance(trial.pruning, OccamToken)
        told = trial.kept
        assert told.stage1 == pytest.approx(0.9 * told.encoded, abs=4 / 5 + 1e-6)
        assert told.stage2 == pytest.approx(20, abs=1 / 5 + 1e-6)
        assert kept(loaded(folder), trial.pruning, samples) == pytest.approx((told.encoded, told.stage1, told.stage2))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"stage1": 0.5, "stage2": 0.6}, "Budgets must"),
        ({"stage1": 1.1}, "Budgets must"),
        ({"stage1": 0.0}, "Budgets must"),
        ({"stage1": float("nan"), "stage2": 5}, "Budgets must"),
        ({"stage2": 0.0}, "Budgets must"),
        ({"stage2": 1.0}, "budget 1 and stage1 0.85"),
        ({"stage2": float("nan")}, "Budgets must"),
        ({"stage2": float("inf")}, "Budgets must"),
        ({"cut": 0}, "cut must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"trials": -1}, "trials must be at least 1, got -1"),
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        Plan(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan(cut=6), r"cut must lie in 1\.\.5 for the 6 decoder layers of .*, got 6"),
        (Plan(stage2=109), "109 tokens passes what stage I keeps: 0.85 of the 128 patches"),
    ],
    ids=str,
)
def test_what_a_model_cannot_do_is_refused_before_its_tower_runs(
    engine: Engine, clips: list[FrameBatch], plan: Plan, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("occam.models.clip_tower.ClipTower._embed", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InvalidInput, match=match):
        calibrate(EngineConfig(model=engine.info.name, threads=1), plan, lambda _: asked(clips, 1, 1, 1))
