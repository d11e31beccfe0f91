"""Server-sent events: answers in both dialects as they come, and errors behind a start that cannot be taken back."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from occam.errors import OccamError
from services.answer_schemas import AnswerBody
from services.chat import ChatRequest
from services.completion import Completion
from services.ledger import OUTCOME, outcome_of
from services.messages import Reply, Text
from services.problems import request_id
from services.statuses import body_of, status_of

Pieces = AsyncGenerator[Text | Reply]

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_DONE = "data: [DONE]\n\n"


async def query_events(pieces: Pieces, evidence: bool) -> AsyncGenerator[dict[str, Any]]:
    """Our own dialect: `text` pieces, then the whole `answer`."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Text):
                yield {"type": "text", "text": piece.text}
            else:
                yield {"type": "answer", **AnswerBody.of(piece, evidence).model_dump(mode="json")}


async def chat_events(pieces: Pieces, body: ChatRequest) -> AsyncGenerator[dict[str, Any]]:
    """OpenAI's dialect: chunks with a delta each, the end, and the usage if it is asked for."""
    completion = Completion(body.model)
    delta = {"role": "assistant"}
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Text):
                yield completion.chunk({**delta, "content": piece.text})
                delta = {}
                continue
            yield completion.last(piece, delta, body.occam.evidence)
            if body.stream_options.include_usage:
                yield completion.usage(piece)


async def respond(request: Request, events: AsyncGenerator[dict[str, Any]]) -> StreamingResponse:
    """The response; what fails before the first event is raised here, and so gets a status of its own."""
    first = await anext(events)
    return StreamingResponse(_written(request, first, events), media_type="text/event-stream", headers=_HEADERS)


async def _written(
    request: Request, first: dict[str, Any], events: AsyncGenerator[dict[str, Any]]
) -> AsyncGenerator[str]:
    async with aclosing(events):
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except OccamError as error:
            setattr(request.state, OUTCOME, outcome_of(status_of(error)))
            yield _line({"type": "error", **body_of(error, request_id(request)).model_dump(mode="json")})
        yield _DONE


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
