"""An engine on a thread of its own, so that the event loop of its replica stays free."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class EngineThread:
    """Runs calls one after the other on one thread; callers that go away stop waiting, and stop queueing."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of one call."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(function, *args, **kwargs))

    async def iterate(self, iterator: Iterator[T]) -> AsyncGenerator[T]:
        """The items of an iterator, each computed in a turn of its own: concurrent requests take turns by token."""
        try:
            while (item := await self.run(next, iterator, None)) is not None:
                yield item
        finally:
            # Behind a step that may still be running: an iterator cannot be closed while it runs.
            self._executor.submit(iterator.close if hasattr(iterator, "close") else list)
