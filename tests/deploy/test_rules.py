"""Rules by Prometheus' own tool: they are right, and each alert fires when it should and not before."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import expressions
from tests.deploy.prometheus import DEPLOY, INSTALLED, MISSING, RULES

pytestmark = pytest.mark.skipif(not INSTALLED, reason=MISSING)

CASES = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_and_the_rules_are_right() -> None:
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    promtool("check", "rules", *sorted(RULES.glob("*.yml")))


def test_what_is_to_be_uncommented_is_right_as_well(tmp_path: Path) -> None:
    folder = DEPLOY / "prometheus"
    lines = (folder / "prometheus.yml").read_text()
    named = r"(alerting:|  alertmanagers:|    - static_configs:|        - targets:|authorization:|  credentials_file:)"
    config = tmp_path / "prometheus.yml"
    config.write_text(re.sub(rf"^( *)# {named}", r"\1\2", lines, flags=re.MULTILINE))
    promtool("check", "config", "--syntax-only", config)
    found = yaml.safe_load(config.read_text())
    (key,) = (Path(job["authorization"]["credentials_file"]) for job in found["scrape_configs"])
    assert found["alerting"]["alertmanagers"]
    mounts = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    assert f"./prometheus/{key.parent.name}:{key.parent}:ro" in mounts


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {rule["alert"] for rule in expressions.rules() if "alert" in rule}


@pytest.mark.parametrize("alert", CASES)
def test_alert_fires_when_it_should_and_not_before(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    interval = case.get("interval", "1m")
    firing = f'max(ALERTS{{alertname="{alert}", alertstate="firing"}})'

    def watched(series: dict[str, str], fires: dict[str, bool]) -> dict[str, Any]:
        looks = [
            {"expr": firing, "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}] if fire else []}
            for at, fire in fires.items()
        ]
        given = [{"series": name, "values": values} for name, values in series.items()]
        return {"interval": interval, "input_series": given, "promql_expr_test": looks}

    tests = [
        watched(case["provoked"], {case["before"]: False, case["at"]: True}),
        watched(case["quiet"], {case["before"]: False, case["at"]: False}),
    ]
    file = tmp_path / "alert.yml"
    rules = [str(path) for path in RULES.glob("*.yml")]
    file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": interval, "tests": tests}))
    promtool("test", "rules", file)
