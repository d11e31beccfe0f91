"""Questions that somebody waits for go first."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Courtesy:
    """Holds background questions back while others are in flight, but no longer than `patience_s` each.

    So jobs keep to the gaps between requests, and under a steady load still go on, one question in a while.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def answering(self, background: bool) -> Iterator[None]:
        """Count a question while it is answered, unless nobody waits for it."""
        if background:
            yield
            return
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def turn(self) -> None:
        """Wait until a background question may begin."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._idle.wait()
