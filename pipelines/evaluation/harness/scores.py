"""What the answers of a run say: accuracy, what was kept, what it took, and paired differences, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from occam.errors import InvalidInput
from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.harness.plan import FLOOR, FULL
from pipelines.evaluation.statistics import Estimate, estimate_groups, paired_p_groups
from pipelines.evaluation.tasks.scoring import is_right
from pipelines.evaluation.tasks.task import Item, Task

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy at one budget.

    accuracy: share of questions answered right; relative: to keeping everything, None where that was not run or never
    right; kept, stage1: shares of the patches that reached the upper layers, and that stage I left
    encoded: patches a question; seconds: a question over a clip that is new, from frames to answer
    floor: accuracy where no visual token passes the layer before which it prunes; None where it prunes before none
    kinds: accuracy by kind of question
    """

    strategy: str
    budget: float | None
    accuracy: Estimate
    relative: float | None
    kept: float
    stage1: float
    encoded: float
    seconds: float
    floor: float | None
    kinds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of `strategy` minus that of `other` over the same questions at a budget; p: two-sided sign flips."""

    strategy: str
    other: str
    budget: float | None
    difference: Estimate
    p: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """All of a task; missing: questions whose clip is not there; unreadable: those whose clip cannot be used."""

    task: str
    clips: int
    questions: int
    missing: int
    unreadable: int
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]


def table_of(
    task: Task, settings: Sequence[Setting], answers: Iterable[Mapping[str, Any]], against: Sequence[str]
) -> Table:
    """Questions that were answered under every setting, so that all are compared over the same."""
    by_setting: dict[str, dict[str, Mapping[str, Any]]] = {setting.label: {} for setting in settings}
    for answer in answers:
        by_setting[answer["setting"]][answer["item"]] = answer
    asked = [(clip.id, item) for clip in task.clips for item in clip.items]
    common = [(clip, item) for clip, item in asked if all(item.id in known for known in by_setting.values())]
    if not common:
        raise InvalidInput(f"No clip of {task.name} could be asked about; {len(asked)} questions were tried.", "task")
    items = [item for _, item in common]
    groups = np.unique([clip for clip, _ in common], return_inverse=True)[1]
    lines = {label: [known[item.id] for item in items] for label, known in by_setting.items()}
    right = {
        label: np.array([is_right(item, line["text"]) for item, line in zip(items, answered, strict=True)])
        for label, answered in lines.items()
    }
    full = next((right[setting.label] for setting in settings if setting.strategy == FULL), None)
    floors = {setting.cut: float(right[setting.label].mean()) for setting in settings if setting.name == FLOOR}
    return Table(
        task=task.name,
        clips=int(groups.max()) + 1,
        questions=len(items),
        missing=task.missing,
        unreadable=len(asked) - len(items),
        rows=tuple(_row(each, lines[each.label], right[each.label], items, groups, full, floors) for each in settings),
        differences=tuple(_differences(settings, right, groups, against)),
    )


def relative_accuracy(scores: Mapping[str, float], full: Mapping[str, float]) -> float:
    """As the papers compute it: the mean over benchmarks of the ratio to the unpruned model's accuracy."""
    return float(np.mean([score / full[benchmark] for benchmark, score in scores.items()]))


def relative_of(tables: Sequence[Table]) -> dict[tuple[str, float | None], float]:
    """Relative accuracy over these tasks by strategy and budget, of those that every task has with a ratio."""
    full = {table.task: row.accuracy.mean for table in tables for row in table.rows if row.strategy == FULL}
    scores: dict[tuple[str, float | None], dict[str, float]] = {}
    for table in tables:
        for row in table.rows:
            if full.get(table.task):
                scores.setdefault((row.strategy, row.budget), {})[table.task] = row.accuracy.mean
    return {key: relative_accuracy(each, full) for key, each in scores.items() if len(each) == len(tables)}


def _row(
    setting: Setting,
    lines: Sequence[Mapping[str, Any]],
    right: Bools,
    items: Sequence[Item],
    groups: npt.NDArray[np.intp],
    full: Bools | None,
    floors: Mapping[int | None, float],
) -> Row:
    encoded, stage1, stage2 = (
        float(np.mean([line[name] for line in lines])) for name in ("encoded", "stage1", "stage2")
    )
    kinds = np.array([item.kind for item in items])
    return Row(
        strategy=setting.strategy,
        budget=setting.budget,
        accuracy=estimate_groups(right, groups),
        relative=None if full is None or not full.any() else float(right.mean() / full.mean()),
        kept=stage2 / encoded,
        stage1=stage1 / encoded,
        encoded=encoded,
        seconds=float(np.mean([line["state_s"] + line["ask_s"] for line in lines])),
        floor=floors.get(setting.cut),
        kinds={str(kind): float(right[kinds == kind].mean()) for kind in dict.fromkeys(kinds)},
    )


def _differences(
    settings: Sequence[Setting], right: Mapping[str, Bools], groups: npt.NDArray[np.intp], against: Sequence[str]
) -> Iterable[Difference]:
    for other in settings:
        for one in settings:
            same_budget = other.budget is None or one.budget == other.budget
            if other.strategy in against and one.strategy != other.strategy and same_budget:
                differences = right[one.label].astype(np.float64) - right[other.label]
                yield Difference(
                    strategy=one.strategy,
                    other=other.strategy,
                    budget=one.budget,
                    difference=estimate_groups(differences, groups),
                    p=paired_p_groups(differences, groups),
                )
