"""The child, asked to do what a hostile video would."""

import ctypes
import errno
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import process
from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.process import Child
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.wire import Kind

REFUSED_BY_SECCOMP = [
    *("look at another file", "write the video", "create a file", "delete a file", "run a program"),
    *("connect out", "open a unix socket", "fork", "signal its parent", "trace its parent", "set up io_uring"),
    *("make a file in memory", "map executable memory", "make memory executable", "bind a port"),
    "connect to an abstract socket",
]
REFUSED_BY_LANDLOCK = ["read its environment", "read its parent's environment", "open another file", "list a folder"]


LIMITED = {
    "allocate more than the limit": errno.ENOMEM,
    "open a 17th descriptor": errno.EMFILE,
    "write past the limit": errno.EFBIG,
}
ALLOWED = ["read the video", "allocate a sixteenth of the limit", "open a 16th descriptor"]
Report = tuple[Sandbox, dict[str, int | None]]


def self_test(video: Path, other: Path, **job: Any) -> Report:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port = server.getsockname()[1]
        abstract.bind(f"\0{port}")
        abstract.listen()
        local = LocalFile(path=video, digest="", bytes=0, reader="mov")
        child = Child("self_test", local, Limits(memory_bytes=1 << 30), 20.0, other=str(other), port=port, **job)
        try:
            message = child.receive()
            assert message.kind == Kind.REPORT
            outcomes = child.receive_json(message.size)
            assert child.receive().kind == Kind.END
        finally:
            child.close()
    assert child.sandbox is not None
    return child.sandbox, outcomes


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "secret"
    path.write_text("secret")
    return path


@pytest.fixture(scope="module")
def report(plain_clip: Path, other: Path) -> Iterator[Report]:
    inheritable = os.open(other, os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    yield self_test(plain_clip, other)
    os.close(inheritable)
    assert other.exists()


def can_unshare() -> bool:
    flags = 0x10000000 | 0x40000000 | 0x08000000
    code = f"import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare({flags}) != 0)"
    return subprocess.run([sys.executable, "-S", "-c", code], check=False).returncode == 0


def test_every_wall_that_the_host_has_stands(report: Report) -> None:
    landlock_version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    assert report[0].landlock == max(landlock_version, 0)
    has_seccomp = platform.machine() == "x86_64" and Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    assert report[0].seccomp == has_seccomp
    assert report[0].namespaces == can_unshare()


@pytest.mark.parametrize("attempt", ALLOWED)
def test_what_decoding_needs_can_be_done(attempt: str, report: Report) -> None:
    assert report[1][attempt] is None


@pytest.mark.parametrize("attempt", LIMITED)
def test_resources_are_limited(attempt: str, report: Report) -> None:
    assert report[1][attempt] == LIMITED[attempt]


# Each wall alone: what it refuses, with the others torn down. In our own network there is no way to the other's.
ALONE = {
    "landlock": {
        **dict.fromkeys(["open another file", "connect out", "bind a port"], errno.EACCES),
        **dict.fromkeys(["signal its parent", "connect to an abstract socket"], errno.EPERM),
    },
    "namespaces": {"connect out": errno.ENETUNREACH, "connect to an abstract socket": errno.ECONNREFUSED},
}
TEAR_DOWN = {
    "landlock": "sandbox._restrict_files = lambda *_: 0; ",
    "seccomp": "seccomp.install = lambda: False; ",
    "namespaces": "sandbox._CLONE_NEWUSER = -1; ",
}


@pytest.mark.parametrize("wall", ALONE)
def test_each_wall_stands_by_itself(
    wall: str, plain_clip: Path, other: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    if wall in report[0].missing or (wall == "landlock" and report[0].landlock < 6):
        pytest.skip("this host has no such wall, or a lower one")
    code = "from pipelines.ingest import sandbox, seccomp; from pipelines.ingest.child import main; "
    code += "".join(TEAR_DOWN[torn] for torn in TEAR_DOWN if torn != wall) + "main()"
    monkeypatch.setattr(process, "_COMMAND", ("-s", "-c", code))
    sandbox, outcomes = self_test(plain_clip, other, attempts=list(ALONE[wall]))
    assert set(sandbox.missing) == {*TEAR_DOWN} - {wall}
    assert outcomes == ALONE[wall]


def test_the_limits_that_only_the_kernel_sees_are_set(
    plain_clip: Path, open_stream: Callable[..., FrameStream], report: Report
) -> None:
    with open_stream(plain_clip, list(range(60)), deadline_s=30.0) as stream:
        next(stream)  # its pipe is full, so that it lives
        lines = Path("/proc", str(stream._child.pid), "limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max cpu time"] == ["61", "61"]
    assert limits["Max core file size"] == ["0", "0"]
    if report[0].namespaces:
        assert limits["Max processes"] == ["64", "64"]


KILLED = """
import sys, time
from pathlib import Path
from pipelines.ingest.limits import Limits
from pipelines.ingest.process import Child
from pipelines.ingest.local_file import LocalFile
video = LocalFile(path=Path(sys.argv[1]), digest="", bytes=0, reader="mov")
child = Child("pyav", video, Limits(), 60.0, targets=[])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_the_child_ends_with_its_parent(when: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # whoever opens it waits
    command = [sys.executable, "-c", KILLED, str(tmp_path / "fifo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=process._ROOT) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        time.sleep({"early": 0.0, "late": 2.0}[when])
        parent.kill()
    ends = time.monotonic() + 10
    while child.exists() and "State:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.parametrize("attempt", REFUSED_BY_SECCOMP)
def test_refused_system_calls(attempt: str, report: Report) -> None:
    sandbox, outcomes = report
    if not sandbox.seccomp:
        pytest.skip("this host has no seccomp filters for this machine")
    assert outcomes[attempt] == errno.EPERM


@pytest.mark.parametrize("attempt", REFUSED_BY_LANDLOCK)
def test_refused_files(attempt: str, report: Report) -> None:
    sandbox, outcomes = report
    if not sandbox.landlock:
        pytest.skip("this host has no Landlock")
    assert outcomes[attempt] == errno.EACCES


def test_it_has_three_descriptors(report: Report) -> None:
    assert report[1]["use a fourth descriptor"] == errno.EBADF


def test_every_attempt_is_judged_here(report: Report) -> None:
    judged = {*REFUSED_BY_SECCOMP, *REFUSED_BY_LANDLOCK, *LIMITED, *ALLOWED, "use a fourth descriptor"}
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
