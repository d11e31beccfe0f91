"""What `make eval` compares, and how docs/results.md shows it: groups of strategies, each beside its controls."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from pipelines.evaluation.harness.scores import Difference, Row, Table
from pipelines.evaluation.markdown import interval, percent
from pipelines.evaluation.markdown import table as markdown_table

BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.02)
CUT = 3
"""Decoder layers, of eight, in front of stage II: behind four nothing is lost any more by dropping everything."""
SURE = 0.01
"""A difference with a p below it is starred."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Strategies that prune at one place, as `occam eval` names them, and the controls that each is compared with."""

    title: str
    strategies: tuple[str, ...]
    controls: tuple[str, ...]


def _stage2(*rules: str) -> tuple[str, ...]:
    return tuple(f"occam:lambda1=0:cut={CUT}:rule={rule}" for rule in rules)


def _stage1(*references: str) -> tuple[str, ...]:
    return tuple(f"occam:lambda2=0:rule=register:register={reference}" for reference in references)


GROUPS = (
    Group(
        title=f"Stage II alone: before layer {CUT}, by the question's attention",
        strategies=(*_stage2("register", "mean", "first_token", "top_p"), f"systematic:cut={CUT}"),
        controls=(*_stage2("top_k"), f"random:cut={CUT}"),
    ),
    Group(
        title="Stage I alone: in the tower, by the attention that patches get there",
        strategies=(*_stage1("zero_token", "mean_threshold"), "visionzip"),
        controls=("visionzip:dominant=1", "random"),
    ),
    Group(
        title="Whole strategies: `occam` as it is calibrated, all others as they are published",
        strategies=(
            "occam",
            "occam:rule=register",
            "iwp",
            "sparsevlm",
            "fastv",
            "divprune",
            "cdpruner",
            "evs",
            "vidcom2",
            "dtd",
        ),
        controls=("random", "uniform"),
    ),
)
STRATEGIES = tuple(dict.fromkeys(["none", *(each for g in GROUPS for each in (*g.strategies, *g.controls))]))
CONTROLS = tuple(dict.fromkeys(control for group in GROUPS for control in group.controls))


def markdown_of(table: Table) -> str:
    """Accuracy and paired differences of every group, a column a budget."""
    full = next(row for row in table.rows if row.strategy == "none")
    head = f"{table.questions} questions about {table.clips} clips; unpruned {interval(full.accuracy)} % right."
    return "\n\n".join([head, *(_group(table, group) for group in GROUPS)])


def _group(table: Table, group: Group) -> str:
    members = (*group.strategies, *group.controls)
    parts = [f"#### {group.title}", f"Right, per cent:\n\n{_pivot(table, members, _accuracy, 'floor', _floor)}"]
    for control in group.controls:
        minus = partial(
            _minus, {(each.strategy, each.budget): each for each in table.differences if each.other == control}
        )
        rest = [member for member in members if member != control]
        parts.append(f"Minus `{control}`, paired (* p < {SURE:g}):\n\n{_pivot(table, rest, minus)}")
    return "\n\n".join(parts)


def _pivot(
    table: Table,
    strategies: Iterable[str],
    cell: Callable[[Row], str],
    last: str = "",
    last_cell: Callable[[Row], str] = lambda _: "",
) -> str:
    """A row a strategy, a column a budget."""
    lines = []
    for strategy in strategies:
        rows = {row.budget: row for row in table.rows if row.strategy == strategy}
        line = [f"`{strategy}`", *(cell(rows[budget]) for budget in BUDGETS)]
        lines.append([*line, last_cell(rows[BUDGETS[0]])] if last else line)
    head = ["strategy", *(f"{percent(budget)} %" for budget in BUDGETS), *([last] if last else [])]
    return markdown_table(head, lines)


def _minus(differences: Mapping[tuple[str, float | None], Difference], row: Row) -> str:
    found = differences[row.strategy, row.budget]
    return interval(found.difference, sign="+") + ("*" if found.p < SURE else "")


def _accuracy(row: Row) -> str:
    return f"{interval(row.accuracy)}, {percent(row.kept)} kept"


def _floor(row: Row) -> str:
    return "" if row.floor is None else percent(row.floor)
