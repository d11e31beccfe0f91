"""From a question to an answer: session, media, worker, ledger. Both HTTP dialects come through here."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from occam.errors import EngineFailure, InvalidInput, UnknownModel
from occam.stats import StageStats
from occam.types import MediaKind
from services import metrics
from services.errors import DeadlineExceeded, ReplicaLost
from services.messages import (
    Ask,
    Described,
    Event,
    Finished,
    FrameChoice,
    Medium,
    Question,
    Reply,
    ServedModel,
    Source,
    Text,
)
from services.question_rules import check_same, check_sources
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

    async def describe(self, model: str, source: Source, choice: FrameChoice, digest: str | None = None) -> Described:
        """A medium's facts and the frames that `model` takes of it."""
        served = await self.served()
        described: Described = await call(self._decoder, "describe", source, choice, served[model].frames, digest)
        return described

    async def model(self, name: str | None, kinds: Collection[MediaKind]) -> str:
        """The served model of that name, for None the first one that takes media of all `kinds`.

        UnknownModel where there is none of that name, InvalidInput where it does not take them.
        """
        if name is not None and name not in self._workers:
            raise UnknownModel(f"There is no model {name!r}; there are: {', '.join(self._workers)}.", "model")
        served = await self.served()
        refusals = []
        for candidate in self._workers if name is None else (name,):
            media = served[candidate].media
            missing = sorted(set(kinds) - set(media))
            if not missing:
                return candidate
            refusals.append(f"{candidate} takes {' and '.join(media)} input, not {' and '.join(missing)}.")
        raise InvalidInput(" ".join(refusals), "model")

    async def answer(self, question: Question) -> AsyncGenerator[Text | Reply]:
        """The answer's pieces, then the reply; the session is kept before the reply is given out."""
        started = time.monotonic()
        deadline = self.deadline()
        ttft_s: float | None = None
        async with AsyncExitStack() as stack:
            async with self.until(deadline):
                session, stats = await self._open(question, stack)
            events = await stack.enter_async_context(aclosing(self._events(question, session)))
            while True:
                async with self.until(deadline):
                    event = await anext(events)
                ttft_s = time.monotonic() - started if ttft_s is None else ttft_s
                if isinstance(event, Finished):
                    break
                yield event
            texts = (*session.texts, (question.text, event.answer.text))
            session = replace(session, turns=event.turns, texts=texts, pruning=event.pruning)
            async with self.until(deadline):
                await self._keep(session, event, followed_up=question.session_id is not None)
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

    def deadline(self) -> float:
        """When a request that comes in now must be through, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._settings.deadline_s

    @asynccontextmanager
    async def until(self, when: float) -> AsyncGenerator[None]:
        """Raise DeadlineExceeded where what is inside is not through by then."""
        try:
            async with asyncio.timeout_at(when):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"The request took more than {self._settings.deadline_s:g} s.") from error

    async def _open(self, question: Question, stack: AsyncExitStack) -> tuple[Session, tuple[StageStats, ...]]:
        """The session that the question goes on with, held until `stack` closes, or a new one."""
        if question.session_id is not None:
            session = await stack.enter_async_context(self._state.turn_of(question.session_id))
            check_same(question, session)
            if session.video_id is not None:
                await self._state.video(session.video_id)
            return session, ()
        model, media, stats = await self._media(question)
        session = Session(
            id=new_id("session"),
            model=model,
            video_id=question.video_id,
            media=media,
            pruning=question.pruning,
            system=question.system,
            turns=(),
            texts=question.history,
        )
        return session, stats

    async def _media(self, question: Question) -> tuple[str, tuple[Medium, ...], tuple[StageStats, ...]]:
        """The model, the media with the frames that it takes of them, and what finding these out took."""
        if question.video_id is not None:
            model = await self.model(question.model, {"video"})
            described = [await self._posted(model, question.video_id, question.frames)]
        else:
            check_sources(question, self._settings.max_images)
            model = await self.model(question.model, {source.kind for source in question.sources if source.kind})
            described = await asyncio.gather(
                *(
                    self.describe(model, source, question.frames if source.kind == "video" else FrameChoice())
                    for source in question.sources
                )
            )
        stats = tuple(stage for each in described for stage in each.stats)
        return model, tuple(each.medium for each in described), stats

    async def _posted(self, model: str, video_id: str, frames: FrameChoice) -> Described:
        video = (await self._state.video(video_id)).video
        if frames == FrameChoice() and model == await self.model(None, {"video"}):
            return Described(medium=video, stats=())
        return await self.describe(model, Source(url=video.url, kind="video"), frames, video.digest)

    async def _events(self, question: Question, session: Session) -> AsyncGenerator[Event]:
        """The worker's events; if its process dies before anything went out, another one answers instead."""
        worker = self._workers[session.model]
        ask = Ask(
            media=session.media,
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

    async def _keep(self, session: Session, finished: Finished, followed_up: bool) -> None:
        await self._state.save_session(session, followed_up)
        if session.video_id is not None:
            await self._state.note_key(session.video_id, finished.key)


async def last(pieces: AsyncGenerator[Text | Reply]) -> Reply:
    """The reply, without the pieces before it."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Reply):
                return piece
    raise EngineFailure("The answer ended without its end.")
