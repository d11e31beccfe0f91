"""Calls from one deployment to another: Ray's exceptions become ours here, and nowhere else."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from occam.errors import EngineFailure, OccamError, Overloaded
from services.errors import ReplicaLost


async def call(handle: DeploymentHandle, method: str, *args: object) -> Any:
    """Call a `method` that may run twice on one replica, and if its process dies, once more on another."""
    try:
        return await _call(handle, method, *args)
    except ReplicaLost:
        return await _call(handle, method, *args)


async def broadcast(handle: DeploymentHandle, method: str, *args: object) -> None:
    """Call `method` on every replica."""
    with _translated():
        await handle.broadcast(method, *args).results_async()


async def stream(handle: DeploymentHandle, method: str, *args: object) -> AsyncGenerator[Any]:
    """Iterate over what `method` of one replica yields; leaving the iteration early cancels it over there."""
    response = handle.options(method_name=method, stream=True).remote(*args)
    with _translated():
        try:
            async for item in response:
                yield item
        except (GeneratorExit, asyncio.CancelledError):
            with suppress(BackPressureError):  # refused meanwhile: there is nothing to cancel
                response.cancel()
            raise


async def _call(handle: DeploymentHandle, method: str, *args: object) -> Any:
    with _translated():
        return await handle.options(method_name=method).remote(*args)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise Overloaded("All workers are busy and their queue is full. Try again shortly.") from error
    except RayActorError as error:
        raise ReplicaLost("The process that worked on the request died.") from error
    except RayTaskError as error:
        if isinstance(error.cause, OccamError):
            raise error.cause from None
        raise EngineFailure("The request failed inside the service.") from error
