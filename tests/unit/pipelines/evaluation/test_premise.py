"""The verdict: the published rule, unless an adaptive one is better beyond chance, and never a control."""

import numpy as np
import pytest

from occam.config import OccamToken, Pruning, Random, RegisterMode, Rule
from pipelines.evaluation.accuracy import Kept
from pipelines.evaluation.premise import RULES, Verdict, candidates
from pipelines.evaluation.trials import Trial

CLIPS = 40


def trial(rule: Rule | None, right: float | None, register: RegisterMode = "zero_token", coarse: float = 0.0) -> Trial:
    """Of a rule, or without one of `random`; right in the first clips, up to this share of them."""
    pruning: Pruning = Random(budget=0.25, cut=1)
    if rule:
        pruning = OccamToken(lambda1=1.0, lambda2=1.0, cut=1, register=register, rule=rule)
    marks = None if right is None else np.tile((np.arange(CLIPS) < right * CLIPS)[:, None], (1, 2))
    kept = Kept(encoded=100, stage1=80, stage2=25, spread=3, all_or_nothing=coarse)
    return Trial(pruning=pruning, kept=kept, questions=2 * CLIPS, right=marks)


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ((0.5, 0.5, 0.5, 0.5, 0.5), "register"),
        ((0.5, 0.7, 0.4, 0.7, 0.5), "mean"),
        ((0.5, 0.4, 0.65, 0.7, 0.9), "top_p"),
        ((0.5, 0.4, 0.4, 0.4, 1.0), "register"),
        ((0.0, 0.0, 0.2, 0.0, 1.0), "first_token"),
        ((0.5, 0.525, 0.4, 0.4, 0.5), "register"),
    ],
    ids=str,
)
def test_the_best_adaptive_rule_is_chosen_where_it_is_better_beyond_chance(
    right: tuple[float, ...], chosen: Rule
) -> None:
    trials = [*map(trial, RULES, right), trial("register", 0.0, "mean_threshold"), trial(None, 1.0)]
    verdict = Verdict.of(trials)
    assert verdict.chosen is trials[RULES.index(chosen)]
    assert verdict.published is trials[0]


def test_another_source_of_the_reference_may_win() -> None:
    trials = [*(trial(rule, 0.5) for rule in RULES), trial("register", 0.7, "mean_threshold")]
    assert Verdict.of(trials).chosen is trials[-1]


def test_a_control_is_warned_of_where_it_is_better_beyond_its_interval() -> None:
    trials = [trial("register", 0.5), trial("mean", 0.9, "neurons"), trial("top_k", 1.0), trial(None, 0.925)]
    (warning,) = Verdict.of(trials).warnings
    assert warning.startswith("warning: zero_token/top_k, a control and never the default, answered 10.0 points more ")
    assert "than neurons/mean (95 % interval 2.5 to " in warning
    assert Verdict.of([*trials[:2], trials[3]]).warnings == [], "one clip more is within chance"


def test_where_nobody_knows_the_truth_the_finest_stage_one_is_chosen() -> None:
    trials = [trial("register", None, coarse=0.5), trial("register", None, "mean_threshold", coarse=0.25)]
    assert Verdict.of(trials).chosen is trials[1]
    assert Verdict.of([*trials[:1], trial("register", None, "mean_threshold", coarse=0.5)]).chosen is trials[0]


def test_rules_compete_where_answers_are_known() -> None:
    assert candidates(accepted=False, known=True) == {"zero_token": RULES, "mean_threshold": ("register",)}
    neurons = candidates(accepted=True, known=True)
    assert list(neurons) == ["neurons", "zero_token", "mean_threshold"]
    assert neurons["neurons"] == RULES
    assert candidates(accepted=False, known=False) == {"zero_token": ("register",), "mean_threshold": ("register",)}
    assert candidates(accepted=True, known=False) == {"neurons": ("register",)}
