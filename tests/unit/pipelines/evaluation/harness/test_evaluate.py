"""An evaluation from end to end over an engine without a model: resumed, repeated, refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from occam.types import Answer, FrameBatch
from pipelines.evaluation.harness import evaluate as module
from pipelines.evaluation.harness.evaluate import NO_PLOTS, evaluate
from pipelines.evaluation.harness.log import AnswerLog
from pipelines.evaluation.harness.plan import Plan
from pipelines.evaluation.harness.report import accuracy_table
from pipelines.evaluation.harness.scores import Table
from pipelines.evaluation.material import Sample, ignore
from pipelines.evaluation.tasks.entries import Choice
from pipelines.evaluation.tasks.task import Clip, Item, Task, divided
from pipelines.ingest.limits import Limits
from tests.evaluated import INFO, JudgedEngine, drawn

ANSWERS = "own/answers.jsonl"
PLOTS = module._plots


class Own:
    """A task of four clips in memory, three questions each; `broken` names those that cannot be read."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def __call__(self, spec: str, choice: Choice, limits: Limits) -> Callable[[ModelInfo], Task]:
        asked, tuned = divided([self._clip(number) for number in range(4)], choice.limit, choice.tuning, choice.seed)
        return lambda _: Task(name=spec, clips=asked, tuning=tuned, max_new_tokens=4)

    def _clip(self, number: int) -> Clip:
        def opened(info: ModelInfo) -> Sample:
            if str(number) in self.broken:
                raise InvalidInput(f"{number}: it is no video.")
            shades = np.full((4, 8, 8, 3), 20 * number, np.uint8)
            seconds, indices = np.arange(4.0), np.arange(4)
            return Sample.of(FrameBatch(frames=shades, pts_seconds=seconds, indices=indices, digest=str(number)), ())

        items = tuple(
            Item(
                id=f"{number}-{question}",
                question=f"What {question}?",
                answer=("yes", "no", "red")[(number + question) % 3],
                choices=None,
                kind=f"k{question}",
            )
            for question in range(3)
        )
        return Clip(id=str(number), content="", items=items, open=opened)


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Own:
    task = Own()
    monkeypatch.setattr(module, "open_task", task)
    return task


@pytest.fixture(autouse=True)
def plotless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time, and one test is enough for them."""
    monkeypatch.setattr(module, "_plots", lambda *_: [])


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan.of(["own"], "none,random,late", "0.5,0.25", "none,random", str(tmp_path), tuning=1, pictures=0)


def run(plan: Plan, engine: JudgedEngine | None = None) -> Table:
    loaded: Any = engine or JudgedEngine(drawn)
    return evaluate(EngineConfig(), plan, Limits(), ignore, load=lambda _: loaded)[0]


def without_seconds(table: Table) -> Table:
    return replace(table, rows=tuple(replace(row, seconds=0.0) for row in table.rows))


def test_everything_is_written_and_what_was_kept_stands_beside_what_was_asked(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_plots", PLOTS)
    engine = JudgedEngine(drawn)
    table = run(replace(plan, pictures=1), engine)
    assert [(row.strategy, row.budget, row.kept) for row in table.rows] == [
        ("none", None, 1.0),
        ("random", 0.5, 0.5),
        ("random", 0.25, 0.25),
        ("late", 0.5, 0.5),
        ("late", 0.25, 0.25),
    ]
    assert (table.questions, table.clips, table.missing, table.unreadable) == (9, 3, 0, 0)
    assert engine.answered == 9 * 5 + 3, "and once a picture's row"
    assert engine.built == 3 * 4 + 3, "a clip's questions share a state, and so do budgets that it does not depend on"
    folder = plan.out / "own"
    files = {path.name for path in folder.iterdir()}
    assert files == {"answers.jsonl", "results.json", "report.md", "accuracy.png", "seconds.png", "kept-1.png"}
    report = (folder / "report.md").read_text()
    assert accuracy_table(table) in report
    assert "| late | 25.0 | random |" in report
    results = json.loads((folder / "results.json").read_text())
    assert results["run"]["weights"] == INFO.digest
    assert results["rows"][3]["accuracy"]["mean"] == table.rows[3].accuracy.mean
    assert "Relative accuracy over own" in (plan.out / "relative.md").read_text()


def test_two_runs_give_the_same_table(plan: Plan, tmp_path: Path) -> None:
    first = run(plan)
    second = run(replace(plan, out=tmp_path / "other"))
    assert without_seconds(first) == without_seconds(second)
    texts = [[json.loads(line).get("text") for line in (out / ANSWERS).read_text().splitlines()]
             for out in (plan.out, tmp_path / "other")]  # fmt: skip
    assert texts[0] == texts[1]
    assert len({text for text in texts[0] if text}) > 1


def test_a_run_killed_at_any_answer_goes_on_and_gives_the_same_table(plan: Plan, tmp_path: Path) -> None:
    whole = without_seconds(run(plan))
    for kills in (0, 7, 44):
        engine = Killed(drawn, kills)
        other = replace(plan, out=tmp_path / f"killed {kills}")
        with pytest.raises(KeyboardInterrupt):
            run(other, engine)
        answered = kills - kills % 3
        assert len((other.out / ANSWERS).read_text().splitlines()) == 1 + answered, "three questions go together"
        again = JudgedEngine(drawn)
        assert without_seconds(run(other, again)) == whole
        assert again.answered == 45 - answered, "what was answered is not asked again"


class Killed(JudgedEngine):
    """Ends after so many answers."""

    def __init__(self, answer: Callable[..., str], after: int) -> None:
        super().__init__(answer)
        self.after = after

    def ask(self, *arguments: Any) -> Answer:
        if self.answered == self.after:
            raise KeyboardInterrupt
        return super().ask(*arguments)


def test_a_last_line_torn_at_any_byte_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [{"item": str(number), "setting": "none", "text": "ü\n"} for number in range(2)]
    with AnswerLog(path, {"seed": 0}) as log:
        log.begin([{"name": "none"}])
        for line in lines:
            log.append(line)
    full = path.read_bytes()
    start = full.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(full)):
        path.write_bytes(full[:end])
        with AnswerLog(path, {"seed": 0}) as log:
            assert log.answers == lines[:1]
            assert log.settings == [{"name": "none"}]
            log.append(lines[1])
        assert path.read_bytes() == full
    for end in (0, 1, full.index(b"\n")):
        path.write_bytes(full[:end])
        with AnswerLog(path, {"seed": 0}) as log:
            assert log.settings is None, "a torn header begins anew"
        assert path.read_bytes() == b""


def test_a_log_has_one_writer_and_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerLog(path, {}) as log:
        log.begin([])
        with pytest.raises(InvalidInput, match="Another process is writing"):
            AnswerLog(path, {})
    path.write_bytes(path.read_bytes() + b"{\n{}\n")
    with pytest.raises(InvalidInput, match="damaged before its last line"):
        AnswerLog(path, {})


def test_a_torn_answer_is_asked_again_with_those_it_was_asked_with(plan: Plan) -> None:
    whole = without_seconds(run(plan))
    log = plan.out / ANSWERS
    lines = log.read_bytes()
    log.write_bytes(lines[:-9])
    engine = JudgedEngine(drawn)
    assert without_seconds(run(plan, engine)) == whole
    assert engine.answered == 3
    assert len(log.read_bytes().splitlines()) == len(lines.splitlines()), "and logged alone"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: replace(plan, seed=1), "another questions, seed: "),
        (lambda plan: replace(plan, budgets=(0.5,)), r"another budgets: \[0.5, 0.25\] there, \[0.5\] now"),
        (lambda plan: replace(plan, strategies=plan.strategies[:2]), "another strategies"),
        (lambda plan: replace(plan, limit=3), "another questions"),
    ],
)
def test_a_log_of_another_run_is_refused(plan: Plan, change: Callable[[Plan], Plan], says: str) -> None:
    run(plan)
    before = (plan.out / ANSWERS).read_bytes()
    with pytest.raises(InvalidInput, match=says):
        run(change(plan))
    assert (plan.out / ANSWERS).read_bytes() == before


def test_a_log_of_another_model_or_code_is_refused(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    run(plan)
    engine = JudgedEngine(drawn)
    engine.info = replace(INFO, digest="f" * 64)
    with pytest.raises(InvalidInput, match=r"another weights: 000.* there, fff.* now"):
        run(plan, engine)
    monkeypatch.setattr(module, "code_digest", lambda: "other")
    with pytest.raises(InvalidInput, match="another code"):
        run(plan)


def test_a_clip_that_cannot_be_used_is_left_out_of_every_strategy(plan: Plan, own: Own) -> None:
    own.broken = {"2", "3"}
    table = run(replace(plan, pictures=9))
    lines = [json.loads(line) for line in (plan.out / ANSWERS).read_text().splitlines()]
    errors = [line["error"] for line in lines if "error" in line]
    assert errors
    assert set(errors) <= {"2: it is no video.", "3: it is no video."}
    assert (table.questions, table.unreadable) == (9 - 3 * len(errors), 3 * len(errors))
    assert f"{3 * len(errors)} left out because their clip cannot be used" in (plan.out / "own/report.md").read_text()
    assert len(list((plan.out / "own").glob("kept-*.png"))) == table.clips
    own.broken = set()
    assert run(plan).unreadable == 0, "the next run tries again"
    own.broken = {"0", "1", "2", "3"}
    with pytest.raises(InvalidInput, match="No clip of own could be asked about; 9 questions were tried"):
        run(replace(plan, out=plan.out / "none"))


def test_without_matplotlib_the_report_says_why_there_are_no_plots(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    run(plan)
    assert NO_PLOTS in (plan.out / "own/report.md").read_text()
    assert PLOTS(run(plan), plan.out / "own") == []


def test_an_unknown_strategy_is_refused_before_anything_is_asked(plan: Plan) -> None:
    engine = JudgedEngine(drawn)
    with pytest.raises(InvalidInput, match="There is no strategy 'sorcery'"):
        run(replace(plan, strategies=(*plan.strategies, plan.strategies[0].parse("sorcery"))), engine)
    assert engine.answered == 0
