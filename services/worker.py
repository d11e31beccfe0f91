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
from services import logs, metrics, origin, tracing
from services.admission import Admission
from services.answers import choice_of, finish
from services.autoscaling import QUEUED
from services.engine_thread import EngineThread
from services.messages import Ask, DecodedChunk, Event, Forecast, Medium, Progress, ServedModel, Text, Warmed
from services.origin import NOBODY, Origin
from services.prefixes import Prefixes
from services.progress import Watched
from services.recent import Recent
from services.remote import stream
from services.running import Running, Tally
from services.settings import Settings, model_name
from services.tiers import open_tiers

_LOG = logging.getLogger(__name__)


class Worker:
    """Answers questions with one engine."""

    def __init__(
        self, settings: Settings, model: str, load: Callable[[EngineConfig], Engine], decoder: DeploymentHandle
    ) -> None:
        settings = settings.of_node()
        logs.configure(settings, f"worker-{model_name(model)}")
        tracing.configure(settings, f"worker-{model_name(model)}")
        self._engine = load(settings.engine(model))
        self._engine.warm_up()
        self._name = model_name(model)
        if not self._engine.info.calibrated:
            _LOG.warning("%s is not calibrated: it runs strategy none. Run `occam calibrate %s`.", self._name, model)
        self._thread = EngineThread(self._engine)
        self._tally = Tally()
        self._admission = Admission(settings.max_queued_tokens)
        memory, tiers, break_even = open_tiers(settings)
        self._recent = Recent(break_even)

        def chunks(medium: Medium, frames: int) -> AsyncGenerator[DecodedChunk]:
            return stream(decoder, "decode", medium, frames, origin.current())

        self._wire = settings.kv_wire
        self._prefixes = Prefixes(
            self._name,
            self._engine,
            self._thread,
            memory,
            tiers,
            break_even,
            chunks,
            settings.kv_wire,
            self._admission,
        )
        metrics.WORKERS.labels(self._name).set(1)

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
            quantization=self._engine.config.quantization,
            wire=self._wire,
            pruning=choice_of(self._engine.pruning()),
            framing=info.framing,
        )

    async def warm(self, medium: Medium, salt: str, may_decode: bool, asked_by: Origin = NOBODY) -> Warmed:
        """Build or find the state of a medium with the default pruning; NotCached where it may not be built."""
        origin.adopt(asked_by)
        with self._tally.of("warm"):
            prefix = await self._prefixes.media(
                (medium,), self._engine.pruning(), "", salt, may_decode, tell=lambda _: None
            )
        self._recent.worked((medium,), prefix.stats)
        return Warmed(key=prefix.key, cache=prefix.tier)

    async def foresee(self, ask: Ask, questions: Sequence[str]) -> Forecast:
        """What `ask` would take, and the same with other questions."""
        origin.adopt(ask.origin)
        choice = ask.pruning
        pruning = self._engine.asked(self._engine.pruning(choice.strategy, **choice.options), ask.question)
        plan = await self._thread.run(
            self._engine.plan,
            [medium.shape for medium in ask.media],
            pruning,
            ask.system,
            questions,
            first=not ask.turns and not ask.history,
        )
        cached = await self._prefixes.has(ask.media, pruning, ask.system, ask.salt)
        frames = sum(len(medium.indices) for medium in ask.media)
        past = sum(len(turn.suffix_ids) + len(turn.generated_ids) + len(turn.closing_ids) for turn in ask.turns)
        return self._recent.forecast(plan, choice_of(pruning), frames, past, cached)

    async def forget(self, keys: Sequence[KVKey]) -> None:
        """Drop cached states."""
        await self._prefixes.forget(keys)

    async def running(self) -> Running:
        """What this replica is at."""
        return self._tally.running(sequences=self._thread.sequences, visual_tokens=self._admission.queued)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """By Ray's name for it: what the number of workers follows."""
        return {QUEUED: self._admission.queued}

    async def answer(self, ask: Ask) -> AsyncGenerator[Event]:
        """The answer as it is generated, and at last what it took."""
        stage = "prefix"
        origin.adopt(ask.origin)
        traced = tracing.span("answer", occam__model=self._name)
        with metrics.QUEUE_DEPTH.track_inprogress(), self._tally.of("answer"), traced as span:
            try:
                choice = ask.pruning
                pruning = self._engine.asked(self._engine.pruning(choice.strategy, **choice.options), ask.question)
                # In one turn of the engine's thread, whose tokenizer it is: others wait between any two.
                past = await self._thread.run(self._remembered, ask.history) if ask.history else ()
                turns = (*past, *ask.turns)
                known = (ask.media, pruning, ask.system, turns, ask.salt, ask.may_decode)
                building = Watched(partial(self._prefixes.conversation, *known))
                progress: Progress | None = None
                async with aclosing(building.progress()) as told:
                    async for progress in told:
                        if ask.progress:
                            yield progress
                prefix = await building.result()
                stage = "generate"
                generation = await self._thread.run(
                    self._engine.generation, prefix.state, ask.question, pruning, ask.sampling
                )
                if ask.progress and progress is not None:
                    yield Progress(stage="generate", done=0, total=ask.sampling.max_new_tokens, seconds=0.0)
                async with aclosing(self._thread.answer(generation)) as events:
                    async for event in events:
                        if isinstance(event, str):
                            yield Text(text=event)
                        else:
                            metrics.record_work(self._name, event.stats)
                            tracing.stages(event.stats)
                            metrics.record_evidence(self._name, event.evidence)
                            self._recent.worked(ask.media, prefix.stats)
                            self._recent.kept(choice_of(pruning), event.visual_tokens)
                            span.end()  # whoever has the end of an answer may not come back for more
                            yield finish(event, prefix, ask.media, pruning, turns, ask.evidence)
            except asyncio.CancelledError:
                metrics.CANCELLATIONS.labels(stage).inc()
                raise

    def _remembered(self, history: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
        """Turns that the client remembers as texts, as ids."""
        return tuple(
            self._engine.turn_of(question, answer, first=index == 0) for index, (question, answer) in enumerate(history)
        )
