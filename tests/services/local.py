"""Deployments in this process: the handles' interface over plain objects, pickling all that crosses."""

import pickle
from collections.abc import AsyncIterator, Generator
from typing import Any


def crossed(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class LocalHandle:
    """What `services.remote` uses of a `DeploymentHandle`, over an object of this process."""

    def __init__(self, target: Any, method: str = "", streams: bool = False) -> None:
        self.target = target
        self.method = method
        self.streams = streams

    def options(self, method_name: str, stream: bool = False, session_id: str = "") -> "LocalHandle":
        return LocalHandle(self.target, method_name, stream)

    def remote(self, *args: Any) -> Any:
        called = getattr(self.target, self.method)(*crossed(args))
        return LocalStream(called) if self.streams else LocalCall(called)

    def broadcast(self, method: str, *args: Any) -> "LocalBroadcast":
        return LocalBroadcast(getattr(self.target, method)(*crossed(args)))


class LocalBroadcast:
    """As Ray's, it cannot be awaited itself."""

    def __init__(self, called: Any) -> None:
        self.called = called

    async def results_async(self) -> list[Any]:
        return [crossed(await self.called)]


class LocalCall:
    def __init__(self, called: Any) -> None:
        self.called = called

    def __await__(self) -> Generator[Any, None, Any]:
        return _result(self.called).__await__()

    def cancel(self) -> None:
        pass


class LocalStream:
    def __init__(self, items: AsyncIterator[Any]) -> None:
        self.items = items

    def __aiter__(self) -> "LocalStream":
        return self

    async def __anext__(self) -> Any:
        return crossed(await anext(self.items))

    def cancel(self) -> None:
        pass


async def _result(called: Any) -> Any:
    return crossed(await called)
