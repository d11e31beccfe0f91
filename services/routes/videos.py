"""Our own dialect: videos, and queries about them."""

from typing import Any

from fastapi import Depends, FastAPI, Request, Response

from services import events
from services.answer_schemas import EXAMPLE_ANSWER, AnswerBody
from services.conversations import Conversations, last
from services.messages import Question
from services.routes.responses import ERRORS, events_like
from services.routes.uploads import FORM_BODY, must_be_json
from services.schemas import QueryRequest, VideoBody, VideoRequest
from services.tenants import Caller
from services.videos import Videos

_ANSWER: dict[str, Any] = {
    "description": "The answer; with `stream: true` as server-sent events that end with the same object.",
    "content": events_like(
        [{"type": "text", "text": "red"}, {"type": "answer", **EXAMPLE_ANSWER, "evidence": None}],
    ),
}


def add_routes(api: FastAPI, videos: Videos, conversations: Conversations) -> None:
    """Our own dialect: videos, and queries about them."""

    @api.post(
        "/v1/videos",
        responses=ERRORS,
        tags=["videos"],
        dependencies=[Depends(must_be_json)],
        openapi_extra=FORM_BODY,
    )
    async def post_video(body: VideoRequest, tenant: Caller) -> VideoBody:
        """Fetch and describe a video, or take one that is uploaded; its frames are encoded in the background."""
        return VideoBody.of(await videos.add(body.url, tenant))

    @api.get("/v1/videos/{video_id}", responses=ERRORS, tags=["videos"])
    async def get_video(video_id: str, tenant: Caller) -> VideoBody:
        """The state of a video."""
        return VideoBody.of(await videos.get(video_id, tenant))

    @api.delete("/v1/videos/{video_id}", status_code=204, responses=ERRORS, tags=["videos"])
    async def delete_video(video_id: str, tenant: Caller) -> None:
        """Forget a video: its sessions, its cached states and its local copies."""
        await videos.forget(video_id, tenant)

    @api.post(
        "/v1/videos/{video_id}/queries",
        response_model=AnswerBody,
        responses={**ERRORS, 200: _ANSWER},
        tags=["videos"],
    )
    async def query_video(video_id: str, body: QueryRequest, request: Request, tenant: Caller) -> Response | AnswerBody:
        """Ask about a video; with the `session_id` of an earlier answer, ask a follow-up."""
        question = Question(
            text=body.question,
            tenant=tenant,
            model=body.model,
            video_id=video_id,
            session_id=body.session_id,
            frames=body.frame_choice,
            pruning=body.pruning_choice,
            sampling=body.sampling,
            evidence=body.evidence,
            streamed=body.stream,
            deadline_s=body.deadline_s,
        )
        pieces = conversations.answer(question)
        if body.stream:
            return await events.respond(request, events.query_events(pieces, body.evidence))
        return AnswerBody.of(await last(pieces), body.evidence)
