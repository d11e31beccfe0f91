"""The node's cache tier: one file per state, which the workers of a node and those that come after them share.

A file holds the codec's manifest in two lines and its parts behind it. It is read into the memory that becomes the
tensors, and not mapped: a mapped file that somebody cuts short ends the process that looks at it.
"""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from occam.errors import CorruptState
from occam.kv.break_even import BreakEven, Fetch
from occam.kv.codec import Manifest, assembled, describe, encode
from occam.kv.key import KVKey
from occam.kv.layout import Reader
from occam.tensors import PrefixState
from services.node_folder import NodeFolder

T = TypeVar("T")

_MAX_LINE_BYTES = 1 << 20
# One may read while another writes; and a disk that hangs holds these, not the threads that decode Redis' bytes.
_THREADS = 2


class NodeStore:
    """A `KVStore` in a folder of this node; its work is done in threads of its own, its answers are for one event loop.

    folder: of this user alone; made if only its parent is there
    max_bytes: of all its files together; the least recently used leave first
    ttl_s: seconds an entry lives after it was last written; clock: seconds since the epoch
    break_even: decides what is worth reading, for a disk may be slow
    """

    name = "node"

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        ttl_s: float = 3600.0,
        break_even: BreakEven | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = NodeFolder(folder, max_bytes, ttl_s, clock)
        self._max_bytes = max_bytes
        self._break_even = break_even or BreakEven()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="node-store")

    async def get(self, key: KVKey) -> PrefixState | None:
        """The state of `key` on the CPU, every bit checked, or None.

        Raises CorruptState, and FetchDeclined where computing the state is quicker.
        """
        with self._break_even.asking():
            manifest = await self._begin(partial(self._folder.read, key.digest, _manifest))
        if manifest is None:
            return None
        with self._break_even.fetching(manifest.offer) as fetch:
            state = await self._begin(partial(self._folder.read, key.digest, partial(_state, fetch)))
            if state is not None:
                fetch.complete()
            return state

    async def put(self, key: KVKey, state: PrefixState) -> bool:
        """Keep `state`; False where there is no room for it beside what others are writing."""
        if describe(state).nbytes > self._max_bytes:
            return False
        return await _to_its_end(self._begin(partial(self._put, key, state)))

    async def has(self, key: KVKey) -> bool:
        """Whether there is a file of `key`."""
        return bool(await self._begin(partial(self._folder.read, key.digest, lambda _: True)))

    async def delete(self, key: KVKey) -> None:
        """Forget `key`."""
        await self._begin(partial(self._folder.remove, key.digest))

    async def aclose(self) -> None:
        """Take no more work; what has begun or waits is done, but not waited for: the disk may hang."""
        self._threads.shutdown(wait=False)

    def _begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _put(self, key: KVKey, state: PrefixState) -> bool:
        manifest, parts = encode(state)
        return self._folder.write(key.digest, [manifest.to_bytes() + b"\n", *parts])


def _manifest(file: BufferedReader) -> Manifest:
    """The manifest of the state in `file`, which then stands at the first part; raises CorruptState.

    What it promises is what the file has, so nothing is allocated that is not there to be read.
    """
    lines = file.readline(_MAX_LINE_BYTES) + file.readline(_MAX_LINE_BYTES)
    manifest = Manifest.from_bytes(lines.removesuffix(b"\n"))
    size = os.fstat(file.fileno()).st_size
    if size != len(lines) + manifest.nbytes:
        raise CorruptState(f"The file has {size} bytes; by its manifest they are {len(lines) + manifest.nbytes}.")
    return manifest


def _state(fetch: Fetch, file: BufferedReader) -> PrefixState:
    """The state in `file`, every bit checked; raises CorruptState, and FetchGivenUp where it is too slow."""
    manifest = _manifest(file)
    reader = Reader(manifest)
    for index, place in enumerate(reader.places):
        fetch.patience_s(len(place))
        if file.readinto(place) != len(place):
            raise CorruptState(f"The file ends within part {index} of {len(reader.places)}.")
        reader.check(index)
        fetch.arrived(len(place))
    return assembled(manifest, reader.tensors())


async def _to_its_end(work: asyncio.Future[T]) -> T:
    """What `work` gives. Whoever cancels it waits for it: a state that is forgotten next must not come back."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:  # as often as the state is forgotten
            cancelled = True
    if cancelled:
        work.exception()  # is looked at, or asyncio logs it as one that nobody saw
        raise asyncio.CancelledError
    return work.result()
