"""The deployment that speaks HTTP: its parts, and the routes over them. How errors come out is in `problems`."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from services import logs, problems, tracing
from services.background import beside
from services.conversations import Conversations
from services.document import DESCRIPTION, Api
from services.estimate import Estimates
from services.job_runner import JobRunner
from services.job_store import JobStore
from services.jobs import Jobs
from services.keys import Keys
from services.ledger import Ledger
from services.middleware import BodyLimit, RequestIds
from services.observed import Observed
from services.overlays import Overlays
from services.quotas import Quotas
from services.references import References
from services.routes import chat, estimate, evidence, jobs, operation, page, reference, sessions, uploads, videos
from services.settings import Settings
from services.sites import OwnSite
from services.state import State
from services.tenants import CountedRoute, Doorkeeper
from services.uploads import Uploads
from services.videos import Videos


class Ingress:
    """The deployment that speaks HTTP."""

    def __init__(self, settings: Settings, decoder: DeploymentHandle, workers: Mapping[str, DeploymentHandle]) -> None:
        settings = settings.of_node()
        logs.configure(settings, "ingress")
        tracing.configure(settings, "ingress")
        self._settings = settings
        self._state = State(
            settings.state_url,
            ttl_s=settings.session_ttl_s,
            first_ttl_s=settings.session_first_ttl_s,
            turn_s=settings.deadline_s + 5,
            salt=settings.salt,
        )
        self._quotas = Quotas(self._state, settings.allowance)
        references = References(self._state, decoder, workers)
        self._conversations = Conversations(settings, self._state, references, self._quotas, decoder, workers)
        self._overlays = Overlays(self._state, self._conversations, decoder)
        self._uploads = Uploads(settings, self._state, decoder)
        self._videos = Videos(
            settings, self._state, references, self._quotas, self._conversations, decoder, workers, self._uploads
        )
        job_store = JobStore(settings, self._state)
        self._runner = JobRunner(settings, job_store, self._quotas, self._conversations)
        self._jobs = Jobs(settings, job_store, self._runner, self._conversations)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        async with beside(self._uploads.sweep_for_ever()), self._runner.working():
            yield

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = Api(
            title="Occam", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=self._lifespan
        )
        api.add_middleware(
            BodyLimit,
            max_bytes=self._settings.max_body_bytes,
            max_s=self._settings.deadline_s,
            bounded_elsewhere=uploads.is_upload,
        )
        api.add_middleware(Doorkeeper, keys=Keys(self._settings.api_keys), site=OwnSite(self._settings.host))
        api.add_middleware(Ledger)
        api.add_middleware(Observed)
        api.add_middleware(RequestIds)
        api.state.quotas = self._quotas
        api.router.route_class = CountedRoute
        problems.install(api)
        uploads.add_routes(api, self._videos)
        videos.add_routes(api, self._videos, self._conversations)
        sessions.add_routes(api, self._state)
        evidence.add_routes(api, self._overlays)
        chat.add_routes(api, self._conversations)
        jobs.add_routes(api, self._jobs)
        estimates = Estimates(self._conversations, self._jobs, self._quotas, self._settings.job_concurrency)
        estimate.add_routes(api, estimates)
        reference.add_routes(api)
        operation.add_routes(api, self._settings, self._state, self._conversations, self._videos)
        page.add_routes(api)
        return api
