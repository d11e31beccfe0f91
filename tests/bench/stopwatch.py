"""Seconds inside functions of a program that knows nothing of it."""

import inspect
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


class Stopwatch:
    """Sums seconds by name, and keeps the calls it was told to; a GPU is waited for at both ends of every region.

    What a GPU does is thereby timed with its launches, which else overlap with other work: never too little.
    """

    def __init__(self, device: str) -> None:
        self.waits = device.startswith("cuda")
        self.seconds: Counter[str] = Counter()
        self.calls: defaultdict[str, list[tuple[tuple[Any, ...], Any]]] = defaultdict(list)

    def now(self) -> float:
        """Seconds on a monotonic clock, behind all that was given to the device."""
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    @contextmanager
    def inside(
        self, owner: Any, attribute: str, name: str | Callable[..., str], keep_calls: bool = False
    ) -> Iterator[None]:
        """Time every call of `owner.attribute` while the block lasts.

        name: of the region, or that by the call's arguments; keep_calls: arguments and results into `calls`
        """
        inner = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.region(name if isinstance(name, str) else name(*args, **kwargs)):
                result = inner(*args, **kwargs)
            if keep_calls:
                self.calls[attribute].append((args, result))
            return result

        static = isinstance(inspect.getattr_static(owner, attribute), staticmethod)
        with mock.patch.object(owner, attribute, staticmethod(timed) if static else timed):
            yield
