"""Tables of figures: on the terminal, as JSON, and in a document between markers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.evaluation.markdown import rewritten, table

Cell = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures with their units in the columns' names; None where there is nothing to say."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All tables of one section about one model.

    facts: what they must be read with; failures: each bar that was missed, in words
    variant: what sets it apart from the section's usual run of that model on that device
    """

    section: str
    model: str
    device: str
    facts: dict[str, str]
    tables: tuple[Table, ...]
    failures: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """What stands in a document's markers."""
        return " ".join(filter(None, (self.section, self.model, self.device, self.variant)))

    def text(self) -> str:
        """For a terminal."""
        blocks = [_line(self.facts)]
        for each in self.tables:
            lines = _aligned([each.columns, *(tuple(map(figure, row)) for row in each.rows)])
            blocks.append("\n".join([each.title, *lines, *filter(None, [each.note])]))
        return "\n\n".join(blocks)

    def markdown(self) -> str:
        """For a document."""
        blocks = [f"### {self.name}", _line(self.facts)]
        for each in self.tables:
            cells = table(each.columns, [tuple(map(figure, row)) for row in each.rows])
            blocks += [f"**{each.title}**", cells, *filter(None, [each.note])]
        return "\n\n".join(blocks)


def publish(reports: Sequence[Report], path: Path | None, document: Path | None) -> None:
    """Write what was measured; InvalidInput where the document lacks a report's markers."""
    if path:
        path.write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")
    if document:
        for report in reports:
            document.write_text(rewritten(document, report.name, report.markdown()))


def figure(value: Cell) -> str:
    """Three digits that count, all of those in front of the point."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _line(facts: dict[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items())


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
