"""How much visual work one worker takes on: admission by cost, not by number."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services import metrics
from services.errors import WorkerFull

_WINDOW_S = 60.0
_RETRY_S = (1.0, 60.0)


class Ticket:
    """Visual tokens that were admitted and not yet encoded; `done` counts them off as they are."""

    def __init__(self, admission: "Admission", tokens: int) -> None:
        self._admission = admission
        self.left = tokens

    def done(self, tokens: int) -> None:
        """So many of them went through the tower."""
        tokens = min(tokens, self.left)
        self.left -= tokens
        self._admission.encoded(tokens)


class Admission:
    """Bounds the visual tokens that wait for the tower, and knows how quickly it works them off.

    What is cached has no cost, so follow-ups are admitted whatever is being encoded.
    """

    def __init__(self, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_tokens = max_tokens
        self._clock = clock
        self._queued = 0
        self._since = clock()
        self._worked = (0.0, 0.0)
        """Tokens, and the seconds in which any were queued; halved now and then, so that old times fade."""

    @property
    def queued(self) -> int:
        """Visual tokens that were admitted and are neither encoded nor given up."""
        return self._queued

    @contextmanager
    def admit(self, tokens: int) -> Iterator[Ticket]:
        """Take on so many tokens until the context ends; WorkerFull where they are too many.

        What alone is more than the bound is admitted while nothing else is queued: it would never be otherwise.
        """
        if self._queued and self._queued + tokens > self._max_tokens:
            raise WorkerFull(
                f"The worker has {self._queued} visual tokens to encode, and these {tokens} would make it more than "
                f"its limit of {self._max_tokens}. Try again later.",
                retry_after_s=self._retry_after_s(),
            )
        self._add(tokens)
        ticket = Ticket(self, tokens)
        try:
            yield ticket
        finally:
            self._add(-ticket.left)

    def encoded(self, tokens: int) -> None:
        """For tickets: so many of the queued tokens are done."""
        self._add(-tokens)
        done, seconds = self._worked
        self._worked = done + tokens, seconds

    def _add(self, tokens: int) -> None:
        now = self._clock()
        if self._queued:
            done, seconds = self._worked
            seconds += now - self._since
            half = 0.5 if seconds > _WINDOW_S else 1.0
            self._worked = done * half, seconds * half
        self._since = now
        self._queued += tokens
        metrics.QUEUED_VISUAL_TOKENS.inc(tokens)

    def _retry_after_s(self) -> float:
        """Seconds in which what is queued will be worked off at the pace of late; the least where nothing was yet."""
        done, seconds = self._worked
        expected = self._queued * seconds / done if done else 0.0
        return float(math.ceil(min(max(expected, _RETRY_S[0]), _RETRY_S[1])))
