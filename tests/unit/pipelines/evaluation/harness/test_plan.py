"""What the command line says."""

import pytest

from occam.errors import InvalidInput
from pipelines.evaluation.harness.plan import Plan, Spec
from services.cli import main


def test_a_strategy_has_options_of_its_own() -> None:
    spec = Spec.parse(" occam:register=mean_threshold:cut=4:lambda1=0.5:keep_cls=True ")
    assert spec.name == "occam"
    assert dict(spec.options) == {"register": "mean_threshold", "cut": 4, "lambda1": 0.5, "keep_cls": True}
    assert spec.label == "occam:register=mean_threshold:cut=4:lambda1=0.5:keep_cls=True"


@pytest.mark.parametrize(
    ("strategies", "budgets", "numbers", "says"),
    [
        ("none", "0.5,x", {}, "Budgets are numbers"),
        ("none", "0", {}, "above 0 and up to 1, got 0"),
        ("none", "1.5", {}, "above 0 and up to 1, got 1.5"),
        ("none", "0.5,0.50", {}, "nothing twice"),
        ("none,none", "0.5", {}, "nothing twice"),
        ("none,occam:cut", "0.5", {}, "NAME or NAME:OPTION=VALUE"),
        ("", "0.5", {}, "NAME or NAME:OPTION=VALUE"),
        ("none", "0.5", {"limit": 0}, "limit must be at least 1, got 0"),
        ("none", "0.5", {"tuning": 0}, "tuning must be at least 1, got 0"),
        ("none", "0.5", {"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(strategies: str, budgets: str, numbers: dict[str, int], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Plan.of(["embedded"], strategies, budgets, "none", "out", **numbers)


def test_the_command_refuses_before_the_model_loads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("occam.engine.Engine.load", lambda _: pytest.fail("it loaded"))
    assert main(["eval", "tiny-video-llava", "--out", "nowhere", "--task", "sorcery"]) == 1
    assert capsys.readouterr().err.startswith("occam: There is no task 'sorcery'")
