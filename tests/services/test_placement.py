"""Where replicas go: whether there is room, said before anything waits, and GPU nodes on a simulated cluster."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from occam.errors import InvalidInput
from services import launch
from services.app import APP_NAME
from services.launch import running
from services.placement import Need, shortage
from services.settings import Settings
from tests.fakes import FakeEngine, FakeMedia
from tests.ports import free_port

SMALL = Need(name="decoder", cpus=0.2)


def workers(count: int, gpus: float) -> list[Need]:
    return [SMALL, *[Need(name="worker-m", cpus=0.4, gpus=gpus)] * count]


@pytest.mark.parametrize(
    ("count", "gpus", "nodes"),
    [
        (2, 0.0, [{"CPU": 1.0}]),
        (2, 0.0, [{"CPU": 0.6}, {"CPU": 0.4}]),
        (3, 1.0, [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]),
        (4, 0.5, [{"CPU": 8.0, "GPU": 2.0}]),
        (3, 0.33, [{"CPU": 8.0, "GPU": 1.0}]),
        (2, 2.0, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 1.0}]),
        # The decoder leaves the cores of the GPU's node to the worker.
        (1, 1.0, [{"CPU": 0.4, "GPU": 1.0}, {"CPU": 0.2}]),
    ],
)
def test_there_is_room(count: int, gpus: float, nodes: list[dict[str, float]]) -> None:
    assert shortage(workers(count, gpus), nodes) is None


@pytest.mark.parametrize(
    ("count", "gpus", "nodes", "missing"),
    [
        (3, 0.0, [{"CPU": 1.0}], "1 of worker-m, each 0.4 of a core of one node"),
        (2, 0.0, [{"CPU": 0.5}, {"CPU": 0.4}], "1 of decoder, each 0.2 of a core of one node"),
        (3, 1.0, [{"CPU": 8.0, "GPU": 2.0}], "1 of worker-m, each 0.4 of a core and 1 of its GPUs"),
        # Two nodes of one GPU are no node of two.
        (1, 2.0, [{"CPU": 8.0, "GPU": 1.0}] * 2, "1 of worker-m, each 0.4 of a core and 2 of its GPUs"),
        # Two fifths of each of two GPUs are no three fifths of one.
        (3, 0.6, [{"CPU": 8.0, "GPU": 2.0}], "1 of worker-m, each 0.4 of a core and 0.6 of its GPUs"),
    ],
)
def test_what_finds_no_room_is_named(count: int, gpus: float, nodes: list[dict[str, float]], missing: str) -> None:
    said = shortage(workers(count, gpus), nodes)
    assert said is not None
    assert missing in said
    assert f"{nodes[0]['CPU']:g} cores and {nodes[0].get('GPU', 0):g} GPUs" in said


def settings(gpus: float) -> Settings:
    redis = "redis://127.0.0.1:1"  # nobody asks anything
    return Settings(
        models=("fake",), workers=2, gpus_per_worker=gpus, port=free_port(), kv_url="memory://", state_url=redis
    )


def test_a_machine_without_gpus_says_so_instead_of_waiting() -> None:
    with (
        pytest.raises(InvalidInput, match=r"no room for replicas \(2 of worker-fake, each .* 99 of its GPUs"),
        running(settings(99), load=FakeEngine.load, media=FakeMedia),
    ):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node without GPUs, which has the most room, and one that declares four."""
    environment = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "env_vars": environment})
    cluster.add_node(num_cpus=2, num_gpus=4, env_vars=environment)
    yield cluster
    cluster.shutdown()


@pytest.mark.soak
@pytest.mark.parametrize("gpus", [0.5, 1, 2])
def test_workers_take_gpus_and_nothing_else_does(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, gpus: float
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    [gpu_node] = [node.node_id for node in cluster.worker_nodes]
    with running(settings(gpus), load=FakeEngine.load, media=FakeMedia):
        placed = nodes_of_replicas()
        assert placed["worker-fake"] == [gpu_node] * 2
        assert {name: len(nodes) for name, nodes in placed.items()} == {"ingress": 1, "decoder": 1, "worker-fake": 2}
        assert ray.available_resources().get("GPU", 0.0) == 4 - 2 * gpus


def test_on_a_cluster_that_may_grow_it_is_said_and_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with launch._cluster(), caplog.at_level(logging.WARNING):
        launch._check_room(settings(2))
        assert caplog.text == ""
        launch._check_room(settings(4))
    assert "1 of worker-fake, each 0.4 of a core and 4 of its GPUs" in caplog.text
    assert "It is waited for." in caplog.text


def nodes_of_replicas() -> dict[str, list[str]]:
    """The nodes that each deployment's replicas are on, by its name."""
    [app] = [app for name, app in _get_global_client().get_serve_details()["applications"].items() if name == APP_NAME]
    return {
        name: [replica["node_id"] for replica in deployment["replicas"]]
        for name, deployment in app["deployments"].items()
    }
