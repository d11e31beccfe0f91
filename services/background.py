"""Work that runs beside requests, and its end."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, suppress

_CANCEL_S = 1.0


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncGenerator[None]:
    """Have `work` run as long as what is inside."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await ended(task)


async def ended(*tasks: "asyncio.Task[None]") -> None:
    """Cancel tasks until they have ended, even if this is cancelled too.

    Again and again: libraries lose a cancellation that comes together with what they wait for.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait(running, timeout=_CANCEL_S)


def check_cancelled() -> None:
    """Raise the cancellation of this task that was lost on the way, as redis-py loses one that comes with an answer.

    To be called behind what talks to Redis and before what costs: nobody cancels a second time soon, or ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
