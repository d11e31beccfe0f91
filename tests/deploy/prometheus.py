"""A real Prometheus, with the configuration and the rules of `deploy/`, pointed at a service of a test."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
INSTALLED = shutil.which("prometheus") is not None and shutil.which("promtool") is not None
MISSING = "There is no Prometheus on this machine: `make prometheus` installs Debian's."


class Prometheus:
    """A server of its own folder; scrapes and evaluates every two seconds."""

    def __init__(self, folder: Path, target: str, key: str) -> None:
        """target: `host:port` with `/metrics`; key: what that asks for."""
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        job["authorization"] = {"credentials": key}
        shutil.copytree(RULES, folder / "rules")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = folder

    def __enter__(self) -> "Prometheus":
        options = {
            "config.file": self._folder / "prometheus.yml",
            "storage.tsdb.path": self._folder / "data",
            "web.listen-address": self.address,
            "log.level": "error",
        }
        command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._http = httpx.Client(base_url=f"http://{self.address}", timeout=30)
        ends = time.monotonic() + 30
        while not self._is_ready():
            assert self._process.poll() is None, "Prometheus ended at its start"
            assert time.monotonic() < ends, "Prometheus did not start"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples of an expression at a time, seconds since 1970, or now."""
        return self._get("query", query=expr, time=time.time() if at is None else at)["result"]

    def curves(self, expr: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """The series of an expression between two times, seconds since 1970."""
        return self._get("query_range", query=expr, start=start, end=end, step=step)["result"]

    def rules(self) -> list[dict[str, Any]]:
        """All rules as they stand, with health, state and last error."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **params: Any) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", f"{params}: {answer.get('error')}"
        return answer["data"]

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False
