"""What a video that took its decoder over could try, tried: a worker of `child`, inside the same sandbox as the others.

Everything here is imported before the walls close, so what stops an attempt is a wall.
"""

import ctypes
import errno
import mmap
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pipelines.ingest.wire import Kind, send_json

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_MPROTECT, _FAR = 10, 1 << 16
_SYS_PTRACE, _PTRACE_ATTACH, _SYS_IO_URING_SETUP, _SYS_MEMFD_CREATE = 101, 16, 425, 319


def run(job: dict[str, Any]) -> None:
    """Try everything, and report for each attempt the errno that stopped it, or null where nothing did.

    `job["parent"]` is the parent's process, `job["other"]` a file of its own, `job["port"]` a port where it listens,
    and so is the abstract Unix socket of that number; `job["attempts"]`, if given, narrows what is tried.
    """
    other = Path(job["other"])
    attempts: dict[str, Callable[[], object]] = {
        # The one thing that must go well, so that the report cannot be good because nothing works.
        "read the video": Path(job["path"]).read_bytes,
        "read its environment": Path("/proc/self/environ").read_bytes,
        "read its parent's environment": Path("/proc", str(job["parent"]), "environ").read_bytes,
        "open another file": other.read_bytes,
        "look at another file": other.stat,
        "list a folder": lambda: os.listdir(other.parent),
        "write the video": lambda: os.open(job["path"], os.O_WRONLY),
        "create a file": lambda: os.open(other.with_name("new"), os.O_CREAT | os.O_WRONLY),
        "delete a file": other.unlink,
        "connect out": lambda: socket.socket().connect(("127.0.0.1", job["port"])),
        "bind a port": lambda: socket.socket().bind(("127.0.0.1", 0)),
        "connect to an abstract socket": lambda: socket.socket(socket.AF_UNIX).connect(f"\0{job['port']}"),
        "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
        "run a program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606 - it must not run
        "fork": os.fork,
        "signal its parent": lambda: os.kill(job["parent"], signal.SIGCONT),
        "trace its parent": lambda: _call(_SYS_PTRACE, _PTRACE_ATTACH, job["parent"], 0, 0),
        "set up io_uring": lambda: _call(_SYS_IO_URING_SETUP, 1, 0),
        "make a file in memory": lambda: _call(_SYS_MEMFD_CREATE, b"x", 0),
        "use a fourth descriptor": _fourth_descriptor,
        "map executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "make memory executable": _make_executable,
        "allocate more than the limit": lambda: mmap.mmap(-1, job["memory_bytes"]),
        "allocate a sixteenth of the limit": lambda: mmap.mmap(-1, job["memory_bytes"] // 16),
        "open a 17th descriptor": lambda: _open_until(job["path"], 17),
        "open a 16th descriptor": lambda: _open_until(job["path"], 16),
        "write past the limit": _write_past_the_limit,
    }
    wanted = job.get("attempts", attempts)
    send_json(Kind.REPORT, {name: _errno(attempts[name]) for name in wanted})


def _errno(attempt: Callable[[], object]) -> int | None:
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def _fourth_descriptor() -> None:
    for descriptor in range(3, 4096):
        with suppress(OSError):
            os.fstat(descriptor)
            return
    raise OSError(errno.EBADF, "none is open")


def _make_executable() -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _call(_SYS_MPROTECT, ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_EXEC)


def _open_until(path: str, count: int) -> None:
    """Hold `count` descriptors at once; the three standard ones are among them."""
    with ExitStack() as stack:
        for _ in range(count - 3):
            stack.callback(os.close, os.open(path, os.O_RDONLY))


def _write_past_the_limit() -> None:
    # Standard error is the one file that is open for writing. Python ignores SIGXFSZ, so the write fails instead.
    os.lseek(2, _FAR, os.SEEK_SET)
    os.write(2, b"x")


def _call(number: int, *arguments: object) -> None:
    if _LIBC.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
