"""Jobs as their owners see them: taken on, looked at, read, given up."""

import asyncio
import time
from collections.abc import AsyncGenerator

from occam.errors import CorruptState, InvalidInput, OccamError
from services.conversations import Conversations
from services.errors import NotFound
from services.job_records import JobRecord, sound
from services.job_runner import JobRunner
from services.job_schemas import JobBody, JobRequest, JobStatus
from services.job_store import JobStore, Progress
from services.settings import Settings
from services.state import new_id
from services.statuses import body_of

_FOLLOW_S = 0.25


class Jobs:
    """The jobs of all tenants."""

    def __init__(self, settings: Settings, store: JobStore, runner: JobRunner, conversations: Conversations) -> None:
        self._max_questions = settings.max_job_questions
        self._store = store
        self._runner = runner
        self._conversations = conversations

    async def add(self, request: JobRequest, tenant: str) -> JobBody:
        """Take on a job; InvalidInput for one that is too large or that no model could take."""
        self.check_size(request)
        queries = await asyncio.to_thread(request.queries)  # of thousands that takes a while, and others want the loop
        for model in {query.model for query in queries if query.sampling}:
            await self._conversations.model(model, {"video"})
        record = JobRecord(id=new_id("job"), tenant=tenant, created=time.time(), request=request)
        await self._store.add(record, record.least_bytes)
        self._runner.wake()
        return JobBody(
            id=record.id, status="queued", total=request.total, done=0, failed=0, created=int(record.created)
        )

    def check_size(self, request: JobRequest) -> None:
        """InvalidInput for more questions than a job may have."""
        if request.total > self._max_questions:
            raise InvalidInput(
                f"The job has {len(request.videos)} videos x {len(request.questions)} questions = {request.total}, "
                f"more than the limit of {self._max_questions}.",
                "questions",
            )

    async def get(self, job_id: str, tenant: str) -> JobBody:
        """How far a job is; NotFound."""
        await self._check_owner(job_id, tenant)
        body = await self._look(job_id)
        if body is None:
            raise _not_found()
        return body

    async def page(self, tenant: str, after: str | None, limit: int) -> tuple[list[JobBody], bool]:
        """The tenant's jobs, the newest first, behind that of `after`; and whether there are more."""
        ids = await self._store.page(tenant, after, limit + 1)
        bodies = [await self._look(job_id) for job_id in ids[:limit]]
        return [body for body in bodies if body is not None], len(ids) > limit

    async def results(self, job_id: str, tenant: str, after: int, follow: bool) -> AsyncGenerator[bytes]:
        """The lines of a job, each with its end, but for the first `after`; NotFound before the first one.

        follow: until the job has ended or is forgotten, else those that are there
        """
        await self._check_owner(job_id, tenant)
        while progress := await self._store.progress(job_id):
            async for line in self._store.lines(job_id, after):
                after += 1
                yield sound(line) + b"\n"
            if not follow or progress.ended:
                return
            await asyncio.sleep(_FOLLOW_S)

    async def forget(self, job_id: str, tenant: str) -> None:
        """Cancel what runs of a job, and forget it with its results; NotFound."""
        await self._check_owner(job_id, tenant)
        await self._store.delete(job_id, tenant)
        await self._runner.drop(job_id)

    async def _check_owner(self, job_id: str, tenant: str) -> None:
        if not await self._store.has(job_id, tenant):
            raise _not_found()

    async def _look(self, job_id: str) -> JobBody | None:
        """A job's state; None where it is gone."""
        try:
            progress = await self._store.progress(job_id)
        except CorruptState as error:
            detail = body_of(error, None).error
            return JobBody(id=job_id, status="failed", total=0, done=0, failed=0, created=0, error=detail)
        return None if progress is None else _body(job_id, progress)


def _not_found() -> NotFound:
    return NotFound("There is no job with this id.", "job_id")


def _body(job_id: str, progress: Progress) -> JobBody:
    status: JobStatus = "running" if progress.leased else "queued"
    error = None
    if progress.ended:
        status = "done" if progress.done == progress.total else "failed"
    if status == "failed":
        error = body_of(OccamError("The service could not go on with what is kept of the job."), None).error
    return JobBody(
        id=job_id,
        status=status,
        total=progress.total,
        done=progress.done,
        failed=progress.failed,
        created=progress.created,
        error=error,
    )
