"""Budgets are matched: told where a count is fixed, tuned where a threshold decides."""

from dataclasses import replace
from typing import Any

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
    assert [each.options for each in made(engine, "late:cut=2", [])] == [
        {"cut": 2, "budget": budget} for budget in (0.5, 0.25, 0.1)
    ]
    plan = replace(PLAN, seed=7)
    assert {each.options["seed"] for each in made(engine, "random", [], plan)} == {7}
    assert {each.options["seed"] for each in made(engine, "random:seed=3", [], plan)} == {3}
    assert made(engine, "none", []) == [Setting(strategy="none", budget=None, name="none")]


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
    settings = made(embedded, f"occam:lambda1=1.0:rule={rule}", samples, replace(PLAN, budgets=(0.95, 0.25, 0.1)))
    for setting in settings:
        kept = _kept(embedded, setting.pruning(embedded), samples)
        assert kept == pytest.approx(setting.budget, abs=1 / 288)
    lambdas = [setting.options["lambda1"] for setting in settings]
    assert lambdas[0] != 1.0
    assert lambdas[1:] == [1.0, 1.0]
