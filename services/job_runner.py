"""Works on jobs: takes open ones under a lease, asks their questions, keeps the lines, and waits where others go first.

Any number of ingresses do so on one store. A lease is extended while its job is worked on; an ingress that dies loses
it after `job_lease_s`, and another goes on with the questions that have no line.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from occam.errors import CorruptState, OccamError, StoreUnavailable
from services import metrics
from services.answer_schemas import AnswerBody
from services.background import beside, check_cancelled, ended
from services.conversations import Conversations, last
from services.errors import NotFound, ReplicaLost, ResultsTooLarge, SessionBusy
from services.job_records import JobRecord, PastLine, line_of
from services.job_schemas import JobQuestion
from services.job_store import JobStore
from services.messages import FrameChoice, Question, Reply, Source
from services.quotas import Quotas
from services.schemas import ErrorDetail
from services.settings import Settings
from services.statuses import body_of, status_of

_LOG = logging.getLogger(__name__)

_JOBS = 8  # of one tenant that one ingress works on side by side; the questions of all jobs take turns
_LOSSES = 3  # workers that may die of one question
_STORE_RETRY_S = 1.0
_LOOK_S = 1.0  # between two looks for jobs whose ingress has died


class _LeaseLost(Exception):
    """Another ingress works on the job now, or it was deleted."""


@dataclass(frozen=True)
class _Held:
    """A job whose lease is held here, and what works on it."""

    tenant: str
    task: asyncio.Task[None]


@dataclass
class _Run:
    """A job that is worked on here. seen: questions that have their line; past: texts of those, where they matter."""

    record: JobRecord
    token: str
    queries: list[JobQuestion]
    seen: set[int]
    past: dict[int, tuple[str, str]]


@dataclass
class _Video:
    """One video of a job, as far as it was talked about.

    digest: of its bytes, once they are known; broken: why they cannot be had
    history: (question, answer) of the conversation, session_id: where it goes on, frames: those that it is about
    losses: processes that died meanwhile
    """

    number: int
    digest: str | None = None
    broken: OccamError | None = None
    history: tuple[tuple[str, str], ...] = ()
    session_id: str | None = None
    losses: int = 0
    frames: FrameChoice = field(default_factory=FrameChoice)


class JobRunner:
    """The jobs of one ingress."""

    def __init__(self, settings: Settings, store: JobStore, quotas: Quotas, conversations: Conversations) -> None:
        self._store = store
        self._quotas = quotas
        self._conversations = conversations
        self._concurrency = settings.job_concurrency
        self._lease_s = settings.job_lease_s
        self._slots = asyncio.Semaphore(settings.job_concurrency)
        self._running: dict[str, _Held] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for jobs now."""
        self._woken.set()

    async def drop(self, job_id: str) -> None:
        """Stop working on a job, and wait until nothing of it runs."""
        if held := self._running.get(job_id):
            await _left(held.task)

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """Work on jobs until the end, when what is begun is left for others to go on with."""
        try:
            async with beside(self._look()):
                yield
        finally:
            for held in tuple(self._running.values()):
                await _left(held.task)

    async def _look(self) -> None:
        """Take up jobs that nobody works on."""
        while True:
            with suppress(StoreUnavailable):  # nobody can work on jobs then; looked at again in a while
                for job_id, tenant in await self._store.open():
                    if job_id not in self._running and self._jobs_of(tenant) < _JOBS:
                        with suppress(CorruptState):  # of that job alone; whoever asks for it is told
                            await self._take_up(job_id, tenant)
            check_cancelled()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()
            self._woken.clear()

    def _jobs_of(self, tenant: str) -> int:
        return sum(held.tenant == tenant for held in self._running.values())

    async def _take_up(self, job_id: str, tenant: str) -> None:
        token = secrets.token_hex(16)
        if await self._store.claim(job_id, token):
            task = asyncio.create_task(self._hold(job_id, token))
            self._running[job_id] = _Held(tenant, task)
            task.add_done_callback(lambda _: self._let_go(job_id))
            await asyncio.sleep(0)  # a task that is cancelled before it begins would not give the lease back

    def _let_go(self, job_id: str) -> None:
        del self._running[job_id]
        self.wake()  # there is room for another one

    async def _hold(self, job_id: str, token: str) -> None:
        """Work on a job for as long as its lease is held."""
        work = asyncio.create_task(self._work(job_id, token))
        beat = asyncio.create_task(self._beat(job_id, token))
        try:
            await asyncio.wait((work, beat), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(work, beat)
            with suppress(StoreUnavailable):  # a lease that stays runs out
                await self._store.release(job_id, token)

    async def _beat(self, job_id: str, token: str) -> None:
        """Extend the lease; returns once it is lost, or may be."""
        clock = asyncio.get_running_loop().time
        held_until = clock() + self._lease_s
        while clock() < held_until:
            await asyncio.sleep(self._lease_s / 3)
            asked = clock()
            with suppress(StoreUnavailable):
                if not await self._store.extend(job_id, token):
                    return
                held_until = asked + self._lease_s

    async def _work(self, job_id: str, token: str) -> None:
        """Ask what has not been asked; a job whose entries are damaged, or that makes us fail, ends here."""
        try:
            run = await self._open(job_id, token)
            if run is not None:
                await self._ask_all(run)
            await self._store.end(job_id)
        except (_LeaseLost, StoreUnavailable):
            return  # somebody goes on, once there is a store
        except Exception:  # noqa: BLE001 - one that is met again with every look would be so for ever
            _LOG.exception("job %s ends", job_id)
            with suppress(StoreUnavailable):
                await self._store.end(job_id)

    async def _open(self, job_id: str, token: str) -> _Run | None:
        record = await self._store.record(job_id)
        if record is None:
            return None
        seen = await self._store.seen(job_id, record.request.total)
        past = {}
        if record.request.follow_ups and seen:
            async for raw in self._store.lines(job_id, after=0):
                line = PastLine.read(raw)
                if line.answer is not None:
                    past[line.index] = (line.question, line.answer.answer)
        queries = await asyncio.to_thread(record.request.queries)
        return _Run(record=record, token=token, queries=queries, seen=seen, past=past)

    async def _ask_all(self, run: _Run) -> None:
        """Every video in its turn, several at a time."""
        numbers = iter(range(len(run.record.request.videos)))

        async def videos() -> None:
            for number in numbers:
                await self._ask_about(run, number)

        tasks = [asyncio.create_task(videos()) for _ in range(self._concurrency)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            through = [task for task in tasks if task.done()]
            await ended(*tasks)
        for task in through:
            task.result()

    async def _ask_about(self, run: _Run, number: int) -> None:
        """The questions about one video, one after the other, so that it is fetched and encoded once."""
        count = len(run.queries)
        indices = range(number * count, (number + 1) * count)
        history = tuple(run.past[index] for index in indices if index in run.past)
        video = _Video(number, history=history)
        for index, query in zip(indices, run.queries, strict=True):
            if index not in run.seen:
                await self._keep(run, index, await self._outcome(run, video, query))

    async def _outcome(self, run: _Run, video: _Video, query: JobQuestion) -> AnswerBody | ErrorDetail:
        """The answer, or the error that the question would have got over HTTP."""
        try:
            reply = await self._patiently(run, video, query)
        except OccamError as error:
            return body_of(error, None).error
        except Exception:  # noqa: BLE001 - as over HTTP, a bug fails one question
            _LOG.exception("a question of job %s failed", run.record.id)
            return body_of(OccamError("The service failed on this request."), None).error
        if run.record.request.follow_ups:
            video.frames = query.frame_choice if video.session_id is None else video.frames
            video.session_id = reply.session_id
            video.history += ((query.question, reply.finished.answer.text),)
        return AnswerBody.of(reply, query.evidence)

    async def _patiently(self, run: _Run, video: _Video, query: JobQuestion) -> Reply:
        """The answer, asked for again where the service had no room for it, or lost a process at it."""
        while True:
            await self._conversations.courtesy.turn()
            if video.broken is not None:
                raise video.broken
            try:
                async with self._slots:  # not while it waits: another tenant's job may go on
                    await self._quotas.take_request(run.record.tenant)
                    await self._find(run, video, query)
                    return await last(self._conversations.answer(_question(run, video, query)))
            except OccamError as error:
                if video.session_id is not None and isinstance(error, NotFound) and error.param == "session_id":
                    video.session_id = None  # it has run out: it is begun anew from its texts
                    continue
                video.losses += isinstance(error, ReplicaLost)
                if video.losses > _LOSSES:
                    video.broken = error
                if video.broken is not None or not _passes(error):
                    raise
                metrics.JOB_WAITS.labels(error.code).inc()
                await asyncio.sleep(getattr(error, "retry_after_s", 1.0))

    async def _find(self, run: _Run, video: _Video, query: JobQuestion) -> None:
        """Fetch a video that is named by its address, once for all of its questions."""
        url = run.record.request.videos[video.number].url
        if url is None or video.digest is not None:
            return
        model = await self._conversations.model(query.model, {"video"})
        try:
            async with self._conversations.until(self._conversations.deadline()):
                described = await self._conversations.describe(model, Source(url=url, kind="video"), FrameChoice())
        except OccamError as error:
            video.broken = None if _passes(error) else error
            raise
        video.digest = described.medium.digest

    async def _keep(self, run: _Run, index: int, outcome: AnswerBody | ErrorDetail) -> None:
        """Keep a question's line; raises _LeaseLost.

        While the store is away it is tried again for as long as the lease may hold. Then the work ends (`_beat`), the
        line is lost, and whoever takes the job up asks anew.
        """
        while True:
            line, grown = line_of(run.record, index, run.queries[index % len(run.queries)].question, outcome)
            failed = isinstance(outcome, ErrorDetail)
            try:
                kept = await self._store.keep(run.record, run.token, index, line, failed=failed, grown=grown)
            except StoreUnavailable as error:
                metrics.JOB_WAITS.labels(error.code).inc()
                await asyncio.sleep(_STORE_RETRY_S)
                continue
            if kept == "lost":
                raise _LeaseLost
            if kept == "kept":
                metrics.JOB_QUESTIONS.labels("failed" if failed else "ok").inc()
            if kept != "full":
                return
            full = ResultsTooLarge("The answer does not fit: all jobs and results have as many bytes as they may.")
            outcome = body_of(full, None).error


def _question(run: _Run, video: _Video, query: JobQuestion) -> Question:
    """A question of a job as one that anybody asks, but in the background."""
    named = run.record.request.videos[video.number]
    follows = video.session_id is not None
    return Question(
        text=query.question,
        tenant=run.record.tenant,
        model=query.model,
        video_id=named.id,
        sources=() if named.url is None else (Source(url=named.url, kind="video"),),
        session_id=video.session_id,
        frames=FrameChoice() if follows and query.frame_choice == video.frames else query.frame_choice,
        pruning=query.pruning_choice,
        history=() if follows else video.history,
        sampling=query.sampling,
        evidence=query.evidence,
        digest=video.digest,
        background=True,
        deadline_s=query.deadline_s,
    )


def _passes(error: OccamError) -> bool:
    """Whether the same question may be answered a while later."""
    return status_of(error) in (429, 503) or isinstance(error, SessionBusy)


async def _left(holding: "asyncio.Task[None]") -> None:
    """Have a job let go of, and wait until nothing of it runs; a second cancellation would cut that short."""
    holding.cancel()
    await asyncio.wait((holding,))
