"""What a replica is at right now, counted, so that it can be asked whether work that nobody waits for has ended."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Running:
    """One replica's process, and what it has begun and not ended, by kind.

    A worker counts `answer` and `warm` (calls), `sequences` (in the scheduler) and `visual_tokens` (admitted, not yet
    encoded); a decoder `describe` and `decode` (calls).
    """

    pid: int
    counts: Mapping[str, int]

    @property
    def idle(self) -> bool:
        """Whether there is nothing."""
        return not any(self.counts.values())


class Tally:
    """Counts what is under way, by kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """One more until the context ends."""
        self._counts[kind] += 1
        try:
            yield
        finally:
            self._counts[kind] -= 1

    def running(self, **others: int) -> Running:
        """This process with these counts, and others that are kept elsewhere."""
        return Running(pid=os.getpid(), counts={**self._counts, **others})
