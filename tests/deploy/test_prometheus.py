"""A real Prometheus scrapes the running service: every panel, rule and alert is asked, and has an answer."""

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import expressions
from tests.deploy.drawing import Window, draw
from tests.deploy.load import KEYS, Users, everything, service
from tests.deploy.prometheus import INSTALLED, MISSING, Prometheus
from tests.redis_server import RedisServer
from tests.soak.live import processes

pytestmark = [pytest.mark.soak, pytest.mark.skipif(not INSTALLED, reason=MISSING)]

PROVOKED = {
    "OccamErrorsFast",
    "OccamErrorsSlow",
    "OccamOverloaded",
    "OccamCacheTierFailing",
    "OccamDecodeFailures",
    "OccamSpansLost",
}
"""Alerts whose condition the load brings about; the others take hours, or a process that hangs."""
QUIET = {"OccamAbsent", "OccamCacheCorrupt", "OccamDecodeTimeouts", "OccamPruningOff", "OccamRetentionCollapsed"}
"""Alerts with data and without a cause, however slow the machine is."""


@dataclass(frozen=True)
class Scraped:
    """A Prometheus behind a load, and when that was, in seconds since 1970."""

    prometheus: Prometheus
    start: float
    end: float

    def answers(self, expr: str, once: bool) -> list[dict[str, Any]]:
        """The series of an expression that have a number somewhere; once: now."""
        if once:
            found = [(series, [series["value"]]) for series in self.prometheus.query(expr)]
        else:
            curves = self.prometheus.curves(expr, self.start, self.end)
            found = [(series, series["values"]) for series in curves]
        return [series for series, values in found if any(math.isfinite(float(value)) for _, value in values)]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder, redis = tmp_path_factory.mktemp("service"), RedisServer(tmp_path_factory.mktemp("redis"))
    redis.start()
    start = time.time()
    try:
        with service(folder, redis) as base_url:
            target = base_url.removeprefix("http://")
            with Prometheus(tmp_path_factory.mktemp("prometheus"), target, KEYS["prometheus"]) as prometheus:
                time.sleep(4)
                users = Users(base_url, folder)
                everything(users, redis)
                users.close()
                time.sleep(5)
                yield Scraped(prometheus, start, time.time())
    finally:
        redis.stop()


def test_every_panel_has_data(scraped: Scraped) -> None:
    empty = [f"{panel}: {panel.expr}" for panel in expressions.panels() if not scraped.answers(panel.expr, panel.once)]
    assert not empty, "\n".join(empty)


def test_every_rule_is_evaluated_and_every_recorded_series_has_data(scraped: Scraped) -> None:
    live = scraped.prometheus.rules()
    assert {rule["name"] for rule in live} == {rule.get("record") or rule["alert"] for rule in expressions.rules()}
    assert {rule["name"]: rule.get("lastError") for rule in live if rule["health"] != "ok"} == {}
    recorded = [rule["record"] for rule in expressions.rules() if "record" in rule]
    assert [name for name in recorded if not scraped.answers(name, once=False)] == []


def test_alerts_whose_cause_was_there_are_active(scraped: Scraped) -> None:
    active = {rule["name"] for rule in scraped.prometheus.rules() if rule.get("state") in ("pending", "firing")}
    assert PROVOKED - active == set()
    assert QUIET & active == set()


def test_alerts_say_what_is_the_matter(scraped: Scraped) -> None:
    alerts = [alert for rule in scraped.prometheus.rules() for alert in rule.get("alerts", ())]
    texts = [text for alert in alerts for text in alert["annotations"].values()]
    assert texts
    assert not [text for text in texts if "<error" in text or "<no value>" in text]


def test_queries_of_runbooks_can_be_asked(scraped: Scraped) -> None:
    queries = expressions.of_runbooks()
    assert len(queries) > 20
    for query in queries:
        scraped.prometheus.query(query)


def test_every_metric_was_counted(scraped: Scraped) -> None:
    missing = [
        sample
        for metric in expressions.of_the_code().values()
        for sample in metric.samples
        if not scraped.prometheus.query(f"max_over_time({sample}[10m]) > 0")
    ]
    assert missing == []


def test_docs_name_every_value_of_a_label(scraped: Scraped) -> None:
    """Of labels whose values are ours; models, routes and `le` are named by others."""
    documented = expressions.documented()
    unknown = []
    for metric in expressions.of_the_code().values():
        for label, named in documented[metric.name].values.items():
            seen = {series["metric"][label] for series in scraped.prometheus.query(metric.samples[0])}
            unknown += [f"{metric.name} {label}={value}" for value in sorted(seen - named) if named]
    assert unknown == []


def test_dashboards_can_be_drawn(scraped: Scraped, tmp_path: Path) -> None:
    """As `make previews` does for docs."""
    window = Window(scraped.prometheus, scraped.start, scraped.end)
    for name, dashboard in expressions.dashboards().items():
        draw(dashboard, window, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_worker_that_dies_is_missed_until_there_is_another(scraped: Scraped) -> None:
    """The last test of the service, for it changes what the others see."""
    (worker,) = [pid for pid, deployment in processes().items() if deployment.startswith("worker-")]
    os.kill(worker, signal.SIGKILL)
    until(scraped.prometheus, "OccamWorkersGone", "pending")
    until(scraped.prometheus, "OccamWorkersGone", "inactive")
    assert [series["value"][1] for series in scraped.prometheus.query("occam_workers")] == ["1"]


def test_a_target_that_is_gone_is_seen(tmp_path: Path) -> None:
    """Nobody listens at the target."""
    with Prometheus(tmp_path, "127.0.0.1:9", "none") as prometheus:
        until(prometheus, "OccamTargetDown", "pending")
        assert prometheus.query("ALERTS{alertname!='OccamTargetDown'}") == []


def until(prometheus: Prometheus, alert: str, state: str, patience_s: float = 60) -> None:
    """Wait until an alert is in a state."""
    ends = time.monotonic() + patience_s
    while state not in (seen := {rule["state"] for rule in prometheus.rules() if rule["name"] == alert}):
        assert time.monotonic() < ends, f"{alert} is {seen}"
        time.sleep(0.2)
