"""The application in the rendered RayService, deployed on a real Ray as KubeRay does it, and asked over HTTP.

As in the dev overlay: the environment of the pod's container and of the image, the parameters of `ray start`, the
request to the dashboard, the token, the paths of the probes and the exporter's command. Only addresses, folders and
secrets are others.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipelines.evaluation.accuracy import is_right, questions_about
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.questions import names_unseen_pair
from pipelines.evaluation.renderer import FIRST_TEST_SEED, SceneConfig, draw_scene, render
from services.keys import entry_of, fresh_key
from tests.deploy.dockerfile import line_of, pairs, stages
from tests.deploy.manifests import ROOT, Document, Pod, kubectl, only, pods, rendered
from tests.ports import free_ports
from tests.redis_server import RedisServer

PATIENCE_S = 240
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A Ray of one node, with what its pod would have."""

    pod: Pod
    environment: dict[str, str]
    ports: dict[str, int]
    token: str

    def url(self, port: str, path: str) -> str:
        """An address of it, by the port's name."""
        return f"http://127.0.0.1:{self.ports[port]}{path}"


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    """A key, and its entry in OCCAM_API_KEYS."""
    key = fresh_key()
    return key, entry_of("acme", key)


@pytest.fixture(scope="module")
def cluster(keys: tuple[str, str]) -> Iterator[Cluster]:
    if kubectl() is None:
        pytest.skip("kubectl is not installed")
    pod = next(pod for pod in pods(rendered("dev")) if pod.where.endswith("cpu"))
    group = only(rendered("dev"), "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    names = ("gcs", "dashboard", "agent", "client", "serve", "metrics")
    ports, token = dict(zip(names, free_ports(len(names)), strict=True)), secrets.token_hex(32)
    # Ray's sockets lie below it, and their paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="occam-"))
    kv, state = RedisServer(_made(folder / "kv")), RedisServer(_made(folder / "state"))
    given = {
        "OCCAM_DIRECTORY": str(_made(folder / "occam")),
        "OCCAM_KV_URL": kv.url,
        "OCCAM_STATE_URL": state.url,
        "OCCAM_API_KEYS": keys[1],
    }
    environment = _environment(pod, given) | {"HOME": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    try:
        kv.start()
        state.start()
        with _ray(folder, ports, group["rayStartParams"], environment):
            yield Cluster(pod, environment, ports, token)
    finally:
        kv.stop()
        state.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _environment(pod: Pod, given: dict[str, str]) -> dict[str, str]:
    """What the image and the manifest set, with `given` in the place of addresses and secrets."""
    line = line_of(stages(ROOT / "deploy" / "Dockerfile"), "cpu")
    image = [pairs(step.rest) for stage in line for step in stage.instructions if step.name == "ENV"]
    environment = {name: value for values in image for name, value in values.items()}
    manifest = {entry["name"]: entry.get("value", "") for entry in pod.containers[0]["env"]}
    assert given.keys() <= manifest.keys()
    here = {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH") or str(ROOT),
        # Nobody waits for its answers at the end, and there is no other node for its replicas to move to.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",
    }
    return environment | manifest | given | here


@contextmanager
def _ray(
    folder: Path, ports: dict[str, int], parameters: dict[str, str], environment: dict[str, str]
) -> Iterator[None]:
    own = {
        "port": ports["gcs"],
        "dashboard-port": ports["dashboard"],
        "dashboard-agent-listen-port": ports["agent"],
        "ray-client-server-port": ports["client"],
        "temp-dir": folder / "ray",
        "node-ip-address": "127.0.0.1",
    }
    options = [f"--{name}={value}" for name, value in (parameters | own).items()]
    log = (folder / "ray.log").open("w")
    ray = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", *options],
        env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        ray.terminate()
        try:
            ray.wait(60)
        finally:
            _kill_session(ray.pid)
            log.close()


def _kill_session(session: int) -> None:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                os.kill(int(entry.name), signal.SIGKILL)
        except ProcessLookupError:
            continue


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _wait_for(what: str, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            response = httpx.get(url, headers=headers, timeout=10)
            if response.status_code == 200:
                return response
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"{what} does not answer")


def _deploy(cluster: Cluster) -> None:
    """Send the configuration, and wait until it runs, as KubeRay does."""
    config: dict[str, Any] = yaml.safe_load(only(rendered("dev"), "RayService")["spec"]["serveConfigV2"])
    config["http_options"] |= {"host": "127.0.0.1", "port": cluster.ports["serve"]}
    url, token = cluster.url("dashboard", "/api/serve/applications/"), {"Authorization": f"Bearer {cluster.token}"}
    _wait_for("the dashboard", url, token)
    assert httpx.get(url).status_code == 401
    httpx.put(url, json=config, headers=token, timeout=60).raise_for_status()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        application = httpx.get(url, headers=token, timeout=30).json()["applications"].get("occam", {})
        if application.get("status") == "RUNNING":
            return
        assert application.get("status") != "DEPLOY_FAILED", application["message"]
        assert time.monotonic() < deadline, application
        time.sleep(0.5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_rendered_application_answers_on_a_ray_that_is_started_as_in_a_pod(
    cluster: Cluster, keys: tuple[str, str], tmp_path: Path
) -> None:
    _deploy(cluster)
    _probes_succeed(cluster)
    with httpx.Client(base_url=cluster.url("serve", ""), timeout=120) as http:
        assert http.get("/v1/models").status_code == 401
        http.headers["Authorization"] = f"Bearer {keys[0]}"
        assert {model["id"] for model in http.get("/v1/models").json()["data"]} == {"tiny-video-llava", "tiny-qwen3-vl"}
        encoded = _ask(http, tmp_path)
    _exporter_says(cluster, encoded)


def _ask(http: httpx.Client, folder: Path) -> int:
    """A clip is posted and asked about; the answer is right. Visual tokens that it was encoded to."""
    scene = draw_scene(FIRST_TEST_SEED + 4, SceneConfig(unseen_pairs=False))
    write_mp4(folder / "clip.mp4", render(scene))
    question = next(q for q in questions_about(scene, 6) if not names_unseen_pair(q.text))
    posted = http.post("/v1/videos", files={"file": (folder / "clip.mp4").read_bytes()})
    assert posted.is_success, posted.text
    asked = http.post(f"/v1/videos/{posted.json()['id']}/queries", json={"question": question.text})
    assert asked.status_code == 200, asked.text
    assert is_right(asked.json()["answer"], question.answer)
    encoded: int = asked.json()["usage"]["visual_tokens"]["encoded"]
    return encoded


def _probes_succeed(cluster: Cluster) -> None:
    """Every probe of Ray's containers, of both kinds of pods, on the ports that they name."""
    number = {52365: "agent", "serve": "serve", "dashboard": "dashboard"}
    for pod in pods(rendered("dev")):
        if "RayService" in pod.where:
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked: Document = pod.containers[0][name]["httpGet"]
                _wait_for(f"{pod.where}, {name}", cluster.url(number[asked["port"]], asked["path"]))


def _exporter_says(cluster: Cluster, encoded: int) -> None:
    """The sidecar's command, on the folder that it shares with Ray's container."""
    container = cluster.pod.containers[1]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9400}]
    command = [word.replace("0.0.0.0", "127.0.0.1").replace("9400", str(cluster.ports["metrics"]))
               for word in container["command"]]  # fmt: skip
    with subprocess.Popen(command, env=cluster.environment) as exporter:
        try:
            _wait_for("livenessProbe", cluster.url("metrics", container["livenessProbe"]["httpGet"]["path"]))
            text = httpx.get(cluster.url("metrics", "/metrics")).text
        finally:
            exporter.terminate()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = [s.value for s in samples if s.name == "occam_visual_tokens_total" and s.labels["stage"] == "encoded"]
    assert counted == [encoded]
