"""What a video that took its decoder over could do, tried out: `self_test` runs this inside the sandbox, as any child.

Each attempt is made by system calls that need no file of Python's, so that what stops it is a wall.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from pipelines.ingest.wire import Kind, send_json

_SYS_PTRACE, _SYS_IO_URING_SETUP = 101, 425


def run(job: dict[str, Any]) -> None:
    """Try everything, and report for each attempt the error that stopped it, or that nothing did."""
    attempts: dict[str, Callable[[], object]] = {
        "read the environment": lambda: _require(os.environ),
        "read its initial environment": lambda: _require(_read("/proc/self/environ")),
        "read its parent's environment": lambda: _read(f"/proc/{os.getppid()}/environ"),
        "open another file": lambda: _read("/etc/passwd"),
        "list a folder": lambda: os.listdir("/"),
        "look at another file": lambda: os.stat("/etc/passwd"),
        "write the video": lambda: os.open(job["path"], os.O_WRONLY),
        "create a file": lambda: os.open("/tmp/occam-self-test", os.O_CREAT | os.O_WRONLY),
        "connect out": lambda: socket.socket().connect(("127.0.0.1", job["port"])),
        "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "signal its parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
        "trace its parent": lambda: _call(_SYS_PTRACE, 16, os.getppid(), 0, 0),
        "set up io_uring": lambda: _call(_SYS_IO_URING_SETUP, 1, 0),
        "use a fourth descriptor": lambda: os.fstat(3),
    }
    # The one thing it may do, so that the report cannot be good because nothing works.
    outcomes = {"read the video": _outcome(lambda: _read(job["path"]))}
    send_json(Kind.REPORT, outcomes | {name: _outcome(attempt) for name, attempt in attempts.items()})


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "done"
