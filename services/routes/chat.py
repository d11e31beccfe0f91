"""OpenAI's dialect: chat completions and the list of models."""

from typing import Any

from fastapi import Depends, FastAPI, Request, Response

from services import events
from services.chat import ChatRequest, as_sent
from services.chat_schemas import EXAMPLE_CHUNKS, ChatCompletion
from services.completion import Completion
from services.conversations import Conversations, last
from services.routes.responses import ERRORS, events_like, only
from services.schemas import ModelBody, ModelList
from services.tenants import Caller, tenant_of

_CHAT: dict[str, Any] = {
    "description": "The completion; with `stream: true` as server-sent events of OpenAI's chunks.",
    "content": events_like(EXAMPLE_CHUNKS),
}


def add_routes(api: FastAPI, conversations: Conversations) -> None:
    """OpenAI's dialect."""

    @api.post("/v1/chat/completions", response_model=ChatCompletion, responses={**ERRORS, 200: _CHAT}, tags=["chat"])
    async def chat(body: ChatRequest, request: Request, tenant: Caller) -> Response | dict[str, Any]:
        """Chat about a video or images, as OpenAI's clients do it; `occam` in request and answer is our extension."""
        pieces = as_sent(conversations.answer(body.question(tenant)))
        if body.stream:
            return await events.respond(request, events.chat_events(pieces, body))
        return Completion(body.model).whole(await last(pieces), body.occam.evidence)

    @api.get("/v1/models", dependencies=[Depends(tenant_of)], responses=only(401, 403, 500, 503), tags=["chat"])
    async def models() -> ModelList:
        """Models, families, defaults, calibration."""
        served = await conversations.served()
        return ModelList(data=[ModelBody.of(name, model) for name, model in served.items()])
