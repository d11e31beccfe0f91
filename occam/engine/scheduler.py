"""Who goes through the model next: questions that wait join those that run, between any two passes."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from occam.engine.engine import Engine
from occam.engine.generation import Generation

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A generation that went through a pass: it has something new, or it ended with an error."""

    generation: Generation
    error: Exception | None = None


class Scheduler:
    """Continuous batching over one engine, whose configuration bounds it; one thread at a time runs it.

    First come, first served: `batch_sequences` run at most, and one prefill packs `batch_tokens` of states and
    questions at most, or a single question that is longer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._started_last = False

    @property
    def busy(self) -> bool:
        """Whether anybody runs or waits."""
        return len(self) > 0

    def __len__(self) -> int:
        """Questions that run or wait."""
        return len(self._waiting) + len(self._running)

    def add(self, generation: Generation) -> None:
        """Let a question that has not been started wait for its turn."""
        self._waiting.append(generation)

    def drop(self, generation: Generation) -> None:
        """Forget a question nobody waits for any more; its place is free for the next pass."""
        if generation in self._waiting:
            self._waiting.remove(generation)
        if generation in self._running:
            self._running.remove(generation)
            generation.forget()

    def advance(self) -> list[Progress]:
        """One pass: the first tokens of as many as may join and one more of all that run take turns."""
        if self._running and self._started_last:
            self._started_last = False
            return self._step()
        self._started_last = True
        return self._start(self._joining()) or self._step()

    def _joining(self) -> list[Generation]:
        """Those that leave the queue now."""
        config = self._engine.config
        joining: list[Generation] = []
        tokens = 0
        while self._waiting and len(self._running) + len(joining) < config.batch_sequences:
            tokens += self._waiting[0].tokens
            if joining and tokens > config.batch_tokens:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _start(self, joining: Sequence[Generation]) -> list[Progress]:
        """Where a pass of several fails, each is tried alone: one of them must not end the others."""
        if not joining:
            return []
        failed = self._attempt(joining)
        if failed is None:
            return self._sorted_out(joining)
        if len(joining) == 1:
            return [Progress(generation=joining[0], error=failed)]
        _LOG.warning("A prefill of %d questions failed, each is tried alone: %r", len(joining), failed)
        failed.__traceback__ = None  # which holds the tensors of the pass, for which there was no room
        return [progress for each in joining for progress in self._start([each])]

    def _attempt(self, joining: Sequence[Generation]) -> Exception | None:
        try:
            self._engine.start(joining)
        except Exception as error:  # noqa: BLE001 - whatever it is, it may be one question's
            return error
        return None

    def _step(self) -> list[Progress]:
        """A step that fails half-way has spoilt what all in it remember."""
        running, self._running = self._running, []
        try:
            self._engine.step(running)
        except Exception as error:  # noqa: BLE001 - goes to everybody who waits
            for each in running:
                each.fail(error)
            return [Progress(generation=each, error=error) for each in running]
        return self._sorted_out(running)

    def _sorted_out(self, generations: Sequence[Generation]) -> list[Progress]:
        """Those that have neither an answer nor an error yet go on."""
        self._running += [each for each in generations if each.answer is None and each.error is None]
        return [Progress(generation=each, error=each.error) for each in generations]
