"""Plots of a table: accuracy and seconds over what was kept, a line a strategy. Needs matplotlib, the extra `eval`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.evaluation.harness.scores import Row, Table

DPI = 120


def plot_accuracy(table: Table, path: Path) -> None:
    """Questions right over the share of patches kept, with 95 % bands; without pruning, a dashed line."""
    figure, axes = _axes(table, "questions right, %")
    for color, (strategy, rows) in _lines(table):
        kept = [100 * row.kept for row in rows]
        middle = [100 * row.accuracy.mean for row in rows]
        low, high = ([100 * getattr(row.accuracy, end) for row in rows] for end in ("low", "high"))
        if rows[0].budget is None:
            axes.axhline(middle[0], color=color, linestyle="--", label=strategy)
            axes.axhspan(low[0], high[0], color=color, alpha=0.08)
        else:
            axes.plot(kept, middle, color=color, marker="o", markersize=3, label=strategy)
            axes.fill_between(kept, low, high, color=color, alpha=0.12, linewidth=0)
    _save(figure, axes, path)


def plot_seconds(table: Table, path: Path) -> None:
    """Seconds a question over the share of patches kept."""
    figure, axes = _axes(table, "seconds a question, from frames to answer")
    for color, (strategy, rows) in _lines(table):
        axes.plot(
            [100 * row.kept for row in rows], [row.seconds for row in rows], color=color, marker="o", label=strategy
        )
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def _axes(table: Table, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=table.task, xlabel="patches kept, %", ylabel=label)
    axes.set_xscale("log")
    return figure, axes


def _lines(table: Table) -> Sequence[tuple[str, tuple[str, list[Row]]]]:
    """The rows of every strategy by what they kept, each with its colour."""
    strategies: dict[str, list[Row]] = {}
    for row in table.rows:
        strategies.setdefault(row.strategy, []).append(row)
    return [
        (f"C{number % 10}", (strategy, sorted(rows, key=lambda row: row.kept)))
        for number, (strategy, rows) in enumerate(strategies.items())
    ]


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
