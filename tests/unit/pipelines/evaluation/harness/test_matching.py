"""Budgets are matched: told where a count is fixed, tuned where a threshold decides."""

from dataclasses import replace
from typing import Any, cast

import pytest

from occam.config import EngineConfig, Pruning, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from pipelines.evaluation.harness.matching import Setting, settings_of
from pipelines.evaluation.harness.plan import Plan, Spec
from pipelines.evaluation.material import Sample, ignore
from pipelines.evaluation.tasks.rendered import rendered_task
from tests.evaluated import INFO, JudgedEngine, drawn

PLAN = Plan.of(["embedded"], "none", "0.5,0.25,0.1", "none", "out")


def made(engine: Any, strategy: str, samples: list[Sample], plan: Plan = PLAN) -> list[Setting]:
    return settings_of(engine, replace(plan, strategies=(Spec.parse(strategy),)), samples, ignore)


def share_kept(engine: Any, pruning: Pruning, samples: list[Sample]) -> float:
    """What the answers say was kept."""
    counts = [
        engine.ask(engine.state_of(sample.frames(), pruning), question, pruning, SamplingParams()).visual_tokens
        for sample in samples
        for question in sample.questions
    ]
    return sum(each.stage2 for each in counts) / sum(each.encoded for each in counts)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [clip.sample(INFO) for clip in rendered_task(("video",), 4, 2, seed=0).tuning]


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


def test_an_outcome_is_not_searched_for_on_no_clips() -> None:
    with pytest.raises(InvalidInput, match="dtd is set on clips that are not asked about"):
        made(JudgedEngine(drawn), "dtd", [])


@pytest.fixture(scope="module")
def embedded() -> Engine:
    return Engine.load(EngineConfig(threads=1))


@pytest.mark.parametrize("rule", ["register", "top_p", "top_k"])
def test_thresholds_meet_budgets_on_the_embedded_model(embedded: Engine, samples: list[Sample], rule: str) -> None:
    """On their own clips to a token a question; where stage I keeps less than is asked for, lambda1 gives way."""
    specified = f"occam:lambda1=1.0:rule={rule}"
    *settings, floor = made(embedded, specified, samples, replace(PLAN, budgets=(0.95, 0.25, 0.1)))
    assert share_kept(embedded, floor.pruning(embedded), samples) == 0
    for setting in settings:
        kept = share_kept(embedded, setting.pruning(embedded), samples)
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
        assert share_kept(embedded, setting.pruning(embedded), samples) == pytest.approx(setting.budget, abs=1 / 288)
        assert setting.cut is None


@pytest.mark.parametrize(
    ("strategy", "option", "budgets"),
    [("systematic:cut=2", "mass", (0.5, 0.25, 0.1)), ("dtd", "tau", (0.75, 0.5, 0.25))],
)
def test_a_count_that_is_an_outcome_meets_budgets_by_its_option(
    embedded: Engine, samples: list[Sample], strategy: str, option: str, budgets: tuple[float, ...]
) -> None:
    settings = [each for each in made(embedded, strategy, samples, replace(PLAN, budgets=budgets)) if each.budget]
    assert len(settings) == 3
    for setting in settings:
        assert share_kept(embedded, setting.pruning(embedded), samples) == pytest.approx(setting.budget, abs=0.01)
    values = [setting.options[option] for setting in settings]
    assert values == sorted(values, reverse=True)


def test_less_than_a_patch_a_question_keeps_one(embedded: Engine, samples: list[Sample]) -> None:
    setting, *_ = made(embedded, "systematic:cut=2", samples, replace(PLAN, budgets=(0.001,)))
    assert share_kept(embedded, setting.pruning(embedded), samples) == 1 / 288
