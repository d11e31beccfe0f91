import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from occam.errors import InvalidInput
from services import private_redis
from services.kv import resolve
from services.private_redis import PrivateRedis


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def gone(folder: Path, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not folder.exists()


def test_it_is_private_bounded_and_forgetful() -> None:
    server = PrivateRedis.start(32 << 20)
    folder = folder_of(server.url)
    with Redis.from_url(server.url, decode_responses=True) as client:
        config = client.config_get("*")
        pid = client.info("server")["process_id"]
    assert (config["port"], config["save"], config["appendonly"]) == ("0", "", "no")
    assert (config["maxmemory"], config["maxmemory-policy"]) == (str(32 << 20), "allkeys-lru")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o600
    server.close()
    server.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_it_does_not_outlive_a_killed_parent(frozen: bool) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from services.private_redis import PrivateRedis; "
            "server = PrivateRedis.start(1 << 25); print(server.url, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    folder = folder_of(parent.stdout.readline().strip())
    with Redis.from_url(f"unix://{folder}/redis.sock") as client:
        pid = client.info("server")["process_id"]
    if frozen:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(folder)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("killed", [False, True])
def test_a_private_folder_does_not_outlive_its_process(killed: bool) -> None:
    code = (
        "import pathlib, sys; from services.private_folder import private_folder\n"
        "with private_folder() as folder:\n"
        "    pathlib.Path(folder, 'file').touch(); print(folder, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    if killed:
        process.kill()
    process.communicate()
    assert gone(folder)


def test_it_is_started_again_if_it_dies() -> None:
    server = PrivateRedis.start(32 << 20)
    with Redis.from_url(server.url) as client:
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while True:
            try:
                again = client.info("server")["process_id"]
                break
            except RedisConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert again != pid
    server.close()
    assert not folder_of(server.url).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(again, 0)


def test_auto_is_a_private_server_and_memory_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = resolve("auto", 32 << 20)
    assert backend.kind == "private_redis"
    assert backend.url.startswith("unix://")
    backend.close()
    monkeypatch.setattr(private_redis, "find_server", lambda: None)
    backend = resolve("auto")
    assert (backend.kind, backend.url) == ("memory", "memory://")
    assert "redis-server" in backend.detail
    backend.close()


def test_a_server_that_does_not_start_is_memory_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(private_redis, "find_server", lambda: Path("/bin/false"))
    monkeypatch.setattr(private_redis, "_START_S", 0.1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert resolve("auto").kind == "memory"
    assert list(tmp_path.iterdir()) == []


def test_a_setting_is_taken_as_it_is_or_refused() -> None:
    assert resolve("memory://").kind == "memory"
    assert resolve("rediss://host/1").url == "rediss://host/1"
    with pytest.raises(InvalidInput, match="OCCAM_KV_URL"):
        resolve("http://host")
