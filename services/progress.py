"""How far the work on an answer is: counted while its state is built, and told to everybody who waits for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from services.messages import Progress, ProgressStage

T = TypeVar("T")

Tell = Callable[[Progress], None]


class Meter:
    """Adds up what each stage has done, in frames of `total`, and tells it."""

    def __init__(self, total: int, tell: Tell) -> None:
        self._total = total
        self._tell = tell
        self._sums: dict[ProgressStage, tuple[int, float]] = {}

    def add(self, stage: ProgressStage, frames: int, seconds: float) -> None:
        """So many more frames are through `stage`, and took it so long."""
        done, took = self._sums.get(stage, (0, 0.0))
        self._sums[stage] = done, took = done + frames, took + seconds
        self._tell(Progress(stage=stage, done=done, total=self._total, seconds=took))


class Audience:
    """Who wants to hear about the work for a key. All of them hear the same, for the work is done once."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Tell]] = {}

    @contextmanager
    def joined(self, key: str, tell: Tell) -> Iterator[None]:
        """`tell` hears what is told about `key` meanwhile."""
        self._listeners.setdefault(key, []).append(tell)
        try:
            yield
        finally:
            self._listeners[key].remove(tell)
            if not self._listeners[key]:
                del self._listeners[key]

    def tell(self, key: str, progress: Progress) -> None:
        """Pass it on to those who listen now."""
        for tell in self._listeners.get(key, ()):
            tell(progress)


class Watched(Generic[T]):
    """Work under way in a task of its own, whose progress can be looked at until its result is there."""

    def __init__(self, work: Callable[[Tell], Coroutine[Any, Any, T]]) -> None:
        self._news = asyncio.Event()
        # The last of each stage alone: who reads slowly misses steps in between, and nothing piles up.
        self._last: dict[ProgressStage, Progress] = {}
        self._task = asyncio.create_task(work(self._tell))
        self._task.add_done_callback(self._ended)

    async def progress(self) -> AsyncGenerator[Progress]:
        """What the work tells, until it has ended; it is ended with the iteration."""
        try:
            while not self._task.done() or self._last:
                await self._news.wait()
                self._news.clear()
                told, self._last = self._last, {}
                for progress in told.values():
                    yield progress
        finally:
            self._task.cancel()

    async def result(self) -> T:
        """The result, or the exception that ended the work."""
        return await self._task

    def _tell(self, progress: Progress) -> None:
        self._last[progress.stage] = progress
        self._news.set()

    def _ended(self, task: "asyncio.Task[T]") -> None:
        self._news.set()
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio has no complaint where nobody waits any more
