"""The small parts: settings, the shared flight, the node's metrics, and that everything which crosses pickles."""

import asyncio
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from occam import errors
from occam.errors import InvalidInput, Overloaded
from services import errors as service_errors
from services.errors import ReplicaLost
from services.launch import running
from services.settings import Settings
from services.single_flight import SingleFlight
from services.statuses import STATUSES, status_of
from tests.services.local import crossed


def test_settings_come_from_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "occam.yaml"
    path.write_text("workers: 2\nallowed_hosts: [example.org, example.com]\nmax_video_bytes: 1000\n")
    settings = Settings.load(
        {
            "OCCAM_CONFIG": str(path),
            "OCCAM_WORKERS": "3",
            "OCCAM_MODELS": "a, b",
            "OCCAM_DTYPE": "bfloat16",
            "OCCAM_QUANTIZATION": "int8",
            "HOME": "x",
        }
    )
    assert (settings.workers, settings.max_video_bytes, settings.dtype) == (3, 1000, "bfloat16")
    assert settings.allowed_hosts == ("example.org", "example.com")
    assert settings.models == ("a", "b")
    assert (settings.engine("a").dtype, settings.engine("a").quantization) == ("bfloat16", "int8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OCCAM_WORKER", "2"),
        ("OCCAM_WORKERS", "two"),
        ("OCCAM_WORKERS", "0"),
        ("OCCAM_DTYPE", "int8"),
        ("OCCAM_QUANTIZATION", "int4"),
        ("OCCAM_KV_WIRE", "int4"),
        ("OCCAM_MODELS", ""),
        ("OCCAM_PORT", "99999"),
        ("OCCAM_PORT", "0"),
        ("OCCAM_SERVICE", "x"),
        ("OCCAM_PORTS", "x"),
        ("OCCAM_CONFIG", "/nope"),
        ("OCCAM_CONFIG", "/"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput):
        Settings.load({name: value})


@pytest.mark.parametrize("content", [b"- a list", b"a: [", b"\xff\xfe\xff", b"1: 2", b"a line"])
def test_a_settings_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "occam.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        Settings.load({"OCCAM_CONFIG": str(path)})


def test_what_kubernetes_sets_is_no_setting() -> None:
    given = {
        "OCCAM_SERVICE_HOST": "10.0.0.1",
        "OCCAM_SERVICE_PORT": "8000",
        "OCCAM_SERVICE_PORT_HTTP": "8000",
        "OCCAM_PORT": "tcp://10.0.0.1:8000",
        "OCCAM_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "OCCAM_PORT_8000_TCP_PROTO": "tcp",
        "OCCAM_PORT_8000_TCP_PORT": "8000",
        "OCCAM_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert Settings.load(given) == Settings()


def test_a_port_in_use_is_said_so() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=taken.getsockname()[1])
        with pytest.raises(InvalidInput, match="cannot be used"), running(settings):
            pass


def test_a_folder_of_the_node_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir(mode=0o755)
    for folder in (tmp_path / "kv", tmp_path / "absent" / "kv"):
        settings = Settings(kv_node_bytes=1 << 20, kv_node_directory=str(folder), kv_url="memory://")
        with pytest.raises(InvalidInput, match="OCCAM_KV_NODE_DIRECTORY: The node's cache folder"), running(settings):
            pass


def test_a_flight_is_shared_and_ends_with_its_last_waiter() -> None:
    ended: list[str] = []

    async def fly() -> int:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("landed")
        return 7

    async def main() -> None:
        flights: SingleFlight[int] = SingleFlight()
        first = asyncio.create_task(flights.run("key", fly))
        second = asyncio.create_task(flights.run("key", fly))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == (7, False), "one waiter's end is not the flight's"
        assert ended == ["landed"]

        alone = asyncio.create_task(flights.run("key", fly))
        await asyncio.sleep(0.01)
        alone.cancel()
        await asyncio.sleep(0)
        assert await flights.run("key", fly) == (7, True), "a cancelled flight is not joined"
        assert ended == ["landed", "cancelled", "landed"]

    asyncio.run(main())


def test_errors_cross_processes_and_have_a_status() -> None:
    kinds = [
        kind
        for module in (errors, service_errors)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, errors.OccamError)
    ]
    for kind in kinds:
        error = crossed(kind("What is wrong.", "field"))
        assert (type(error), error.message, error.param) == (kind, "What is wrong.", "field")
        assert 400 <= status_of(error) < 600
    assert crossed(Overloaded("Busy.", retry_after_s=3.0)).retry_after_s == 3.0
    assert isinstance(pickle.loads(pickle.dumps(ReplicaLost("Gone."))), ReplicaLost)
    for index, (kind, _) in enumerate(STATUSES):
        assert not any(issubclass(kind, earlier) for earlier, _ in STATUSES[:index]), f"{kind} is never reached"


COUNT = """
import os, sys
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from services import metric_files, metrics
metrics.REQUESTS.labels("/v1/videos", "ok").inc()
metrics.QUEUE_DEPTH.inc()
if sys.argv[2] == "die":
    os.kill(os.getpid(), 9)
print(metric_files.render(__import__("pathlib").Path(sys.argv[1])).decode())
"""


def test_numbers_survive_their_process_and_live_gauges_do_not(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def count(then: str) -> str:
        command = [sys.executable, "-c", COUNT, str(tmp_path), then]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    count("die")
    rendered = count("render")
    assert 'occam_requests_total{outcome="ok",route="/v1/videos"} 2.0' in rendered
    assert "occam_queue_depth 1.0" in rendered
