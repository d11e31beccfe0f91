"""An engine on a thread of its own, so that the event loop of its replica stays free."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from occam.config import Pruning
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.engine.scheduler import Scheduler
from occam.engine.sharing import TowerLoad, sharing
from occam.errors import EngineFailure
from occam.stats import StageStats
from occam.tensors import MediaTokens, PrefixState
from occam.types import Answer, FrameBatch
from services import metrics

_LOG = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

Event = str | Answer | Exception


Appended = tuple[PrefixState, MediaTokens, tuple[StageStats, StageStats]]
"""A state with a chunk behind it, what lies between the halves of `Engine.append`, and what both took."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunk:
    """Frames that wait for the tower, and the state that they go behind."""

    state: PrefixState
    frames: FrameBatch
    pruning: Pruning
    load: TowerLoad
    future: "Future[Appended]" = field(default_factory=Future)


class EngineThread:
    """Takes turns: one call (a replay, a question's tokens), one pass of the tower, one pass of all questions that run.

    So a long video holds nobody's answer up for longer than a chunk, or than a batch of the tower and its prefill where
    chunks that wait share one, and answers hold up no video. Callers that go away stop waiting, and what they waited
    for is dropped before the next turn.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scheduler = Scheduler(engine)
        self._listeners: dict[Generation, Callable[[Event], Any]] = {}
        self._work = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._chunks: deque[_Chunk] = deque()
        self._changes: deque[Callable[[], None]] = deque()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    @property
    def sequences(self) -> int:
        """Answers that are in the scheduler, as seen from any thread."""
        return len(self._scheduler)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of one call."""
        future: Future[T] = Future()
        self._put(self._calls, partial(_resolve, future, partial(function, *args, **kwargs)))
        return await asyncio.wrap_future(future)

    async def append(self, state: PrefixState, frames: FrameBatch, pruning: Pruning) -> Appended:
        """`Engine.append`, through the tower with others that wait."""
        load = self._engine.tower_load(frames, pruning)
        chunk = _Chunk(state=state, frames=frames, pruning=pruning, load=load)
        self._put(self._chunks, chunk)
        return await asyncio.wrap_future(chunk.future)

    async def answer(self, generation: Generation) -> AsyncGenerator[str | Answer]:
        """The pieces of an answer as they come, decoded together with all others that run, and at last the answer."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            # A loop that was closed has nobody waiting on it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._put(self._changes, partial(self._add, generation, tell))
        try:
            while not isinstance(event := await events.get(), Answer):
                if isinstance(event, Exception):
                    raise event
                yield event
            yield event
        finally:
            self._put(self._changes, partial(self._drop, generation))

    def _put(self, where: deque[Any], what: Any) -> None:
        with self._work:
            where.append(what)
            self._work.notify()

    def _add(self, generation: Generation, tell: Callable[[Event], Any]) -> None:
        self._listeners[generation] = tell
        self._scheduler.add(generation)

    def _drop(self, generation: Generation) -> None:
        if self._listeners.pop(generation, None):
            self._scheduler.drop(generation)

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._calls or self._chunks or self._changes or self._scheduler.busy)
            self._take_turn()

    def _take_turn(self) -> None:
        """In a function of its own, so that an idle thread holds nothing of what it did last."""
        try:
            with self._work:
                # In place: whoever puts something in may have the deque in hand already.
                changes = list(self._changes)
                self._changes.clear()
                call = self._calls.popleft() if self._calls else None
                chunks = self._next_chunks()
            for change in changes:
                change()
            if call:
                call()
            if chunks:
                self._append(chunks)
            if self._scheduler.busy:
                self._advance()
        except BaseException as error:  # noqa: BLE001 - a dead thread would leave everybody waiting
            _LOG.exception("The engine thread failed; all answers that ran are ended, and it begins anew.")
            self._begin_anew(EngineFailure(f"The engine failed: {type(error).__name__}."))

    def _next_chunks(self) -> list[_Chunk]:
        """Those that go through the tower together, out of the queue; none for whom nobody waits any more."""
        waiting = [chunk for chunk in self._chunks if not chunk.future.cancelled()]
        together = [waiting[place] for place in sharing([chunk.load for chunk in waiting])] if waiting else []
        self._chunks.clear()
        self._chunks.extend(chunk for chunk in waiting if chunk not in together)
        return [chunk for chunk in together if chunk.future.set_running_or_notify_cancel()]

    def _append(self, chunks: Sequence[_Chunk]) -> None:
        """Where a pass of several fails, each is tried alone: one of them must not end the others."""
        if not self._append_together(chunks):
            for chunk in chunks:
                self._append_together([chunk])

    def _append_together(self, chunks: Sequence[_Chunk]) -> bool:
        """False where a pass of several failed, whose tensors are let go before anything is tried again."""
        try:
            encoded = self._engine.encode_together([(chunk.frames, chunk.pruning) for chunk in chunks])
            metrics.BATCH_FRAMES.observe(sum(len(chunk.frames) for chunk in chunks))
        except BaseException as error:  # noqa: BLE001 - goes to the callers
            if len(chunks) > 1:
                return False
            chunks[0].future.set_exception(error)
            return True
        for chunk, (tokens, encoding) in zip(chunks, encoded, strict=True):
            _settle(chunk.future, partial(self._extended, chunk, tokens, encoding))
        return True

    def _extended(self, chunk: _Chunk, tokens: MediaTokens, encoding: StageStats) -> Appended:
        grown, prefill = self._engine.extend(chunk.state, tokens, begins=chunk.frames.offset == 0)
        return grown, tokens, (encoding, prefill)

    def _begin_anew(self, failure: EngineFailure) -> None:
        """End every answer: nobody may wait for a pass that will not come."""
        listeners, self._listeners = self._listeners, {}
        self._scheduler = Scheduler(self._engine)
        for tell in listeners.values():
            tell(failure)

    def _advance(self) -> None:
        """One pass, and what came of it to those who wait for it."""
        passed = self._scheduler.advance()
        metrics.BATCH_SEQUENCES.observe(len(passed))
        for progress in passed:
            generation = progress.generation
            tell = self._listeners[generation]
            for piece in generation.pieces():
                tell(piece)
            if end := progress.error or generation.answer:
                del self._listeners[generation]
                tell(end)


def _resolve(future: "Future[T]", call: Callable[[], T]) -> None:
    """Run a call for whom it was made, if that one still waits."""
    if future.set_running_or_notify_cancel():
        _settle(future, call)


def _settle(future: "Future[T]", call: Callable[[], T]) -> None:
    """Run a call for whom waits for it."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - goes to the caller
        future.set_exception(error)
