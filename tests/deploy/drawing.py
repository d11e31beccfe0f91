"""A dashboard as a picture: its panels where Grafana puts them, drawn from what Prometheus answers to their queries."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.deploy.expressions import filled
from tests.deploy.prometheus import Prometheus

COLUMN_PX, ROW_PX, GAP_PX = 60, 36, 6
POINTS = 240
_GROUND, _PANEL, _TEXT, _GRID = "#111217", "#181b1f", "#d0d0d8", "#2c3036"
_NAMED = {"green": "#73bf69", "red": "#f2495c", "text": "#e8e8ee"}
_CURVES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#ca95e5")
_SECONDS = ((60.0, "min", 1 / 60), (1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6))
_THOUSANDS = ((1e9, "G", 1e-9), (1e6, "M", 1e-6), (1e3, "k", 1e-3), (0.0, "", 1.0))


@dataclass(frozen=True)
class Window:
    """The time that is shown, seconds since 1970, and what rates are taken over."""

    prometheus: Prometheus
    start: float
    end: float
    rate_interval: str = "30s"

    def expr(self, target: dict[str, Any]) -> str:
        """The expression of a query as it is sent."""
        return filled(target["expr"], self.rate_interval, f"{math.ceil(self.end - self.start)}s")

    def now(self, target: dict[str, Any]) -> list[tuple[str, float]]:
        """Name and value of each series at the end."""
        found = self.prometheus.query(self.expr(target), at=self.end)
        return [(_name(target, series["metric"]), float(series["value"][1])) for series in found]

    def curves(self, target: dict[str, Any]) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Name, times and values of each series; a time without a value is NaN."""
        step = (self.end - self.start) / POINTS
        times = self.start + step * np.arange(POINTS + 1)
        found = []
        for series in self.prometheus.curves(self.expr(target), self.start, self.end, step):
            values = np.full(POINTS + 1, np.nan)
            for at, value in series["values"]:
                values[round((at - self.start) / step)] = float(value)
            found.append((_name(target, series["metric"]), times, np.where(np.isfinite(values), values, np.nan)))
        return found


def draw(dashboard: dict[str, Any], window: Window, path: Path) -> None:
    """Write the dashboard's picture."""
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    rows = max(place["y"] + place["h"] for place in places) + 1
    width, height = 24 * COLUMN_PX, rows * ROW_PX
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor=_GROUND)
    figure.text(8 / width, 1 - 24 / height, dashboard["title"], color=_TEXT, fontsize=13, weight="bold")
    for panel, place in zip(dashboard["panels"], places, strict=True):
        top = (place["y"] + 1) * ROW_PX
        left, bottom = place["x"] * COLUMN_PX, height - top - place["h"] * ROW_PX
        if panel["type"] == "row":
            at = ((left + 8) / width, (bottom + 10) / height)
            figure.text(*at, panel["title"], color=_TEXT, fontsize=10, weight="bold")
        else:
            box = (
                left + GAP_PX / 2,
                bottom + GAP_PX / 2,
                place["w"] * COLUMN_PX - GAP_PX,
                place["h"] * ROW_PX - GAP_PX,
            )
            _panel(figure, panel, window, box, (width, height))
    buffer = io.BytesIO()
    figure.savefig(buffer, facecolor=_GROUND)
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


Box = tuple[float, float, float, float]


def _panel(figure: Figure, panel: dict[str, Any], window: Window, box: Box, size: tuple[int, int]) -> None:
    """Ground, title and content of one panel; box: left, bottom, width, height in pixels."""
    left, bottom, width, height = box
    ground = figure.add_axes(_part(box, size), facecolor=_PANEL)
    ground.set(xticks=[], yticks=[])
    ground.spines[:].set_color(_GRID)
    ground.text(8 / width, 1 - 16 / height, panel["title"], color=_TEXT, fontsize=9, va="center")
    draws: dict[str, Callable[[Axes, dict[str, Any], Window], None]] = {"timeseries": _lines, "heatmap": _heatmap}
    if panel["type"] == "stat":
        _stat(ground, panel, window)
        return
    axes = figure.add_axes(_part((left + 58, bottom + 62, width - 72, height - 96), size), facecolor=_PANEL)
    axes.tick_params(colors=_TEXT, labelsize=7, length=0)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.spines[:].set_visible(False)
    draws[panel["type"]](axes, panel, window)
    ticks = np.linspace(window.start, window.end, 6)[1:-1]
    labels = [datetime.fromtimestamp(tick, UTC).strftime("%H:%M") for tick in ticks]
    axes.set_xlim(window.start, window.end)
    axes.set_xticks(ticks, labels)


def _part(box: Box, size: tuple[int, int]) -> Box:
    left, bottom, width, height = box
    return (left / size[0], bottom / size[1], width / size[0], height / size[1])


def _stat(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    """Each series' last value, in the colour of its threshold."""
    field = panel["fieldConfig"]["defaults"]
    shown = [each for target in panel["targets"] for each in window.now(target) if math.isfinite(each[1])][:3]
    for number, (name, value) in enumerate(shown):
        x = (number + 0.5) / len(shown)
        passed = [
            step["color"] for step in field["thresholds"]["steps"] if step["value"] is None or value >= step["value"]
        ]
        number_size = 22 if len(shown) == 1 else 15
        text = _formatted(value, field["unit"])
        axes.text(x, 0.42, text, color=_NAMED[passed[-1]], fontsize=number_size, ha="center", va="center")
        if len(shown) > 1 or name:
            axes.text(x, 0.12, name, color=_TEXT, fontsize=6.5, ha="center", va="center")


def _lines(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    field = panel["fieldConfig"]["defaults"]
    curves = sorted(curve for target in panel["targets"] for curve in window.curves(target))
    below = np.zeros(POINTS + 1)
    for (name, times, values), color in zip(curves, _CURVES * len(curves), strict=False):
        if field["custom"]["stacking"]["mode"] == "normal":
            above = below + np.nan_to_num(values)
            axes.fill_between(times, below, above, color=color, alpha=0.4, linewidth=0)
            axes.plot(times, above, color=color, linewidth=1, label=name)
            below = above
        else:
            axes.plot(times, values, color=color, linewidth=1.2, label=name)
    axes.set_ylim(bottom=field.get("min", min(0, axes.get_ylim()[0])), top=field.get("max"))
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: _formatted(value, field["unit"]))
    longest = max((len(curve[0]) for curve in curves), default=0)
    columns = 4 if longest < 20 else 3 if longest < 26 else 2
    axes.legend(
        loc="upper left",
        bbox_to_anchor=_below(axes, -52, 16),
        ncols=columns,
        fontsize=6,
        frameon=False,
        labelcolor=_TEXT,
        handlelength=1,
        columnspacing=1,
        labelspacing=0.25,
    )


def _heatmap(axes: Axes, panel: dict[str, Any], window: Window) -> None:
    """Buckets from bottom to top; what they have more than the one below is the cell's colour."""
    (target,) = panel["targets"]
    curves = sorted(window.curves(target), key=lambda curve: float(curve[0]))
    counts = np.nan_to_num(np.array([values for _, _, values in curves]))
    cells = np.diff(counts, axis=0, prepend=0)
    names = [name for name, _, _ in curves]
    edges = np.append(curves[0][1], window.end)
    axes.pcolormesh(edges, np.arange(len(names) + 1), np.ma.masked_less(cells, 1e-9), cmap="viridis", rasterized=True)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_yticks(
        np.arange(len(names)) + 0.5, [name if name == "+Inf" else _formatted(float(name), unit) for name in names]
    )
    axes.grid(visible=False)
    hint = "bright: many; each row up to its label"
    axes.text(*_below(axes, 0, 34), hint, transform=axes.transAxes, color=_TEXT, fontsize=6.5)


def _below(axes: Axes, right_px: float, down_px: float) -> tuple[float, float]:
    """A place below the axes, from their lower left corner, in their own coordinates."""
    box = axes.get_window_extent()
    return right_px / box.width, -down_px / box.height


def _name(target: dict[str, Any], labels: dict[str, str]) -> str:
    """A series' name by the query's legend."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), target["legendFormat"])


def _formatted(value: float, unit: str) -> str:
    """A number as Grafana would show it, nearly."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if value == 0:
        return "0"
    steps = _SECONDS if unit == "s" else _THOUSANDS
    _, prefix, factor = next(step for step in steps if abs(value) >= step[0])
    suffix = {"reqps": " req/s", "Bps": "B/s", "s": ""}.get(unit, "")
    return f"{value * factor:.3g}{' ' * (unit == 's')}{prefix}{suffix}"
