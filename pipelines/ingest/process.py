"""The parent's side of the child process: starting it, reading from it within a budget of time, killing it."""

import asyncio
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from occam.errors import DecodeTimeout, UnsupportedVideo, VideoTooLarge
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.wire import HEADER, MAX_TEXT_BYTES, BackendFailed, Kind

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_COMMAND = ("-s", "-m", "pipelines.ingest.child")
_REPORTED: dict[int, type[Exception]] = {
    Kind.UNSUPPORTED: UnsupportedVideo,
    Kind.TOO_LARGE: VideoTooLarge,
    Kind.BACKEND_FAILED: BackendFailed,
}
# Not the event loop's own threads: those resolve names, and children that keep their readers waiting would block them.
_READERS = ThreadPoolExecutor(max_workers=64, thread_name_prefix="child-reader")


async def in_reader(read: Callable[..., T], *args: object) -> T:
    """Await `read(*args)`, which reads from a child, in a thread; cancelling leaves the thread to the child's end.

    The thread has the caller's context variables: what it logs is the caller's.
    """
    return await asyncio.get_running_loop().run_in_executor(_READERS, copy_context().run, partial(read, *args))


class ChildDied(Exception):
    """The child went away, or said what no child says, before it had finished."""


class Message(NamedTuple):
    """The header of a message: its kind, a frame's stamp, when it was sent (monotonic), and the bytes that follow."""

    kind: Kind
    stamp: int
    sent_s: float
    size: int


class Child:
    """A sandboxed process at work on one video or image, which dies with the thread that started it.

    worker: `pyav`, `decord`, `pillow` or `self_test`
    budget_s: seconds that the child may keep its reader waiting, in all; then it is killed and DecodeTimeout raised
    """

    def __init__(self, worker: str, video: LocalFile, limits: Limits, budget_s: float, **job: Any) -> None:
        self.sandbox: Sandbox | None = None
        self._kind = video.kind
        self._budget_s = self.left_s = budget_s
        job |= {"worker": worker, "path": str(video.path), "reader": video.reader}
        job |= {"parent": os.getpid(), "memory_bytes": limits.memory_bytes, "max_frames": limits.max_frames}
        job |= {"max_pixels": limits.pixels_of(video.kind)}
        job |= {"cpu_s": 2 * budget_s + 1}  # two decoding threads
        # Files and not pipes: a child that does not read, or says too much, cannot hold up its parent.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(job).encode())
            stdin.seek(0)
            self._process = _spawn(stdin, self._stderr)
        self._pipe = cast(IO[bytes], self._process.stdout)
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def receive(self) -> Message:
        """Return the next header that is not the sandbox's report, which is kept in `sandbox`.

        Raises what the child reports (UnsupportedVideo, VideoTooLarge, BackendFailed), ChildDied, DecodeTimeout.
        """
        kind, stamp, sent_s, size = HEADER.unpack(self._read(HEADER.size))
        if kind not in set(Kind) or size < 0:
            raise ChildDied("the child sent a header that is none")
        if kind == Kind.SANDBOX and self.sandbox is None:
            self.sandbox = self._receive_sandbox(size)
            return self.receive()
        if kind in _REPORTED:
            text = self._read(size).decode(errors="replace")
            text = "".join(c if c.isprintable() else " " for c in text)
            raise _REPORTED[kind](text)
        return Message(Kind(kind), stamp, sent_s, size)

    def receive_json(self, size: int) -> dict[str, Any]:
        """Read a body of `size` bytes as a JSON object; raises ChildDied if it is none."""
        try:
            value = json.loads(self._read(size))
        except (ValueError, RecursionError):
            raise ChildDied("the child sent JSON that is none") from None
        if not isinstance(value, dict):
            raise ChildDied("the child sent JSON that is no object")
        return value

    def receive_into(self, array: npt.NDArray[Any], size: int) -> None:
        """Fill `array` (C-contiguous) with a body of `size` bytes; raises ChildDied if they are not as many."""
        if size != array.nbytes:
            raise ChildDied(f"the child sent {size} bytes for {array.nbytes}")
        self._read_into(array.reshape(-1).view(np.uint8).data)

    def kill(self) -> None:
        """End the process at once, stopped or not; safe from any thread, and a reader then meets ChildDied."""
        self._process.kill()

    def close(self) -> None:
        """End the process and free what it held; not while another thread reads."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._stderr.close()

    def _receive_sandbox(self, size: int) -> Sandbox:
        try:
            sandbox = Sandbox(**self.receive_json(size))
        except TypeError:
            raise ChildDied("the child did not say which walls stand") from None
        if sandbox.missing:
            _warn(sandbox.missing)
        return sandbox

    def _read(self, size: int) -> bytes:
        if size > MAX_TEXT_BYTES:
            raise ChildDied(f"the child sent {size} bytes of text")
        buffer = bytearray(size)
        self._read_into(memoryview(buffer))
        return bytes(buffer)

    def _read_into(self, view: memoryview) -> None:
        while view:
            began = time.monotonic()
            ready = self._poll.poll(max(self.left_s, 0) * 1000)
            self.left_s -= time.monotonic() - began
            if not ready:
                self.kill()
                raise DecodeTimeout(f"The {self._kind} was not decoded within {self._budget_s:g} s.")
            got = os.readv(self._pipe.fileno(), [view])
            if not got:
                raise ChildDied(self._cause_of_death())
            view = view[got:]

    def _cause_of_death(self) -> str:
        self._process.kill()  # it may have closed its pipe and gone on; one that is dead keeps its status
        status = self._process.wait()
        self._stderr.seek(max(os.fstat(self._stderr.fileno()).st_size - MAX_TEXT_BYTES, 0))
        return f"the child ended with status {status}: {self._stderr.read()!r}"


def walls_of_this_host(limits: Limits, budget_s: float = 30.0) -> Sandbox:
    """Start a child on nothing, to see which walls stand round it; raises ChildDied, DecodeTimeout."""
    nothing = LocalFile(path=Path(os.devnull), digest="", bytes=0, reader="mov")
    child = Child("pyav", nothing, limits, budget_s, targets=[])
    try:
        with suppress(UnsupportedVideo):
            child.receive()
    finally:
        child.close()
    if child.sandbox is None:
        raise ChildDied("the child did not say which walls stand")
    return child.sandbox


@cache
def _warn(missing: tuple[str, ...]) -> None:
    """Once a process: the host is the same for every video."""
    _LOG.warning("videos are decoded in a sandbox without %s, which this host does not have", " and ".join(missing))


def _spawn(stdin: IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own module, and no shell
        [sys.executable, *_COMMAND],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        env={},
        cwd=_ROOT,
    )
