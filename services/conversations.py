"""From a question to an answer: session, media, worker, ledger. Both HTTP dialects come through here."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import asdict, replace
from typing import NamedTuple

from ray.serve.handle import DeploymentHandle

from occam.errors import EngineFailure, InvalidInput, Overloaded, UnknownModel
from occam.stats import StageStats
from occam.types import MediaKind
from services import metrics, origin
from services.background import check_cancelled
from services.courtesy import Courtesy
from services.errors import DeadlineExceeded, NotCached, ReplicaLost, WorkerFull
from services.kept_evidence import pack
from services.logs import note
from services.messages import (
    Ask,
    Described,
    Event,
    Finished,
    Forecast,
    FrameChoice,
    Medium,
    Progress,
    Question,
    Reply,
    ServedModel,
    Source,
    Text,
)
from services.question_rules import check_same, check_sources
from services.quotas import Quotas
from services.records import Session
from services.references import References
from services.remote import call, stream, together
from services.router import affinity
from services.settings import Settings
from services.state import State, new_id

Piece = Progress | Text | Reply
"""What a question is answered with: texts, and the reply at the end."""


class Deadline(NamedTuple):
    """When a request must be through, on the event loop's clock, and how many seconds that gave it."""

    at: float
    seconds: float


class Conversations:
    """Answers questions with the workers, and remembers sessions."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        references: References,
        quotas: Quotas,
        decoder: DeploymentHandle,
        workers: Mapping[str, DeploymentHandle],
    ) -> None:
        self._settings = settings
        self._state = state
        self._references = references
        self._quotas = quotas
        self._decoder = decoder
        self._workers = workers
        self._served: dict[str, ServedModel] = {}
        self.courtesy = Courtesy(settings.job_patience_s, settings.most_questions, several=bool(settings.api_keys))

    async def served(self) -> dict[str, ServedModel]:
        """Every model by the name that requests use; waits for workers that are still loading."""
        for name, worker in self._workers.items():
            if name not in self._served:
                self._served[name] = await call(worker, "describe")
        return self._served

    async def describe(self, model: str, source: Source, choice: FrameChoice, digest: str | None = None) -> Described:
        """A medium's facts and the frames that `model` takes of it."""
        served = await self.served()
        frames = served[model].frames
        described: Described = await call(self._decoder, "describe", source, choice, frames, digest, origin.current())
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

    async def answer(self, question: Question) -> AsyncGenerator[Piece]:
        """The answer's pieces, then the reply; the session is kept before the reply is given out.

        Of a streamed question, progress too: none before a worker has taken it and done the first of the work, so that
        whatever is wrong with it until then is raised in front of all pieces.
        """
        started = time.monotonic()
        deadline = self.deadline(question.deadline_s)
        ttft_s: float | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self.courtesy.answering(question.background))
            async with self.until(deadline):
                session, stats = await self._open(question, stack)
                check_cancelled()
            note(session_id=session.id, model=session.model)
            events = await stack.enter_async_context(aclosing(self._metered(question, session)))
            fetched = fetched_of(session.media, stats) if question.streamed else None
            while True:
                async with self.until(deadline):
                    event = await anext(events)
                if fetched is not None:
                    yield fetched
                    fetched = None
                if isinstance(event, Progress):
                    yield event
                    continue
                ttft_s = time.monotonic() - started if ttft_s is None else ttft_s
                if isinstance(event, Finished):
                    break
                yield event
            texts = (*session.texts, (question.text, event.answer.text))
            session = replace(session, turns=event.turns, texts=texts, pruning=event.pruning)
            evidence = pack(event.answer.evidence)
            async with self.until(deadline):
                await self._keep(session, event, evidence, followed_up=question.session_id is not None)
            note(cache=event.cache, ttft_s=round(ttft_s, 6), **asdict(event.usage))
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
            drawable=evidence is not None,
        )

    async def foresee(
        self, question: Question, texts: Sequence[str]
    ) -> tuple[Session, tuple[StageStats, ...], Forecast]:
        """What `question` would take, and the same with other texts: its media are found as `answer` finds them.

        Gives the session that it would have, what finding the media took, and the forecast.
        """
        async with AsyncExitStack() as stack:
            session, stats = await self._open(question, stack)
            ask = self._ask(question, session, may_decode=False)
            worker, near = self._workers[session.model], affinity(session.media)
            forecast: Forecast = await call(worker, "foresee", ask, tuple(texts), affinity=near)
            return session, stats, forecast

    def deadline(self, asked_s: float | None = None) -> Deadline:
        """When a request that comes in now must be through; InvalidInput where it asks for more time than there is."""
        longest_s = self._settings.deadline_s
        if asked_s is not None and asked_s > longest_s:
            raise InvalidInput(f"deadline_s is {asked_s:g}, more than the limit of {longest_s:g} s.", "deadline_s")
        seconds = longest_s if asked_s is None else asked_s
        return Deadline(asyncio.get_running_loop().time() + seconds, seconds)

    @asynccontextmanager
    async def until(self, deadline: Deadline) -> AsyncGenerator[None]:
        """Stop what is inside, and raise DeadlineExceeded, where it is not through by then."""
        try:
            async with asyncio.timeout_at(deadline.at):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(f"The request took more than {deadline.seconds:g} s.") from error

    async def _open(self, question: Question, stack: AsyncExitStack) -> tuple[Session, tuple[StageStats, ...]]:
        """The session that the question goes on with, held until `stack` closes, or a new one."""
        if question.session_id is not None:
            session = await stack.enter_async_context(self._state.turn_of(question.session_id, question.tenant))
            check_same(question, session)
            if session.model not in self._workers:
                raise UnknownModel(f"The model of this session, {session.model!r}, is not served any more.", "model")
            if session.video_id is not None:
                await self._state.video(session.video_id, session.tenant)
            return session, ()
        model, media, stats = await self._media(question)
        session = Session(
            id=new_id("session"),
            tenant=question.tenant,
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
            described = [await self._posted(model, question.video_id, question)]
        else:
            check_sources(question, self._settings.max_images)
            model = await self.model(question.model, {source.kind for source in question.sources if source.kind})
            with nullcontext() if question.background else self.courtesy.finding(question.tenant):
                described = await together(
                    *(
                        self.describe(
                            model,
                            source,
                            question.frames if source.kind == "video" else FrameChoice(),
                            question.digest,
                        )
                        for source in question.sources
                    )
                )
        stats = tuple(stage for each in described for stage in each.stats)
        return model, tuple(each.medium for each in described), stats

    async def _posted(self, model: str, video_id: str, question: Question) -> Described:
        frames, video = question.frames, (await self._state.video(video_id, question.tenant)).video
        if frames == FrameChoice() and model == await self.model(None, {"video"}):
            return Described(medium=video, stats=())
        return await self.describe(model, Source(url=video.url, kind="video"), frames, video.digest)

    async def _metered(self, question: Question, session: Session) -> AsyncGenerator[Event]:
        """The worker's events. Of a tenant with a quota of video, seconds are reserved before they are decoded."""
        tenant = session.tenant
        try:
            may_decode = not self._quotas.counts_video(tenant)
            async with aclosing(self._events(question, session, may_decode)) as events:
                async for event in events:
                    yield event
            return
        except NotCached:
            reservation = await self._quotas.reserve(tenant, sum(medium.charged_s for medium in session.media))
        try:
            async with aclosing(self._events(question, session, may_decode=True)) as events:
                async for event in events:
                    if isinstance(event, Finished) and event.cache != "none":  # somebody else decoded it meanwhile
                        await reservation.give_back()
                    yield event
        except (Overloaded, EngineFailure, ReplicaLost):
            await reservation.give_back()
            raise

    async def _events(self, question: Question, session: Session, may_decode: bool) -> AsyncGenerator[Event]:
        """The worker's events; if its process dies before anything went out, or it refuses, another one answers."""
        worker = self._workers[session.model]
        ask = self._ask(question, session, may_decode)
        given_out, passed_over = False, 0
        try:
            async with aclosing(stream(worker, "answer", ask, affinity=affinity(ask.media))) as events:
                async for event in events:
                    given_out = question.streamed and not isinstance(event, Progress)
                    yield event
            return
        except ReplicaLost:
            if given_out:
                raise
        except WorkerFull:
            passed_over = 1
        async with aclosing(stream(worker, "answer", ask, affinity=affinity(ask.media, passed_over))) as events:
            async for event in events:
                yield event

    def _ask(self, question: Question, session: Session, may_decode: bool) -> Ask:
        return Ask(
            media=session.media,
            pruning=session.pruning,
            system=session.system,
            turns=session.turns,
            history=() if session.turns else question.history,
            question=question.text,
            sampling=question.sampling,
            evidence=question.evidence,
            progress=question.streamed,
            origin=origin.current(),
            salt=self._settings.salt(session.tenant),
            may_decode=may_decode,
        )

    async def _keep(self, session: Session, finished: Finished, evidence: bytes | None, followed_up: bool) -> None:
        await self._state.save_session(session, followed_up)
        await self._state.save_evidence(session.id, len(session.turns) - 1, evidence, followed_up)
        if session.video_id is not None:
            await self._references.note(session.video_id, session.tenant, session.media[0].digest, finished.key)


def fetched_of(media: Sequence[Medium], stats: Sequence[StageStats]) -> Progress | None:
    """That the media are here, told in frames that will be looked at; None where they have been."""
    if not stats:
        return None
    frames = sum(len(medium.indices) for medium in media)
    return Progress(stage="fetch", done=frames, total=frames, seconds=sum(stage.seconds for stage in stats))


async def last(pieces: AsyncGenerator[Piece]) -> Reply:
    """The reply, without the pieces before it."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Reply):
                return piece
    raise EngineFailure("The answer ended without its end.")
