"""Questions that somebody waits for go first, and no more of them are taken than can be in hand."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from occam.errors import Overloaded

_RETRY_S = (1.0, 60.0)


class Courtesy:
    """Holds background questions back while others are in flight, but no longer than `patience_s` each.

    So jobs keep to the gaps between requests, and under a steady load still go on, one question in a while. Of the
    others it takes `most` at a time: more would wait for their media, where nothing else says how long that may take.
    """

    def __init__(self, patience_s: float, most: int) -> None:
        self._patience_s = patience_s
        self._most = most
        self._in_flight = 0
        self._last_s = 0.0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def answering(self, background: bool) -> Iterator[None]:
        """Count a question while it is answered, unless nobody waits for it; Overloaded where there are `most`."""
        if background:
            yield
            return
        if self._in_flight >= self._most:
            raise Overloaded(
                f"The service has {self._in_flight} questions in hand, its limit. Try again later.",
                retry_after_s=float(math.ceil(min(max(self._last_s, _RETRY_S[0]), _RETRY_S[1]))),
            )
        began = time.monotonic()
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._last_s = time.monotonic() - began
            if not self._in_flight:
                self._idle.set()

    async def turn(self) -> None:
        """Wait until a background question may begin."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._idle.wait()
