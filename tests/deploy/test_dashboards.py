"""Dashboards, rules and docs name the metrics of the code, all of them and no others; nothing runs here."""

import re
import runpy
from itertools import combinations, product
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import Counter

from occam.kv.store import Reason, Result
from occam.stats import Stage
from pipelines.ingest.decode import Backend
from services import metrics
from services.messages import Tier
from services.statuses import NOT_ADMITTED, STATUSES
from tests.deploy import expressions
from tests.deploy.prometheus import DEPLOY

METRICS = expressions.of_the_code()
SAMPLES = {sample: metric for metric in METRICS.values() for sample in metric.samples}
RECORDED = {rule["record"] for rule in expressions.rules() if "record" in rule}
PANELS = list(expressions.panels())
RULES = expressions.rules()
EXPRESSIONS = [panel.expr for panel in PANELS] + [rule["expr"] for rule in RULES]


def test_json_is_what_the_sources_make_of_it() -> None:
    written = {path.name: path.read_text() for path in (DEPLOY / "grafana" / "dashboards").iterdir()}
    generator = runpy.run_path(str(DEPLOY / "grafana" / "generate.py"))
    assert written == generator["dashboards"](), "`make dashboards` writes it"


def test_every_metric_of_the_code_is_on_a_panel() -> None:
    shown = {name for panel in PANELS for name in expressions.names_in(panel.expr)}
    through = {name for rule in RULES if rule.get("record") in shown for name in expressions.names_in(rule["expr"])}
    on_panels = {SAMPLES[name].name for name in shown | through if name in SAMPLES}
    assert set(METRICS) - on_panels == set()


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_expressions_name_nothing_that_is_not_there(expr: str) -> None:
    names = expressions.names_in(expr)
    assert names - SAMPLES.keys() - RECORDED == set()
    assert names or "up{" in expr or "ALERTS{" in expr
    used = expressions.labels_in(expr) if not names & RECORDED else set()
    known = {label for name in names & SAMPLES.keys() for label in SAMPLES[name].labels}
    assert (
        used - known - ({"job"} if "up{" in expr else set()) - ({"alertname"} if "ALERTS" in expr else set()) == set()
    )


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_values_that_are_selected_are_documented(expr: str) -> None:
    """Each `label="a|b"` of a metric names values that docs/metrics.md knows; so a misspelt one is found."""
    for name, selectors in re.findall(r"\b(occam_\w+)\{([^}]*)\}", expr):
        for label, values in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', selectors):
            named = expressions.documented()[SAMPLES[name].name].values.get(label, set())
            assert not named or set(values.split("|")) <= named | {".+"}, (name, label, values)


def test_docs_name_every_metric_with_its_type_and_labels() -> None:
    documented = {name: (line.kind, tuple(line.values)) for name, line in expressions.documented().items()}
    assert documented == {name: (metric.kind, metric.labels) for name, metric in METRICS.items()}


def test_docs_name_the_values_that_the_code_has() -> None:
    named = {
        (name, label): values
        for name, line in expressions.documented().items()
        for label, values in line.values.items()
    }
    tiers = set(get_args(Tier))
    assert named["occam_stage_seconds", "stage"] == set(get_args(Stage))
    assert named["occam_ttft_seconds", "cache"] == tiers
    for name in ("occam_kv_requests_total", "occam_kv_seconds", "occam_kv_bytes_total", "occam_kv_errors_total"):
        assert named[name, "tier"] == tiers - {"none"}
    assert named["occam_kv_requests_total", "result"] == set(get_args(Result)) - {"done", "refused"}
    assert named["occam_kv_errors_total", "reason"] == set(get_args(Reason)) - {""}
    assert named["occam_frames_decoded_total", "backend"] == set(get_args(Backend))
    refused = {kind.code for kind, status in STATUSES if status in NOT_ADMITTED}
    assert named["occam_rejections_total", "reason"] == refused


@pytest.mark.parametrize(
    "counter", [metrics.DECODE_FAILURES, metrics.KV_ERRORS, metrics.REJECTIONS, metrics.CANCELLATIONS]
)
def test_failures_that_docs_name_are_there_before_the_first(counter: Counter) -> None:
    """Prometheus sees no increase in a number that comes with its first event."""
    (family,) = counter.collect()
    names = expressions.documented()[f"{family.name}_total"].values
    there = {tuple(sample.labels[label] for label in names) for sample in family.samples if "total" in sample.name}
    assert there >= set(product(*names.values()))


def test_panels_lie_beside_each_other() -> None:
    for name, dashboard in expressions.dashboards().items():
        places = [panel["gridPos"] for panel in dashboard["panels"]]
        assert all(place["x"] + place["w"] <= 24 for place in places)
        for one, other in combinations(places, 2):
            apart = (
                one["x"] + one["w"] <= other["x"]
                or other["x"] + other["w"] <= one["x"]
                or one["y"] + one["h"] <= other["y"]
                or other["y"] + other["h"] <= one["y"]
            )
            assert apart, (name, one, other)
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_dashboards_have_names_of_their_own() -> None:
    dashboards = expressions.dashboards().values()
    assert len({dashboard["uid"] for dashboard in dashboards}) == len({each["title"] for each in dashboards}) == 5


def test_grafana_finds_its_datasource_and_its_dashboards() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scrape)
    (provider,) = yaml.safe_load((folder / "dashboards" / "occam.yml").read_text())["providers"]
    assert provider["options"]["path"]


@pytest.mark.parametrize("rule", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    text = (DEPLOY.parent / page).read_text()
    found = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    sections = {heading.lower(): " ".join(body.split()) for heading, body in found}
    assert anchor == rule["alert"].lower()
    for part in ("**Means.**", "**Users see.**", "**Look.**", "**Do.**"):
        assert part in sections[anchor], (anchor, part)


def test_runbooks_ask_for_what_is_there() -> None:
    text = (DEPLOY.parent / "docs" / "runbooks.md").read_text()
    assert set(re.findall(r"^## (Occam\w+)$", text, re.M)) == {rule["alert"] for rule in RULES if "alert" in rule}
    names = {name for query in expressions.of_runbooks() for name in expressions.names_in(query)}
    assert names - SAMPLES.keys() - RECORDED == set()
