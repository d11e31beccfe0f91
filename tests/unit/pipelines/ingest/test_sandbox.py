"""The child, asked to do what a hostile video would."""

import ctypes
import errno
import os
import platform
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.ingest.limits import Limits
from pipelines.ingest.process import Child
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.source import LocalFile
from pipelines.ingest.wire import Kind

REFUSED_BY_SECCOMP = [
    *("look at another file", "write the video", "create a file", "delete a file", "run a program"),
    *("connect out", "open a unix socket", "fork", "signal its parent", "trace its parent", "set up io_uring"),
    "make a file in memory",
]
REFUSED_BY_LANDLOCK = ["read its environment", "read its parent's environment", "open another file", "list a folder"]


@pytest.fixture(scope="module")
def report(
    plain_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Sandbox, dict[str, int | None]]]:
    other = tmp_path_factory.mktemp("other") / "secret"
    other.write_text("secret")
    inheritable = os.open(other, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    video = LocalFile(path=plain_clip, digest="", bytes=0, reader="mov")
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = Child(
            "self_test", video, Limits(), 20.0, parent=os.getpid(), other=str(other), port=server.getsockname()[1]
        )
        message = child.receive()
        assert message.kind == Kind.REPORT
        outcomes = child.receive_json(message.size)
        assert child.receive().kind == Kind.END
        assert child.sandbox is not None
        yield child.sandbox, outcomes
        child.close()
    os.close(inheritable)
    assert other.exists()


def test_every_wall_that_the_host_has_stands(report: tuple[Sandbox, dict[str, int | None]]) -> None:
    landlock_version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    assert report[0].landlock == max(landlock_version, 0)
    has_seccomp = platform.machine() == "x86_64" and Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    assert report[0].seccomp == has_seccomp


def test_the_video_can_be_read(report: tuple[Sandbox, dict[str, int | None]]) -> None:
    assert report[1]["read the video"] is None


@pytest.mark.parametrize("attempt", REFUSED_BY_SECCOMP)
def test_refused_system_calls(attempt: str, report: tuple[Sandbox, dict[str, int | None]]) -> None:
    sandbox, outcomes = report
    if not sandbox.seccomp:
        pytest.skip("this host has no seccomp filters for this machine")
    assert outcomes[attempt] == errno.EPERM


@pytest.mark.parametrize("attempt", REFUSED_BY_LANDLOCK)
def test_refused_files(attempt: str, report: tuple[Sandbox, dict[str, int | None]]) -> None:
    sandbox, outcomes = report
    if not sandbox.landlock:
        pytest.skip("this host has no Landlock")
    assert outcomes[attempt] == errno.EACCES


def test_it_has_three_descriptors(report: tuple[Sandbox, dict[str, int | None]]) -> None:
    assert report[1]["use a fourth descriptor"] == errno.EBADF


def test_every_attempt_is_judged_here(report: tuple[Sandbox, dict[str, int | None]]) -> None:
    judged = {*REFUSED_BY_SECCOMP, *REFUSED_BY_LANDLOCK, "read the video", "use a fourth descriptor"}
    assert judged == set(report[1])


def test_the_child_starts_with_nothing(
    plain_clip: Path, local: Callable[[Path], LocalFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCCAM_SECRET", "secret")
    child = Child("pyav", local(plain_clip), Limits(), 20.0, targets=[])
    environment = Path("/proc", str(child.pid), "environ").read_bytes()
    child.close()
    assert environment == b""


def test_a_missing_wall_is_named() -> None:
    assert Sandbox(landlock=7, seccomp=True, namespaces=True).missing == ()
    assert Sandbox(landlock=0, seccomp=True, namespaces=False).missing == ("landlock", "namespaces")
