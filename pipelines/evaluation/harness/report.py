"""A run's results as JSON and as Markdown. What follows from the answers alone is apart from what a clock said."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.evaluation.harness.scores import Row, Table, relative_of
from pipelines.evaluation.markdown import interval, percent
from pipelines.evaluation.markdown import table as markdown_table


def json_of(table: Table, run: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    """Everything, with what the run was and what the strategies were set to."""
    return json.dumps({"run": run, "settings": settings, **asdict(table)}, indent=1) + "\n"


def markdown_of(table: Table, run: Mapping[str, Any], figures: Sequence[str], note: str = "") -> str:
    """The report of one task; figures: names of pictures beside it; note: why there are none."""
    parts = [
        f"# {run['model']} on {table.task}",
        _asked(table),
        accuracy_table(table),
        *([_differences(table)] if table.differences else []),
        *([_kinds(table)] if len(table.rows[0].kinds) > 1 else []),
        _seconds(table),
        *(f"![{name}]({name})" for name in figures),
        *([note] if note else []),
        _origin(run),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_table(table: Table) -> str:
    """Accuracy and what was kept: the same for the same answers, whoever's clock ran."""
    rows = [
        [
            row.strategy,
            "" if row.budget is None else percent(row.budget),
            percent(row.kept),
            percent(row.stage1),
            interval(row.accuracy),
            "" if row.relative is None else percent(row.relative),
            "" if row.floor is None else percent(row.floor),
        ]
        for row in table.rows
    ]
    return markdown_table(["strategy", "asked", "kept", "left by stage I", "right", "relative", "floor"], rows)


def relative_markdown(tables: Sequence[Table]) -> str:
    """Relative accuracy over several tasks: the mean of their ratios to the unpruned model."""
    names = ", ".join(table.task for table in tables)
    rows = [
        [strategy, "" if budget is None else percent(budget), percent(relative)]
        for (strategy, budget), relative in relative_of(tables).items()
    ]
    head = f"# Relative accuracy over {names}\n\nMean over tasks of the ratio to strategy `none`, in per cent.\n\n"
    return head + markdown_table(["strategy", "asked", "relative"], rows) + "\n"


def _asked(table: Table) -> str:
    lost = [
        f"{count} left out because their clip {why}"
        for count, why in ((table.missing, "is not there"), (table.unreadable, "cannot be used"))
        if count
    ]
    said = f"; {', '.join(lost)}" if lost else ""
    return (
        f"{table.questions} questions about {table.clips} clips{said}. Per cent, with 95 % bootstrap intervals over "
        "clips. An answer is right by its letter where there are choices, else by exact match after normalising (case, "
        "punctuation, articles); nothing judges it. `asked` is the average share of the patches a strategy was set to "
        "keep on clips that are not asked about, `kept` what it kept of these. `floor` is what is right where no "
        "visual token passes the layer before which the strategy prunes: what the layers in front have read already."
    )


def _differences(table: Table) -> str:
    rows = [
        [
            each.strategy,
            "" if each.budget is None else percent(each.budget),
            each.other,
            interval(each.difference, sign="+"),
            f"{each.p:.4f}",
        ]
        for each in table.differences
    ]
    head = "Paired over the same questions; p by two-sided sign flips over clips:\n\n"
    return head + markdown_table(["strategy", "asked", "minus", "difference", "p"], rows)


def _kinds(table: Table) -> str:
    kinds = list(table.rows[0].kinds)
    rows = [[_name(row), *(f"{100 * row.kinds[kind]:.0f}" for kind in kinds)] for row in table.rows]
    return "By kind of question:\n\n" + markdown_table(["strategy", *kinds], rows)


def _seconds(table: Table) -> str:
    rows = [[_name(row), percent(row.kept), f"{row.seconds:.3f}"] for row in table.rows]
    head = (
        "Seconds a question over a clip that is new, from its frames to the answer, decoding the video not counted; "
        "questions of a clip share their passes, but where the state depends on the question:\n\n"
    )
    return head + markdown_table(["strategy", "kept", "seconds"], rows)


def _origin(run: Mapping[str, Any]) -> str:
    facts = [f"{name} {str(value)[:12]}" for name, value in run.items() if not isinstance(value, list)]
    return f"Made by: {', '.join(facts)} (digests are cut here, and whole in the JSON)."


def _name(row: Row) -> str:
    return row.strategy if row.budget is None else f"{row.strategy} at {percent(row.budget)}"
