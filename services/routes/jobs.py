"""Jobs: many questions about many videos, answered when there is time."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from services.job_schemas import JobBody, JobList, JobRequest
from services.jobs import Jobs
from services.routes.responses import ERRORS
from services.schemas import MAX_NAME
from services.tenants import Caller

NDJSON = "application/x-ndjson"
_LINES: dict[str, Any] = {
    "description": "A line for each question that has one, in the order in which they came: a `ResultLine` as JSON.",
    "content": {NDJSON: {"schema": {"type": "string"}}},
}


def add_routes(api: FastAPI, jobs: Jobs) -> None:
    """Jobs."""

    @api.post("/v1/jobs", status_code=202, responses=ERRORS, tags=["jobs"])
    async def post_job(body: JobRequest, tenant: Caller) -> JobBody:
        """Ask every question about every video; the answers are results, and questions of others go first."""
        return await jobs.add(body, tenant)

    @api.get("/v1/jobs", responses=ERRORS, tags=["jobs"])
    async def get_jobs(
        tenant: Caller,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
    ) -> JobList:
        """Jobs, the newest first, behind that of `after`."""
        data, has_more = await jobs.page(tenant, after, limit)
        return JobList(data=data, has_more=has_more)

    @api.get("/v1/jobs/{job_id}", responses=ERRORS, tags=["jobs"])
    async def get_job(job_id: str, tenant: Caller) -> JobBody:
        """How far a job is."""
        return await jobs.get(job_id, tenant)

    @api.get(
        "/v1/jobs/{job_id}/results", response_class=StreamingResponse, responses={**ERRORS, 200: _LINES}, tags=["jobs"]
    )
    async def get_results(
        job_id: str,
        tenant: Caller,
        after: Annotated[int, Query(ge=0, le=2**31, description="Lines to leave out: those that were read.")] = 0,
        follow: Annotated[
            bool, Query(description="Go on until the job has ended, else end with what is there.")
        ] = False,
    ) -> StreamingResponse:
        """The results, a line for each question that has one, whole lines only."""
        lines = jobs.results(job_id, tenant, after, follow)
        first = await anext(lines, b"")
        return StreamingResponse(_from(first, lines), media_type=NDJSON)

    @api.delete("/v1/jobs/{job_id}", status_code=204, responses=ERRORS, tags=["jobs"])
    async def delete_job(job_id: str, tenant: Caller) -> None:
        """Cancel what runs of a job, and forget it with its results."""
        await jobs.forget(job_id, tenant)


async def _from(first: bytes, lines: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The lines behind the first, which was waited for so that what fails in front of it has a status of its own."""
    async with aclosing(lines):
        yield first
        async for line in lines:
            yield line
