"""Server-sent events: answers in both dialects as they come, and errors behind a start that cannot be taken back."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from occam.errors import OccamError
from services.answer_schemas import AnswerBody
from services.chat import ChatRequest
from services.completion import Completion
from services.conversations import Piece
from services.ledger import OUTCOME, outcome_of
from services.logs import note
from services.messages import Progress, Text
from services.problems import request_id
from services.statuses import body_of, status_of

Pieces = AsyncGenerator[Piece]

HEARTBEAT_S = 15.0
"""Silence after which a comment goes out: proxies take a line on which nothing comes to be dead."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_KEEP_ALIVE = ": keep-alive\n\n"
_DONE = "data: [DONE]\n\n"


async def query_events(pieces: Pieces, evidence: bool) -> AsyncGenerator[dict[str, Any]]:
    """Our own dialect: `progress`, `text` pieces, then the whole `answer`."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Progress):
                yield {"type": "progress", **asdict(piece)}
            elif isinstance(piece, Text):
                yield {"type": "text", "text": piece.text}
            else:
                yield {"type": "answer", **AnswerBody.of(piece, evidence).model_dump(mode="json")}


async def chat_events(pieces: Pieces, body: ChatRequest) -> AsyncGenerator[dict[str, Any]]:
    """OpenAI's dialect: chunks with a delta each, empty ones with progress, the end, and the usage if asked for."""
    completion = Completion(body.model)
    delta = {"role": "assistant"}
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Progress):
                yield completion.progress(piece)
                continue
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
    async with aclosing(_with_silences(events)) as beats:
        yield _line(first)
        try:
            async for event in beats:
                yield _KEEP_ALIVE if event is None else _line(event)
        except OccamError as error:
            setattr(request.state, OUTCOME, outcome_of(status_of(error)))
            note(error=error.code)
            yield _line({"type": "error", **body_of(error, request_id(request)).model_dump(mode="json")})
        yield _DONE


async def _with_silences(events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[dict[str, Any] | None]:
    """The events, and None whenever `HEARTBEAT_S` have gone by without one."""
    coming = None
    try:
        while True:
            # A task, for what is waited for with a time limit would be cut off by it.
            coming = asyncio.ensure_future(anext(events, None))
            while not coming.done():
                await asyncio.wait((coming,), timeout=HEARTBEAT_S)
                if not coming.done():
                    yield None
            if (event := coming.result()) is None:
                return
            yield event
    finally:
        if coming is not None and not coming.done():
            coming.cancel()  # and so the generator ends, which is running and could not be closed
        else:
            await events.aclose()


def _line(event: dict[str, Any]) -> str:
    """The event in ASCII, since readers differ in what else ends a line."""
    return f"data: {json.dumps(event)}\n\n"
