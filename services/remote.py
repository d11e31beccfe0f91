"""Calls from one deployment to another: Ray's exceptions become ours here, and nowhere else."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from occam.errors import EngineFailure, OccamError, Overloaded
from services.errors import ReplicaLost

T = TypeVar("T")


async def call(handle: DeploymentHandle, method: str, *args: object, affinity: str = "") -> Any:
    """Call a `method` that may run twice on one replica, and if its process dies, once more on another.

    affinity: which replica is meant (`services.router`); any where it is empty
    """
    try:
        return await _call(handle, method, *args, affinity=affinity)
    except ReplicaLost:
        return await _call(handle, method, *args, affinity=affinity)


async def together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """What all of them give; where one fails the others are cancelled, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def broadcast(handle: DeploymentHandle, method: str, *args: object) -> None:
    """Call `method` on every replica."""
    with _translated():
        await handle.broadcast(method, *args).results_async()


async def stream(handle: DeploymentHandle, method: str, *args: object, affinity: str = "") -> AsyncGenerator[Any]:
    """Iterate over what `method` of one replica yields; leaving the iteration early cancels it over there."""
    response = handle.options(method_name=method, stream=True, session_id=affinity).remote(*args)
    with _translated(), _cancelling(response):
        async for item in response:
            yield item


async def _call(handle: DeploymentHandle, method: str, *args: object, affinity: str) -> Any:
    response = handle.options(method_name=method, session_id=affinity).remote(*args)
    with _translated(), _cancelling(response):
        return await response


@contextmanager
def _cancelling(response: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> Iterator[None]:
    """Cancel the call over there where nobody waits for it any more over here: Ray leaves it running."""
    try:
        yield
    except (GeneratorExit, asyncio.CancelledError):
        with suppress(BackPressureError):  # refused meanwhile: there is nothing to cancel
            response.cancel()
        raise


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
