"""From a question to an answer: session, video, worker, ledger. Both HTTP dialects come through here."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from occam.errors import EngineFailure, InvalidInput, UnknownModel
from occam.stats import StageStats
from services import metrics
from services.errors import DeadlineExceeded, NotFound, ReplicaLost
from services.messages import Ask, Described, Event, Finished, FrameChoice, Question, Reply, ServedModel, Text
from services.records import Session
from services.remote import call, stream
from services.settings import Settings
from services.state import State, new_id


class Conversations:
    """Answers questions with the workers, and remembers sessions."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        decoder: DeploymentHandle,
        workers: Mapping[str, DeploymentHandle],
    ) -> None:
        self._settings = settings
        self._state = state
        self._decoder = decoder
        self._workers = workers
        self._served: dict[str, ServedModel] = {}

    async def served(self) -> dict[str, ServedModel]:
        """Every model by the name that requests use; waits for workers that are still loading."""
        for name, worker in self._workers.items():
            if name not in self._served:
                self._served[name] = await call(worker, "describe")
        return self._served

    async def describe(self, model: str, url: str, choice: FrameChoice, digest: str | None = None) -> Described:
        """A video's facts and the frames that `model` takes of it."""
        served = await self.served()
        described: Described = await call(self._decoder, "describe", url, choice, served[model].frames, digest)
        return described

    def model(self, name: str | None) -> str:
        """The served model of that name, the first one for None; UnknownModel where there is none."""
        name = name or next(iter(self._workers))
        if name not in self._workers:
            raise UnknownModel(f"There is no model {name!r}; there are: {', '.join(self._workers)}.", "model")
        return name

    async def answer(self, question: Question) -> AsyncGenerator[Text | Reply]:
        """The answer's pieces, then the reply; the session is kept before the reply is given out."""
        started = time.monotonic()
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_s
        ttft_s: float | None = None
        async with AsyncExitStack() as stack:
            async with self._deadline(deadline):
                session, stats = await self._open(question, stack)
            events = await stack.enter_async_context(aclosing(self._events(question, session)))
            while True:
                async with self._deadline(deadline):
                    event = await anext(events)
                ttft_s = time.monotonic() - started if ttft_s is None else ttft_s
                if isinstance(event, Finished):
                    break
                yield event
            session = replace(session, turns=event.turns, pruning=event.pruning)
            async with self._deadline(deadline):
                await self._keep(session, event)
            metrics.record_answer(session.model, event.pruning.strategy or "", event.usage)
            metrics.TTFT_SECONDS.labels(session.model, event.cache).observe(ttft_s)
        total_s = time.monotonic() - started
        yield Reply(
            finished=event,
            session_id=session.id,
            model=session.model,
            stats=(*stats, *event.stats),
            ttft_s=ttft_s,
            total_s=total_s,
        )

    @asynccontextmanager
    async def _deadline(self, when: float) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout_at(when):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"The request took more than {self._settings.deadline_s:g} s.") from error

    async def _open(self, question: Question, stack: AsyncExitStack) -> tuple[Session, tuple[StageStats, ...]]:
        """The session that the question goes on with, held until `stack` closes, or a new one."""
        if question.session_id is not None:
            session = await stack.enter_async_context(self._state.turn_of(question.session_id))
            _check_same(question, session)
            if session.video_id is not None:
                await self._state.video(session.video_id)
            return session, ()
        model = self.model(question.model)
        described = await self._video(model, question)
        session = Session(
            id=new_id("session"),
            model=model,
            video_id=question.video_id,
            video=described.video,
            pruning=question.pruning,
            system=question.system,
            turns=(),
        )
        return session, described.stats

    async def _video(self, model: str, question: Question) -> Described:
        if question.video_id is None:
            if question.url is None:
                raise InvalidInput("The conversation has no video. Give a video_url part or a session_id.", "messages")
            return await self.describe(model, question.url, question.frames)
        record = await self._state.video(question.video_id)
        if question.frames == FrameChoice() and model == self.model(None):
            return Described(video=record.video, stats=())
        return await self.describe(model, record.video.url, question.frames, record.video.digest)

    async def _events(self, question: Question, session: Session) -> AsyncGenerator[Event]:
        """The worker's events; if its process dies before anything went out, another one answers instead."""
        worker = self._workers[session.model]
        ask = Ask(
            video=session.video,
            pruning=session.pruning,
            system=session.system,
            turns=session.turns,
            history=() if session.turns else question.history,
            question=question.text,
            sampling=question.sampling,
            evidence=question.evidence,
        )
        given_out = False
        try:
            async with aclosing(stream(worker, "answer", ask)) as events:
                async for event in events:
                    given_out = question.streamed
                    yield event
            return
        except ReplicaLost:
            if given_out:
                raise
        async with aclosing(stream(worker, "answer", ask)) as events:
            async for event in events:
                yield event

    async def _keep(self, session: Session, finished: Finished) -> None:
        await self._state.save_session(session)
        if session.video_id is not None:
            await self._state.note_key(session.video_id, finished.key)


async def last(pieces: AsyncGenerator[Text | Reply]) -> Reply:
    """The reply, without the pieces before it."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Reply):
                return piece
    raise EngineFailure("The answer ended without its end.")


def _check_same(question: Question, session: Session) -> None:
    """A session stays with what it was begun with: what a follow-up says of it again must agree."""
    if question.video_id not in (None, session.video_id):
        raise NotFound("There is no session with this id for this video.", "session_id")
    asked: dict[str, tuple[Any, Any]] = {
        "model": (question.model, session.model),
        "url": (question.url, session.video.url),
        "system": (question.system or None, session.system),
        "strategy": (question.pruning.strategy, session.pruning.strategy),
        "lambda1": (question.pruning.lambda1, session.pruning.lambda1),
        "lambda2": (question.pruning.lambda2, session.pruning.lambda2),
    }
    for name, (new, old) in asked.items():
        if new not in (None, old):
            raise InvalidInput(f"The session was begun with another {name}; begin a new one to change it.", name)
    if question.frames != FrameChoice():
        raise InvalidInput("The frames of a session are chosen by its first question.", "start_s")
    if question.history and len(question.history) != len(session.turns):
        raise InvalidInput(
            f"The session has {len(session.turns)} finished turns, the messages have {len(question.history)}.",
            "messages",
        )
