"""The routes of the API. What they do is in `conversations` and `videos`; how errors come out, in `problems`."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from ray.serve.handle import DeploymentHandle

from occam.config import SamplingParams
from services import events, metrics, problems
from services.answer_schemas import AnswerBody
from services.chat import ChatRequest
from services.completion import EXAMPLE_COMPLETION, Completion
from services.conversations import Conversations, last
from services.kv import Pulse
from services.ledger import Ledger
from services.messages import Question
from services.middleware import BodyLimit, RequestIds
from services.schemas import ErrorBody, ModelBody, ModelList, QueryRequest, Ready, VideoBody, VideoRequest
from services.settings import Settings
from services.state import State
from services.videos import Videos

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served as it stands."},
    "5XX": {"model": ErrorBody, "description": "The service could not answer; 503 carries `Retry-After`."},
}
_EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
_ANSWER: dict[str, Any] = {
    "description": "The answer; with `stream: true` as server-sent events that end with the same object.",
    "content": _EVENTS,
}
_CHAT: dict[str, Any] = {
    "description": "The completion; with `stream: true` as server-sent events of OpenAI's chunks.",
    "content": {"application/json": {"example": EXAMPLE_COMPLETION}, **_EVENTS},
}


class Ingress:
    """The deployment that speaks HTTP."""

    def __init__(self, settings: Settings, decoder: DeploymentHandle, workers: Mapping[str, DeploymentHandle]) -> None:
        self._settings = settings
        self._state = State(
            settings.state_url,
            ttl_s=settings.session_ttl_s,
            first_ttl_s=settings.session_first_ttl_s,
            turn_s=settings.deadline_s + 5,
        )
        self._conversations = Conversations(settings, self._state, decoder, workers)
        self._videos = Videos(self._state, self._conversations, decoder, workers)

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI(
            title="Occam", version="1", description="Questions about videos and images, answered from pruned tokens."
        )
        api.add_middleware(BodyLimit, max_bytes=self._settings.max_body_bytes)
        api.add_middleware(Ledger)
        api.add_middleware(RequestIds)
        problems.install(api)
        add_video_routes(api, self._videos, self._conversations)
        add_chat_routes(api, self._conversations)
        add_operator_routes(api, self._settings, self._state, self._conversations, self._videos)
        return api


def add_video_routes(api: FastAPI, videos: Videos, conversations: Conversations) -> None:
    """Our own dialect: videos, and queries about them."""

    @api.post("/v1/videos", responses=_ERRORS, tags=["videos"])
    async def post_video(body: VideoRequest) -> VideoBody:
        """Fetch and describe a video; its frames are encoded in the background."""
        return VideoBody.of(await videos.add(body.url))

    @api.get("/v1/videos/{video_id}", responses=_ERRORS, tags=["videos"])
    async def get_video(video_id: str) -> VideoBody:
        """The state of a video."""
        return VideoBody.of(await videos.get(video_id))

    @api.delete("/v1/videos/{video_id}", status_code=204, responses=_ERRORS, tags=["videos"])
    async def delete_video(video_id: str) -> None:
        """Forget a video: its sessions, its cached states and its local copies."""
        await videos.forget(video_id)

    @api.post(
        "/v1/videos/{video_id}/queries",
        response_model=AnswerBody,
        responses={**_ERRORS, 200: _ANSWER},
        tags=["videos"],
    )
    async def query_video(video_id: str, body: QueryRequest, request: Request) -> Response | AnswerBody:
        """Ask about a video; with the `session_id` of an earlier answer, ask a follow-up."""
        question = Question(
            text=body.question,
            model=body.model,
            video_id=video_id,
            session_id=body.session_id,
            frames=body.frame_choice,
            pruning=body.pruning_choice,
            sampling=SamplingParams(max_new_tokens=body.max_tokens, temperature=body.temperature, seed=body.seed),
            evidence=body.evidence,
            streamed=body.stream,
        )
        pieces = conversations.answer(question)
        if body.stream:
            return await events.respond(request, events.query_events(pieces, body.evidence))
        return AnswerBody.of(await last(pieces), body.evidence)


def add_chat_routes(api: FastAPI, conversations: Conversations) -> None:
    """OpenAI's dialect."""

    @api.post("/v1/chat/completions", response_model=None, responses={**_ERRORS, 200: _CHAT}, tags=["chat"])
    async def chat(body: ChatRequest, request: Request) -> Response | dict[str, Any]:
        """Chat about a video or images, as OpenAI's clients do it; `occam` in request and answer is our extension."""
        pieces = conversations.answer(body.question())
        if body.stream:
            return await events.respond(request, events.chat_events(pieces, body))
        return Completion(body.model).whole(await last(pieces), body.occam.evidence)

    @api.get("/v1/models", tags=["chat"])
    async def models() -> ModelList:
        """Models, families, defaults, calibration."""
        served = await conversations.served()
        return ModelList(data=[ModelBody.of(name, model) for name, model in served.items()])


def add_operator_routes(
    api: FastAPI, settings: Settings, state: State, conversations: Conversations, videos: Videos
) -> None:
    """Probes and metrics."""
    cache = Pulse(settings.kv_url, settings.kv_detail)

    @api.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """Alive: this process answers."""
        return {"status": "ok"}

    @api.get("/startupz", responses=_ERRORS, tags=["operation"])
    async def startupz() -> dict[str, str]:
        """Started: every model is loaded and warm."""
        await conversations.served()
        return {"status": "ok"}

    @api.get("/readyz", responses=_ERRORS, tags=["operation"])
    async def readyz() -> Ready:
        """Ready: models are warm and the store of sessions takes them; says which tiers, durability, walls are live."""
        await state.check()
        return Ready(
            models=list(await conversations.served()),
            kv=await cache.detail(),
            state=settings.state_detail,
            sandbox=await videos.sandbox(),
        )

    @api.get("/metrics", response_class=Response, tags=["operation"])
    async def prometheus() -> Response:
        """The numbers of all processes of this node, in Prometheus' text format."""
        return Response(metrics.render(settings.metrics_directory), media_type=metrics.CONTENT_TYPE)
