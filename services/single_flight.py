"""One run per key at a time, shared by everybody who asks for it meanwhile."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services import origin

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Runs that are shared by key; a run is cancelled when the last of those who wait for it has gone."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def run(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The result of the run under way for `key`, or of `start()`; and whether it was started here."""
        flight = self._flights.get(key)
        own = flight is None
        if flight is None:
            # A context of its own: the run belongs to no single request and must not be cancelled with one. In logs
            # and traces it is under the one that came first.
            context = Context()
            context.run(origin.adopt, origin.current())
            flight = _Flight(asyncio.create_task(start(), context=context))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), own
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()

    def _land(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
