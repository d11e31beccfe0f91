"""`make eval`: its strategies can all be set on an embedded model, and its tables say what the answers said."""

from pathlib import Path

import pytest

from occam.config import EngineConfig
from occam.engine import Engine
from pipelines.evaluation import __main__ as command
from pipelines.evaluation.comparison import BUDGETS, CONTROLS, GROUPS, STRATEGIES, markdown_of
from pipelines.evaluation.harness.matching import settings_of
from pipelines.evaluation.harness.plan import Plan
from pipelines.evaluation.harness.scores import Difference, Row, Table
from pipelines.evaluation.material import ignore
from pipelines.evaluation.statistics import Estimate
from pipelines.evaluation.tasks.rendered import rendered_task

CLIPS = 12


def test_every_strategy_can_be_set_on_an_embedded_model() -> None:
    engine = Engine.load(EngineConfig(threads=1))
    [clip] = rendered_task(("video",), 2, 1, seed=0).tuning
    plan = Plan.of(["embedded"], ",".join(STRATEGIES), "0.25", ",".join(CONTROLS), "out")
    settings = settings_of(engine, plan, [clip.sample(engine.info)], ignore)
    assert {each.strategy for each in settings} >= set(STRATEGIES)
    for each in settings:
        each.pruning(engine)
    assert {each.cut for each in settings if each.name == "nothing"} == {each.cut for each in settings} - {None}


def made_up() -> Table:
    """Half is right of what was kept, all under `systematic`, none under `random`."""

    def right(strategy: str) -> float:
        return {"systematic": 1.0, "random": 0.0}.get(strategy.partition(":")[0], 0.5)

    def estimate(mean: float) -> Estimate:
        return Estimate(mean=mean, low=mean - 0.1, high=mean + 0.1, n=CLIPS)

    rows = tuple(
        Row(
            strategy=strategy,
            budget=budget,
            accuracy=estimate(right(strategy)),
            relative=None,
            kept=1.0 if budget is None else budget,
            stage1=1.0,
            encoded=100,
            seconds=0.0,
            floor=0.25 if "cut=3" in strategy else None,
            kinds={},
        )
        for strategy in STRATEGIES
        for budget in ((None,) if strategy == "none" else BUDGETS)
    )
    differences = tuple(
        Difference(
            strategy=row.strategy,
            other=control,
            budget=row.budget,
            difference=estimate(right(row.strategy) - right(control)),
            p=0.001 if row.strategy.startswith("systematic") else 0.02,
        )
        for control in CONTROLS
        for row in rows
        if row.budget is not None and row.strategy != control
    )
    return Table(task="t", clips=CLIPS, questions=CLIPS, missing=0, unreadable=0, rows=rows, differences=differences)


def test_each_group_stands_beside_its_controls() -> None:
    text = markdown_of(made_up())
    assert "12 questions about 12 clips; unpruned 50.0 [40.0, 60.0] % right" in text
    sections = text.split("#### ")[1:]
    assert [section.splitlines()[0] for section in sections] == [group.title for group in GROUPS]
    for section, group in zip(sections, GROUPS, strict=True):
        right, *minus = section.split("Minus `")
        assert [part.partition("`")[0] for part in minus] == list(group.controls)
        for strategy in (*group.strategies, *group.controls):
            assert f"| `{strategy}` | " in right
            assert [f"| `{strategy}` | " in part for part in minus] == [other != strategy for other in group.controls]
    line = next(line for line in sections[0].splitlines() if line.startswith("| `systematic:cut=3`"))
    assert line.startswith("| `systematic:cut=3` | 100.0 [90.0, 110.0], 50.0 kept | 100.0 [90.0, 110.0], 25.0 kept |")
    assert line.endswith(" | 25.0 |"), "the floor"
    against_random = sections[0].split("Minus `random:cut=3`")[1]
    assert "| `systematic:cut=3` | +100.0 [+90.0, +110.0]* |" in against_random
    assert "rule=mean` | +50.0 [+40.0, +60.0] |" in against_random


def test_the_document_gets_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "results.md"
    document.write_text("before\n<!-- eval judged -->\n<!-- /eval judged -->\nbehind\n")

    def evaluated(config: EngineConfig, plan: Plan, *_: object) -> list[Table]:
        assert (config.model, plan.limit, plan.budgets) == ("judged", 24, BUDGETS)
        folder = plan.out / "embedded"
        folder.mkdir(parents=True)
        for name in ("report.md", "accuracy.png", "answers.jsonl"):
            (folder / name).write_text(name)
        return [made_up()]

    monkeypatch.setattr(command, "evaluate", evaluated)
    arguments = ["judged", "--limit", "24", "--out", str(tmp_path / "out"), "--document", str(document)]
    assert command.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- eval judged -->\n\n12 questions")
    assert text.endswith("<!-- /eval judged -->\nbehind\n")
    assert sorted(path.name for path in (tmp_path / "eval" / "judged").iterdir()) == ["accuracy.png", "report.md"]
    assert command.main(["other", *arguments[1:]]) == 1
