"""Questions that somebody waits for go first, and no more of them are taken than can be in hand."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from occam.errors import Overloaded

_RETRY_S = (1.0, 60.0)
_FINDING = 0.75
_OF_ONE_TENANT = 0.5


class Courtesy:
    """Holds background questions back while others are in flight, but no longer than `patience_s` each.

    So jobs keep to the gaps between requests, and under a steady load still go on, one question in a while. Of the
    others it takes `most` at a time: more would wait for their media, where nothing else says how long that may take.
    Three quarters of these may be waiting for media that an address names, half of those for one of several tenants:
    servers that are slow must not keep out who asks about what is here, nor one tenant's all others.
    """

    def __init__(self, patience_s: float, most: int, several: bool) -> None:
        """several: whether there are tenants at all, or everybody is one."""
        self._patience_s = patience_s
        self._most = most
        self._most_finding = max(1, int(_FINDING * most))
        self._most_of_one = max(1, int(_OF_ONE_TENANT * self._most_finding)) if several else self._most_finding
        self._finding: Counter[str] = Counter()
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
            raise self._overloaded(f"The service has {self._in_flight} questions in hand, its limit. Try again later.")
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

    @contextmanager
    def finding(self, tenant: str) -> Iterator[None]:
        """Count a question while its media are found; Overloaded where as many as may be wait for theirs."""
        own, everybody = self._finding[tenant], self._finding.total()
        if own >= self._most_of_one or everybody >= self._most_finding:
            raise self._overloaded(
                f"{everybody} questions wait for their media, {own} of them with this key; the limits are "
                f"{self._most_finding} and {self._most_of_one}. Try again later."
            )
        self._finding[tenant] += 1
        try:
            yield
        finally:
            self._finding[tenant] -= 1
            self._finding += Counter()  # without those that are at zero

    def _overloaded(self, message: str) -> Overloaded:
        retry_after_s = float(math.ceil(min(max(self._last_s, _RETRY_S[0]), _RETRY_S[1])))
        return Overloaded(message, retry_after_s=retry_after_s)

    async def turn(self) -> None:
        """Wait until a background question may begin."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await self._idle.wait()
