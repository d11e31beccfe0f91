"""The request ledger by itself, where what Ray's proxy does cannot be brought about at will."""

import asyncio
from collections.abc import AsyncGenerator

from prometheus_client import REGISTRY
from ray.exceptions import TaskCancelledError
from starlette.responses import StreamingResponse
from starlette.types import Message

from services.ledger import Ledger


def entered(outcome: str) -> float:
    return REGISTRY.get_sample_value("occam_requests_total", {"route": "other", "outcome": outcome}) or 0.0


async def forever() -> AsyncGenerator[bytes]:
    while True:
        yield b"."
        await asyncio.sleep(0.01)


def test_a_client_of_whom_ray_says_that_its_task_was_cancelled_has_hung_up() -> None:
    """In the middle of a stream; no failure of ours, and no exception for the log."""
    before = entered("cancelled"), entered("server_error"), entered("ok")

    async def receive() -> Message:
        await asyncio.sleep(0.05)
        raise TaskCancelledError

    async def send(_: Message) -> None:
        """Take it."""

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "path": "/", "headers": []}

    async def request() -> None:
        async with asyncio.timeout(5):
            await Ledger(StreamingResponse(forever()))(scope, receive, send)

    asyncio.run(request())
    assert (entered("cancelled"), entered("server_error"), entered("ok")) == (before[0] + 1, *before[1:])
