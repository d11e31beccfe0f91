"""Budgets are matched: told where a count is fixed, tuned where a threshold decides."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from occam.config import EngineConfig
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.types import FrameBatch
from pipelines.evaluation.harness.matching import Setting, _kept, settings_of
from pipelines.evaluation.harness.plan import Plan, Spec
from pipelines.evaluation.material import Sample, ignore
from pipelines.evaluation.tasks.rendered import rendered_task
from tests.evaluated import INFO, JudgedEngine, drawn

PLAN = Plan.of(["embedded"], "none", "0.5,0.25,0.1", "none", "out")


def made(engine: Any, strategy: str, samples: list[Sample], plan: Plan = PLAN) -> list[Setting]:
    return settings_of(engine, replace(plan, strategies=(Spec.parse(strategy),)), samples, ignore)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [clip.sample(INFO) for clip in rendered_task(("video",), 6, 3, seed=0).tuning]


def test_a_fixed_count_is_told_its_budget_and_only_chance_its_seed() -> None:
    engine = JudgedEngine(drawn)
    *late, floor = made(engine, "late:cut=2", [])
    assert [each.options for each in late] == [{"cut": 2, "budget": budget} for budget in (0.5, 0.25, 0.1)]
    assert {each.cut for each in (*late, floor)} == {2}
    assert (floor.label, floor.budget, floor.options) == ("nothing:cut=2", None, {"cut": 2})
    plan = replace(PLAN, seed=7)
    assert {each.options["seed"] for each in made(engine, "random", [], plan)} == {7}
    assert {each.options["seed"] for each in made(engine, "random:seed=3", [], plan)} == {3}
    assert made(engine, "none", []) == [Setting(strategy="none", budget=None, name="none")]


def test_every_cut_has_its_floor_once() -> None:
    specs = tuple(map(Spec.parse, ("late:cut=3", "late:cut=1", "random", "nothing:cut=3", "late:seed=1:cut=1")))
    settings = settings_of(cast(Any, JudgedEngine(drawn)), replace(PLAN, strategies=specs), [], ignore)
    assert [each.label for each in settings if each.name == "nothing"] == ["nothing:cut=3", "nothing:cut=1"]


def test_an_outcome_is_searched_for() -> None:
    engine: Any = JudgedEngine(drawn)
    frames = FrameBatch(
        frames=np.zeros((4, 8, 8, 3), np.uint8), pts_seconds=np.arange(4.0), indices=np.arange(4), digest=""
    )
    samples = [Sample.of(frames, ["What?", "Where?"])]
    for setting in made(engine, "dtd", samples):
        assert _kept(engine, setting.pruning(engine), samples) == pytest.approx(setting.budget, abs=0.02)
    with pytest.raises(InvalidInput, match="dtd is set on clips that are not asked about"):
        made(engine, "dtd", [])


@pytest.fixture(scope="module")
def embedded() -> Engine:
    return Engine.load(EngineConfig(threads=1))


@pytest.mark.parametrize("rule", ["register", "top_p", "top_k"])
def test_thresholds_meet_budgets_on_the_embedded_model(embedded: Engine, samples: list[Sample], rule: str) -> None:
    """On their own clips to a token a question; where stage I keeps less than is asked for, lambda1 gives way."""
    specified = f"occam:lambda1=1.0:rule={rule}"
    *settings, floor = made(embedded, specified, samples, replace(PLAN, budgets=(0.95, 0.25, 0.1)))
    assert _kept(embedded, floor.pruning(embedded), samples) == 0
    for setting in settings:
        kept = _kept(embedded, setting.pruning(embedded), samples)
        assert kept == pytest.approx(setting.budget, abs=1 / 288)
    lambdas = [setting.options["lambda1"] for setting in settings]
    assert lambdas[0] != 1.0
    assert lambdas[1:] == [1.0, 1.0]


def test_stage_one_alone_meets_budgets_by_lambda1(embedded: Engine, samples: list[Sample]) -> None:
    settings = made(
        embedded, "occam:lambda2=0:rule=register:register=mean_threshold", samples, replace(PLAN, budgets=(0.5, 0.1))
    )
    assert [each.options["lambda2"] for each in settings] == [0, 0]
    for setting in settings:
        assert _kept(embedded, setting.pruning(embedded), samples) == pytest.approx(setting.budget, abs=1 / 288)
        assert setting.cut is None
