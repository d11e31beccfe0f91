"""The worker deployment: one model, its caches, and the questions put to it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from ray.serve.handle import DeploymentHandle

from occam.config import EngineConfig, OccamToken, Pruning
from occam.engine import Engine
from occam.kv.key import KVKey
from occam.stats import Usage
from occam.types import Answer, Turn
from services import metrics
from services.engine_thread import EngineThread
from services.messages import Ask, Event, Finished, PruningChoice, ServedModel, Text, Video
from services.prefixes import Prefix, Prefixes
from services.remote import stream
from services.settings import Settings
from services.tiers import open_tiers


class Worker:
    """Answers questions with one engine."""

    def __init__(
        self, settings: Settings, model: str, load: Callable[[EngineConfig], Engine], decoder: DeploymentHandle
    ) -> None:
        self._engine = load(settings.engine(model))
        self._engine.warm_up()
        self._name = self._engine.info.name
        self._thread = EngineThread()
        memory, tiers = open_tiers(settings)
        self._prefixes = Prefixes(self._engine, self._thread, memory, tiers, partial(stream, decoder, "decode"))

    async def describe(self) -> ServedModel:
        """What is served here."""
        info = self._engine.info
        return ServedModel(
            name=info.name,
            family=info.family,
            digest=info.digest,
            frames=info.frames,
            max_positions=info.max_positions,
            calibrated=info.calibrated,
            pruning=_choice(self._engine.pruning()),
        )

    async def warm(self, video: Video) -> KVKey:
        """Build or find the state of a video with the default pruning; its key."""
        return (await self._prefixes.video(video, self._engine.pruning(), system="")).key

    async def forget(self, keys: Sequence[KVKey]) -> None:
        """Drop cached states."""
        await self._prefixes.forget(keys)

    async def answer(self, ask: Ask) -> AsyncGenerator[Event]:
        """The answer as it is generated, and at last what it took."""
        stage = "prefix"
        with metrics.QUEUE_DEPTH.track_inprogress():
            try:
                choice = ask.pruning
                pruning = self._engine.pruning(choice.strategy, choice.lambda1, choice.lambda2)
                turns = (*await self._remembered(ask.history), *ask.turns)
                prefix = await self._prefixes.conversation(ask.video, pruning, ask.system, turns)
                stage = "generate"
                events = _timed(self._engine.stream(prefix.state, ask.question, pruning, ask.sampling))
                async with aclosing(self._thread.iterate(events)) as steps:
                    async for event, busy_s in steps:
                        if isinstance(event, str):
                            yield Text(text=event)
                        else:
                            yield self._finished(ask, turns, pruning, prefix, event, busy_s)
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

    def _finished(
        self, ask: Ask, turns: tuple[Turn, ...], pruning: Pruning, prefix: Prefix, answer: Answer, busy_s: float
    ) -> Finished:
        """Enter the answer's work, and put together what it took.

        busy_s: seconds that the engine worked on the answer itself, the turns of other requests in between left out
        """
        metrics.record_work(self._name, answer.stats)
        metrics.record_evidence(self._name, answer.evidence)
        built = sum(stage.seconds for stage in prefix.stats if stage.stage in ("encode", "prefill_lower"))
        usage = Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            visual_tokens=answer.visual_tokens,
            cached_tokens=prefix.cached_tokens,
            video_seconds=ask.video.seconds,
            gpu_seconds=built + busy_s,
        )
        evidence = answer.evidence if ask.evidence else replace(answer.evidence, frames=())
        return Finished(
            answer=replace(answer, evidence=evidence),
            turns=(*turns, answer.turn),
            pruning=_choice(pruning),
            key=prefix.key,
            cache=prefix.tier,
            usage=usage,
            stats=(*prefix.stats, *answer.stats),
        )


def _choice(pruning: Pruning) -> PruningChoice:
    """A resolved strategy as the choice that leads to it."""
    if isinstance(pruning, OccamToken):
        return PruningChoice(strategy=pruning.name, lambda1=pruning.lambda1, lambda2=pruning.lambda2)
    return PruningChoice(strategy=pruning.name)


def _timed(events: Iterator[str | Answer]) -> Iterator[tuple[str | Answer, float]]:
    """Events with the seconds that computing them has taken so far."""
    busy_s = 0.0
    started = time.monotonic()
    for event in events:
        busy_s += time.monotonic() - started
        yield event, busy_s
        started = time.monotonic()
