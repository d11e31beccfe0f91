"""The worker deployment: one model, its caches, and the questions put to it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from ray.serve.handle import DeploymentHandle

from occam.config import EngineConfig
from occam.engine import Engine
from occam.kv.key import KVKey
from occam.types import Turn
from services import metrics
from services.answers import choice_of, finish
from services.engine_thread import EngineThread
from services.messages import Ask, Event, Medium, ServedModel, Text
from services.prefixes import Prefixes
from services.remote import stream
from services.settings import Settings, model_name
from services.tiers import open_tiers

_LOG = logging.getLogger(__name__)


class Worker:
    """Answers questions with one engine."""

    def __init__(
        self, settings: Settings, model: str, load: Callable[[EngineConfig], Engine], decoder: DeploymentHandle
    ) -> None:
        self._engine = load(settings.engine(model))
        self._engine.warm_up()
        self._name = model_name(model)
        if not self._engine.info.calibrated:
            _LOG.warning("%s is not calibrated: it runs strategy none. Run `occam calibrate %s`.", self._name, model)
        self._thread = EngineThread(self._engine)
        memory, tiers, break_even = open_tiers(settings)
        chunks = partial(stream, decoder, "decode")
        self._prefixes = Prefixes(
            self._name, self._engine, self._thread, memory, tiers, break_even, chunks, settings.kv_wire
        )

    async def describe(self) -> ServedModel:
        """What is served here."""
        info = self._engine.info
        return ServedModel(
            name=self._name,
            family=info.family,
            digest=info.digest,
            media=info.media,
            frames=info.frames,
            max_positions=info.max_positions,
            calibrated=info.calibrated,
            pruning=choice_of(self._engine.pruning()),
        )

    async def warm(self, medium: Medium) -> KVKey:
        """Build or find the state of a medium with the default pruning; its key."""
        return (await self._prefixes.media((medium,), self._engine.pruning(), system="")).key

    async def forget(self, keys: Sequence[KVKey]) -> None:
        """Drop cached states."""
        await self._prefixes.forget(keys)

    async def answer(self, ask: Ask) -> AsyncGenerator[Event]:
        """The answer as it is generated, and at last what it took."""
        stage = "prefix"
        with metrics.QUEUE_DEPTH.track_inprogress():
            try:
                choice = ask.pruning
                pruning = self._engine.asked(self._engine.pruning(choice.strategy, **choice.options), ask.question)
                turns = (*await self._remembered(ask.history), *ask.turns)
                prefix = await self._prefixes.conversation(ask.media, pruning, ask.system, turns)
                stage = "generate"
                generation = await self._thread.run(
                    self._engine.generation, prefix.state, ask.question, pruning, ask.sampling
                )
                async with aclosing(self._thread.answer(generation)) as events:
                    async for event in events:
                        if isinstance(event, str):
                            yield Text(text=event)
                        else:
                            metrics.record_work(self._name, event.stats)
                            metrics.record_evidence(self._name, event.evidence)
                            yield finish(event, prefix, ask.media, pruning, turns, ask.evidence)
            except asyncio.CancelledError:
                metrics.CANCELLATIONS.labels(stage).inc()
                raise

    async def _remembered(self, history: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
        """Turns that the client remembers as texts, as ids."""
        return tuple(
            [
                await self._thread.run(self._engine.turn_of, question, answer, first=index == 0)
                for index, (question, answer) in enumerate(history)
            ]
        )
