"""The service as KubeRay deploys it, on a cluster of two nodes: built by import path, and an exporter on each.

Both nodes are on this machine, and so would share a folder: each has an `OCCAM_DIRECTORY` in its Ray's environment.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from occam.errors import InvalidInput
from pipelines.evaluation.codec import write_mp4
from services.app import APP_NAME, application
from services.preflight import PROXY_CALLBACK, PROXY_VARIABLE
from services.settings import Settings
from tests.ports import free_ports
from tests.redis_server import RedisServer

MODEL = "tiny-video-llava"
CLIPS, TURNS = 16, 3


@dataclass(frozen=True)
class Deployed:
    """Where the service answers, where each node's exporter does, and the clips that may be asked about."""

    api: str
    exporters: tuple[str, str]
    clips: tuple[str, ...]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("cluster")
    shared_redis.client.flushall()
    environments = [environment(folder / name, shared_redis.url) for name in ("one", "two")]
    # Neither node has room for all.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "env_vars": environments[0]})
    exporters: list[subprocess.Popen[bytes]] = []
    try:
        cluster.add_node(num_cpus=1, env_vars=environments[1])
        port, *exporting = free_ports(3)
        clips = tuple(noise(folder, number) for number in range(CLIPS))
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump(serve_config(port, folder)))
        command = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", "--address", cluster.address]
        subprocess.run([*command, str(config)], env=os.environ | environments[0], check=True, timeout=120)
        for each, exporter_port in zip(environments, exporting, strict=True):
            exporter = [sys.executable, "-m", "services.cli", "exporter", "--host", "127.0.0.1"]
            exporters.append(subprocess.Popen([*exporter, "--port", str(exporter_port)], env=os.environ | each))
        ray.init(address=cluster.address, namespace="serve", logging_level="WARNING", log_to_driver=False)
        until_running()
        yield Deployed(
            api=f"http://127.0.0.1:{port}",
            exporters=(f"http://127.0.0.1:{exporting[0]}", f"http://127.0.0.1:{exporting[1]}"),
            clips=clips,
        )
    finally:
        for process in exporters:
            process.kill()
            process.wait()
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def noise(folder: Path, number: int) -> str:
    """The path of a clip unlike all of other numbers."""
    clip = folder / f"clip{number}.mp4"
    write_mp4(clip, np.random.default_rng(number).integers(0, 255, (12, 96, 96, 3), dtype=np.uint8))
    return str(clip)


def environment(directory: Path, redis: str) -> dict[str, str]:
    """What a pod of the cluster has in its environment."""
    return {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
        "OCCAM_DIRECTORY": str(directory),
        "OCCAM_STATE_URL": redis,
        "OCCAM_KV_URL": redis,
        PROXY_VARIABLE: PROXY_CALLBACK,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def serve_config(port: int, folder: Path) -> dict[str, Any]:
    """What KubeRay calls `serveConfigV2`."""
    arguments = {"models": MODEL, "workers": "2", "threads": "1", "file_roots": str(folder)}
    return {
        "http_options": {"host": "127.0.0.1", "port": port},
        "proxy_location": "EveryNode",
        "applications": [
            {
                "name": APP_NAME,
                "import_path": "services.app:application",
                "route_prefix": "/",
                "args": arguments,
            }
        ],
    }


def until_running() -> None:
    deadline = time.monotonic() + 180
    while (app := serve.status().applications.get(APP_NAME)) is None or app.status != "RUNNING":
        assert app is None or app.status != "DEPLOY_FAILED", app.message
        assert time.monotonic() < deadline, app
        time.sleep(0.5)


def replicas(deployment: str) -> list[dict[str, Any]]:
    details = _get_global_client().get_serve_details()["applications"][APP_NAME]
    return list(details["deployments"][deployment]["replicas"])


@pytest.mark.soak
def test_answer_metrics_are_the_sum_of_usage_over_two_nodes_and_a_worker_killed_on_the_way(deployed: Deployed) -> None:
    assert len({replica["node_id"] for replica in replicas(f"worker-{MODEL}")}) == 2, "a worker on each node"
    scrapes: list[list[Samples]] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            scrapes.append([samples(url) for url in deployed.exporters])
            time.sleep(0.2)

    scraping = threading.Thread(target=scrape)
    scraping.start()
    with httpx.Client(base_url=deployed.api, timeout=120) as http, ThreadPoolExecutor(4) as pool:
        answers = until_both_work(http, pool, deployed)
        talks = [pool.submit(converse, http, clip) for clip in deployed.clips]
        while not any(talk.done() for talk in talks):
            time.sleep(0.01)
        victim = replicas(f"worker-{MODEL}")[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert not all(talk.done() for talk in talks), "it died on the way"
        answers += [answer for talk in talks for answer in talk.result()]
    stop.set()
    scraping.join()

    clips = len(answers) // TURNS
    assert clips > CLIPS
    told: Counter[str] = Counter()
    for answer in answers:
        told.update(answer["usage"]["visual_tokens"])
    nodes = [samples(url) for url in deployed.exporters]
    counted: Counter[str] = Counter()
    for node in nodes:
        for labels, value in node.get("occam_visual_tokens_total", {}).items():
            counted[dict(labels)["stage"]] += int(value)
    print(f"usage {dict(told)}, exporters {dict(counted)}")
    assert counted == told

    # The work ledger accounts for the rest: what was done twice because a worker died, and nothing was done less.
    done = {stage: work(nodes, stage) for stage in ("encode", "generate")}
    a_clip = answers[0]["usage"]["visual_tokens"]["encoded"]
    print(f"work {done}, {clips} clips of {a_clip} tokens")
    assert done["generate"] >= sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert done["encode"] >= clips * a_clip

    assert_nothing_fell(scrapes)
    assert_one_node_has_the_ingress(deployed, nodes)


def until_both_work(http: httpx.Client, pool: ThreadPoolExecutor, deployed: Deployed) -> list[dict[str, Any]]:
    """Answers about clips of their own: where cores are few, Ray keeps to one of the workers for a while."""
    answers: list[dict[str, Any]] = []
    folder = Path(deployed.clips[0]).parent
    while not all(work([samples(url)], "encode") for url in deployed.exporters):
        fresh = [noise(folder, CLIPS + len(answers) + each) for each in range(4)]
        answers += [answer for talk in pool.map(partial(converse, http), fresh) for answer in talk]
    return answers


def converse(http: httpx.Client, clip: str) -> list[dict[str, Any]]:
    """The answers to some questions about a clip, each a follow-up."""
    video = http.post("/v1/videos", json={"url": clip}).json()["id"]
    answers: list[dict[str, Any]] = []
    for _ in range(TURNS):
        body: dict[str, Any] = {"question": "what color is the star", "max_tokens": 8}
        if answers:
            body["session_id"] = answers[0]["session_id"]
        response = http.post(f"/v1/videos/{video}/queries", json=body)
        assert response.status_code == 200, response.text
        answers.append(response.json())
    return answers


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def samples(url: str) -> Samples:
    """A node's numbers by name and labels, each exactly once."""
    found: Samples = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {})
            found[sample.name][labels] = sample.value
    return found


def work(nodes: list[Samples], stage: str) -> float:
    wanted = (("model", MODEL), ("stage", stage))
    return sum(node.get("occam_work_tokens_total", {}).get(wanted, 0.0) for node in nodes)


def assert_nothing_fell(scrapes: list[list[Samples]]) -> None:
    gauges = {"occam_queue_depth", "occam_queued_visual_tokens", "occam_workers"}
    for before, after in pairwise(scrapes):
        for earlier, later in zip(before, after, strict=True):
            for name in earlier.keys() - gauges:
                for labels, value in earlier[name].items():
                    assert later[name][labels] >= value, (name, labels)


def assert_one_node_has_the_ingress(deployed: Deployed, nodes: list[Samples]) -> None:
    """And what it shows on the service's own port is that node alone."""
    [ingress] = [number for number, node in enumerate(nodes) if node.get("occam_requests_total")]
    seen = samples(deployed.api)
    assert seen["occam_visual_tokens_total"] == nodes[ingress]["occam_visual_tokens_total"]
    assert seen["occam_work_tokens_total"] == nodes[ingress]["occam_work_tokens_total"]


@pytest.mark.soak
def test_a_request_id_passes_ray_s_proxy_once(deployed: Deployed) -> None:
    response = httpx.get(f"{deployed.api}/healthz", headers={"X-Request-Id": "mine"})
    assert [value for name, value in response.headers.multi_items() if name == "x-request-id"] == ["mine"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"OCCAM_KV_URL": "auto"}, "OCCAM_KV_URL must name a Redis server"),
        ({"OCCAM_STATE_URL": "auto"}, "OCCAM_STATE_URL must name a Redis server"),
        ({"OCCAM_DIRECTORY": ""}, "OCCAM_DIRECTORY must name a folder"),
        ({PROXY_VARIABLE: ""}, f"{PROXY_VARIABLE} must be {PROXY_CALLBACK}"),
        (
            {"OCCAM_KV_NODE_BYTES": "1024", "OCCAM_KV_NODE_DIRECTORY": "/absent/kv"},
            "OCCAM_KV_NODE_DIRECTORY: The node's",
        ),
    ],
)
def test_what_will_not_do_on_a_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: dict[str, str], says: str
) -> None:
    for name, value in (environment(tmp_path, "redis://cache") | wrong).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match=says):
        application({})


def test_arguments_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment(tmp_path, "redis://cache").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="There is no setting 'model'"):
        application({"model": MODEL})
    with pytest.raises(InvalidInput, match="OCCAM_WORKERS must be above 0 and finite, got 0"):
        application({"workers": "0"})


@pytest.mark.parametrize(
    ("name", "where"), [("directory", "OCCAM_DIRECTORY"), ("host", "http_opt"), ("port", "http_opt")]
)
def test_arguments_that_would_be_ignored_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, where: str
) -> None:
    for variable, value in environment(tmp_path, "redis://cache").items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInput, match=f"^{name} cannot be set by arguments .*{where}"):
        application({name: "1"})


def test_where_states_are_is_said_as_occam_serve_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Settings] = []
    monkeypatch.setattr("services.app.build_app", lambda settings, **_: given.append(settings))
    for variable, value in environment(tmp_path, "redis://cache").items():
        monkeypatch.setenv(variable, value)
    application({})
    application({"kv_node_bytes": "1024"})
    said = ["the Redis that is set", "files of each node, and the Redis that is set"]
    assert [settings.kv_detail for settings in given] == said
