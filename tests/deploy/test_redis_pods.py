"""Each Redis of the manifests is what it is said to be: its command, as it stands in the pod, with a real server."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import BusyLoadingError

from services.private_redis import find_server
from tests.deploy.manifests import ROOT, kubectl, only, rendered

pytestmark = pytest.mark.skipif(kubectl() is None, reason="kubectl is not installed")


@pytest.mark.parametrize(
    ("kind", "name", "policy", "durable", "memory"),
    [
        ("Deployment", "redis-kv", "allkeys-lru", False, 8 << 30),
        ("StatefulSet", "redis-state", "noeviction", True, 1 << 30),
        ("StatefulSet", "redis-gcs", "noeviction", True, 1 << 30),
    ],
)
def test_each_redis_is_what_it_is_said_to_be(
    kind: str, name: str, policy: str, durable: bool, memory: int, tmp_path: Path
) -> None:
    with _redis(kind, name, tmp_path) as (client, command_line):
        set_to = client.config_get()
        assert set_to["maxmemory-policy"] == policy
        assert set_to["appendonly"] == ("yes" if durable else "no")
        # When the kernel is told to write is nothing that the end of a process shows; the machine's own would.
        assert set_to["appendfsync"] == "everysec" or not durable
        assert set_to["save"] == ""
        assert int(set_to["maxmemory"]) == pytest.approx(memory, rel=1e-6)
        assert b"a-password" not in command_line


@pytest.mark.parametrize(
    ("name", "policy", "appendonly", "memory"),
    [("redis-kv", "allkeys-lru", "no", 2 << 30), ("redis-state", "noeviction", "yes", 1 << 30)],
)
def test_those_of_compose_are_the_same(name: str, policy: str, appendonly: str, memory: int, tmp_path: Path) -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"][name]
    (mounted,) = [volume.split(":")[0] for volume in service["volumes"] if volume.endswith("redis.conf:ro")]
    script = service["command"][-1].replace("$$", "$")
    environment = {"MAXMEMORY": service["environment"]["MAXMEMORY"]}
    with _server(script, (ROOT / "deploy" / mounted).read_text(), environment, tmp_path) as (client, command_line):
        set_to = client.config_get()
        assert (set_to["maxmemory-policy"], set_to["appendonly"]) == (policy, appendonly)
        assert int(set_to["maxmemory"]) == memory
        assert b"a-password" not in command_line


@contextmanager
def _redis(kind: str, name: str, folder: Path, crashes: bool = False) -> "Iterator[tuple[Redis, bytes]]":
    """A real server by the command that stands in the pod, its data in `folder / "data"`; and its command line."""
    documents = rendered("prod-gpu")
    spec = only(documents, kind, name)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    config = only(documents, "ConfigMap", spec["volumes"][0]["configMap"]["name"])["data"]["redis.conf"]
    size, unit = container["resources"]["limits"]["memory"][:-2], container["resources"]["limits"]["memory"][-2:]
    environment = {"MEMORY": str(int(size) << {"Mi": 20, "Gi": 30}[unit])}
    with _server(container["command"][-1], config, environment, folder, crashes) as running:
        yield running


@contextmanager
def _server(
    script: str, config: str, environment: dict[str, str], folder: Path, crashes: bool = False
) -> "Iterator[tuple[Redis, bytes]]":
    (folder / "data").mkdir(exist_ok=True)
    config = re.sub("^dir .*", f"dir {folder}/data", config, flags=re.MULTILINE)
    (folder / "redis.conf").write_text(f"{config}\nport 0\nunixsocket {folder}/redis.sock\n")
    script = script.replace("/etc/redis/redis.conf", f"{folder}/redis.conf").replace("redis-server", str(find_server()))
    given = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": "a-password"} | environment
    server = subprocess.Popen(["sh", "-c", script], env=given, stdout=subprocess.DEVNULL)
    try:
        while not (folder / "redis.sock").exists():
            assert server.poll() is None
        with Redis(unix_socket_path=f"{folder}/redis.sock", password="a-password", decode_responses=True) as client:
            while _loading(client):
                time.sleep(0.05)
            command_line = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert b"redis-server" in command_line, "the first process is not the server"
            yield client, command_line
        if not crashes:
            server.terminate()
            assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()


def _loading(client: Redis) -> bool:
    try:
        return not client.ping()
    except BusyLoadingError:
        return True


def test_what_was_acknowledged_survives_the_server(tmp_path: Path) -> None:
    """Killed at once after the last answer: the file has it, synced or not."""
    with _redis("StatefulSet", "redis-state", tmp_path, crashes=True) as (client, _):
        for number in range(1000):
            client.set(f"session:{number}", "x" * 1000, ex=3600)
    (tmp_path / "redis.sock").unlink()
    with _redis("StatefulSet", "redis-state", tmp_path) as (client, _):
        assert client.dbsize() == 1000
        assert 0 < client.ttl("session:7") <= 3600


def test_state_comes_back_from_a_backup(tmp_path: Path) -> None:
    """As docs/operations.md says: an archive of the running server's folder, and a server on what is in it."""
    running, restored = tmp_path / "running", tmp_path / "restored"
    running.mkdir()
    with _redis("StatefulSet", "redis-state", running) as (client, _):
        client.config_set("auto-aof-rewrite-percentage", 0)
        for number in range(1000):
            client.set(f"session:{number}", "x" * 1000, ex=3600)
        subprocess.run(["tar", "-C", running / "data", "-cf", tmp_path / "state.tar", "."], check=True)
        client.set("afterwards", "1")
    (restored / "data").mkdir(parents=True)
    subprocess.run(["tar", "-C", restored / "data", "-xf", tmp_path / "state.tar"], check=True)
    with _redis("StatefulSet", "redis-state", restored) as (client, _):
        assert client.dbsize() == 1000
        assert 0 < client.ttl("session:7") <= 3600
