"""Writes dashboards/*.json, which Grafana reads, from source/*.yaml, which people write: `make dashboards`.

A source has rows of panels, and a panel what is its own: title, kind, unit, queries. All that panels have in common,
and where each lies on the grid of 24 columns, is here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
_HEIGHTS = {"stat": 4, "timeseries": 8, "heatmap": 8}


def main() -> None:
    """Write every dashboard."""
    for name, text in dashboards().items():
        (FOLDER / "dashboards" / name).write_text(text)


def dashboards() -> dict[str, str]:
    """The text of every dashboard's file, by its name."""
    sources = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "source").glob("*.yaml"))}
    return {
        f"{name}.json": json.dumps(dashboard(source), indent=2, ensure_ascii=False) + "\n"
        for name, source in sources.items()
    }


def dashboard(source: dict[str, Any]) -> dict[str, Any]:
    """A dashboard in Grafana's JSON model."""
    return {
        "uid": source["uid"],
        "title": source["title"],
        "description": source["description"],
        "tags": ["occam"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": [_DATASOURCES, _MODELS]},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Occam", "tags": ["occam"], "asDropdown": False, "keepTime": True}],
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(source["rows"]), start=1)],
    }


_DATASOURCES = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_MODELS = {
    "name": "model",
    "label": "Model",
    "type": "query",
    "datasource": DATASOURCE,
    "query": {"query": "label_values(occam_workers, model)", "refId": "models"},
    "refresh": 2,
    "multi": True,
    "includeAll": True,
    "allValue": ".+",
    "current": {"text": "All", "value": "$__all"},
}


def _panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Headings and panels, from left to right and from top to bottom."""
    top = 0
    for row in rows:
        yield {"type": "row", "title": row["title"], "collapsed": False, "panels": [], "gridPos": _place(0, top, 24, 1)}
        left, top = 0, top + 1
        for source in row["panels"]:
            kind = source.get("kind", "timeseries")
            width, height = source.get("width", 8), _HEIGHTS[kind]
            if left + width > COLUMNS:
                left, top = 0, top + height
            yield panel(source, kind) | {"gridPos": _place(left, top, width, height)}
            left += width
        top += height


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def panel(source: dict[str, Any], kind: str) -> dict[str, Any]:
    """A panel without its place; a stat asks once for the whole range, all others for a curve."""
    once = kind == "stat"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "expr": query["expr"],
            "legendFormat": query.get("legend", ""),
            "editorMode": "code",
            "format": "heatmap" if kind == "heatmap" else "time_series",
            "instant": once,
            "range": not once,
        }
        for number, query in enumerate(source["queries"])
    ]
    return {
        "type": kind,
        "title": source["title"],
        "description": source.get("description", ""),
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _field(source, kind), "overrides": []},
        "options": _OPTIONS[kind] | ({"yAxis": {"unit": source["unit"]}} if kind == "heatmap" else {}),
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    },
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "reverse": False},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "le"},
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": True},
    },
}


def _field(source: dict[str, Any], kind: str) -> dict[str, Any]:
    """Unit, bounds and colours of a panel's values."""
    field: dict[str, Any] = {"unit": source["unit"]}
    if "max" in source:
        field |= {"min": 0, "max": source["max"]}
    if kind == "stat":
        field["thresholds"] = {"mode": "absolute", "steps": _steps(source)}
        field["color"] = {"mode": "thresholds"}
    if kind == "timeseries":
        stacked = source.get("stack", False)
        field["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        }
    return field


def _steps(source: dict[str, Any]) -> list[dict[str, Any]]:
    if "warn_above" in source:
        return [{"color": "green", "value": None}, {"color": "red", "value": source["warn_above"]}]
    if "warn_below" in source:
        return [{"color": "red", "value": None}, {"color": "green", "value": source["warn_below"]}]
    return [{"color": "text", "value": None}]


if __name__ == "__main__":
    main()
