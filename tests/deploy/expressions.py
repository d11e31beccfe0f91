"""What dashboards and rules ask of Prometheus, and the metrics and labels that they name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from services import metrics
from tests.deploy.prometheus import DEPLOY, RULES

_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
_OF_PROMETHEUS = {"job", "instance", "le", "alertname", "alertstate"}


@dataclass(frozen=True)
class Metric:
    """A metric of the code. labels: their names, `le` not among them."""

    name: str
    kind: str
    labels: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which Prometheus has it."""
        return tuple(self.name.removesuffix("_total") + suffix for suffix in _SUFFIXES[self.kind])


def of_the_code() -> dict[str, Metric]:
    """Every metric of `services.metrics`, by its name as it is in docs: counters end in `_total`."""
    kinds = {Counter: ("counter", "_total"), Gauge: ("gauge", ""), Histogram: ("histogram", "")}
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            kind, suffix = kinds[type(metric)]
            name = metric._name + suffix
            found[name] = Metric(name, kind, tuple(metric._labelnames))
    return found


@dataclass(frozen=True)
class Panel:
    """One query of a panel, with its variables filled in; once: it is asked for one moment, not for a curve."""

    dashboard: str
    title: str
    expr: str
    once: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.title}"


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard as Grafana reads it, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))}


def panels() -> Iterator[Panel]:
    """Every query of every panel."""
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Panel(dashboard["title"], panel["title"], filled(target["expr"]), target["instant"])


def filled(expr: str, rate_interval: str = "15s", whole_range: str = "10m") -> str:
    """An expression of a panel as Grafana sends it; AssertionError for a variable that is unknown."""
    values = {"$__rate_interval": rate_interval, "$__range": whole_range, "$model": ".+"}
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    files = (yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml")))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def names_in(expr: str) -> set[str]:
    """Names of our metrics, and of recorded series, in an expression."""
    return set(re.findall(r"\boccam[_:][a-z0-9_:]*", re.sub(r'"[^"]*"', "", expr)))


def labels_in(expr: str) -> set[str]:
    """Names of labels that an expression selects, groups or joins by; Prometheus' own are left out."""
    selected = re.findall(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"', expr)
    grouped = re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", expr)
    return {
        *selected,
        *(name.strip() for names in grouped for name in names.split(",") if name.strip()),
    } - _OF_PROMETHEUS


@dataclass(frozen=True)
class Documented:
    """A line of docs/metrics.md. values: of each label, by its name; none where they are named by others."""

    kind: str
    values: dict[str, set[str]]


def documented() -> dict[str, Documented]:
    """The metrics of docs/metrics.md, by name; AssertionError where one is there twice."""
    found = {}
    for line in (DEPLOY.parent / "docs" / "metrics.md").read_text().splitlines():
        if match := re.match(r"\| `(occam_\w+)` \| (\w+) \| ([^|]*)\|", line):
            name, kind, labels = match.groups()
            assert name not in found, name
            quoted = [re.findall(r"`(\w+)`", part) for part in labels.split(";")]
            found[name] = Documented(kind, {label: set(values) for label, *values in filter(None, quoted)})
    return found


def of_runbooks() -> list[str]:
    """What docs/runbooks.md tells people to ask."""
    text = (DEPLOY.parent / "docs" / "runbooks.md").read_text()
    quoted = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    asked = [code for code in quoted if re.search(r"\boccam[_:]|\bup{", code)]
    return [code for code in asked if not code.startswith(("docker ", "kubectl "))]  # those are for a shell
