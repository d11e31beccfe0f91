"""What a question or a job would cost, before it runs."""

from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import Discriminator, Tag

from services.estimate import Estimates
from services.estimate_schemas import EXAMPLE_ESTIMATE, EstimateBody, EstimateRequest
from services.job_schemas import EXAMPLE_JOB, JobRequest
from services.routes.responses import ERRORS
from services.tenants import Caller


def _kind(body: Any) -> str:
    """A body with videos is a job's."""
    return "job" if isinstance(body, JobRequest) or (isinstance(body, dict) and "videos" in body) else "query"


Estimated = Annotated[
    Annotated[EstimateRequest, Tag("query")] | Annotated[JobRequest, Tag("job")],
    Discriminator(_kind),
    Body(openapi_examples={"query": {"value": EXAMPLE_ESTIMATE}, "job": {"value": EXAMPLE_JOB}}),
]


def add_routes(api: FastAPI, estimates: Estimates) -> None:
    """Estimates."""

    @api.post("/v1/estimate", responses=ERRORS, tags=["jobs"])
    async def post_estimate(body: Estimated, tenant: Caller) -> EstimateBody:
        """What a query or a whole job would cost. Its videos are fetched and probed, nothing is decoded or encoded."""
        if isinstance(body, JobRequest):
            return await estimates.of_job(body, tenant)
        return await estimates.of_query(body, tenant)
