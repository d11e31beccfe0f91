"""Plots of a table: accuracy and seconds over what was kept, a line a strategy. Needs matplotlib, the extra `eval`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.evaluation.harness.scores import Row, Table

DPI = 120
COLORS, DASHES = 10, ("-", "--", ":")
"""As many lines as can be told apart."""


def plot_accuracy(table: Table, path: Path) -> None:
    """Questions right over the share of patches kept, with 95 % bands; what has no budget is a level line."""
    figure, axes = _axes(table, "questions right, %")
    for color, dashes, strategy, rows in _lines(table):
        kept = [100 * row.kept for row in rows]
        middle = [100 * row.accuracy.mean for row in rows]
        low, high = ([100 * getattr(row.accuracy, end) for row in rows] for end in ("low", "high"))
        if rows[0].budget is None:
            axes.axhline(middle[0], color=color, linestyle="-.", linewidth=1, label=strategy)
            axes.axhspan(low[0], high[0], color=color, alpha=0.08)
        else:
            axes.plot(kept, middle, color=color, linestyle=dashes, marker="o", markersize=3, label=strategy)
            axes.fill_between(kept, low, high, color=color, alpha=0.12, linewidth=0)
    _save(figure, axes, path)


def plot_seconds(table: Table, path: Path) -> None:
    """Seconds a question over the share of patches kept."""
    figure, axes = _axes(table, "seconds a question, from frames to answer")
    for color, dashes, strategy, rows in _lines(table):
        kept = [100 * row.kept for row in rows]
        seconds = [row.seconds for row in rows]
        axes.plot(kept, seconds, color=color, linestyle=dashes, marker="o", markersize=3, label=strategy)
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def _axes(table: Table, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=table.task, xlabel="patches kept, %", ylabel=label)
    axes.set_xscale("log")
    return figure, axes


def _lines(table: Table) -> Sequence[tuple[str, str, str, list[Row]]]:
    """The rows of every strategy by what they kept, each with its colour and dashes."""
    strategies: dict[str, list[Row]] = {}
    for row in table.rows:
        strategies.setdefault(row.strategy, []).append(row)
    return [
        (
            f"C{number % COLORS}",
            DASHES[number // COLORS % len(DASHES)],
            strategy,
            sorted(rows, key=lambda row: row.kept),
        )
        for number, (strategy, rows) in enumerate(strategies.items())
    ]


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
