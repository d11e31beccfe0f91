"""The whole service in this process, over fakes: quick enough to test every route and every failure."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from occam.config import EngineConfig
from occam.engine import Engine
from services.background import ended
from services.decoder import Decoder, Media
from services.ingress import Ingress
from services.settings import Settings
from services.worker import Worker
from tests.fakes import FakeEngine, FakeMedia
from tests.services.local import LocalHandle

MODEL = "fake"


@dataclass(frozen=True)
class World:
    """Clients of a service of this process, and the objects inside it; `worker` is that of the first model."""

    http: httpx.AsyncClient
    worker: LocalHandle
    decoder: LocalHandle
    api: FastAPI

    async def post_video(self, url: str = "fake://clip") -> str:
        """The id of a video whose frames are encoded, or cannot be."""
        response = await self.http.post("/v1/videos", json={"url": url})
        assert response.status_code == 200, response.text
        video = response.json()["id"]
        while (await self.http.get(f"/v1/videos/{video}")).json()["status"] == "processing":
            await asyncio.sleep(0.02)
        return video

    async def query(self, video: str, question: str, **options: Any) -> dict[str, Any]:
        response = await self.http.post(f"/v1/videos/{video}/queries", json={"question": question, **options})
        assert response.status_code == 200, response.text
        return response.json()


Scene = Callable[[World], Awaitable[None]]
Play = Callable[..., None]
"""Runs a scene in a fresh service of some settings."""


@asynccontextmanager
async def world(
    directory: Path,
    redis_url: str,
    media: Callable[[Settings], Media] = FakeMedia,
    load: Callable[[EngineConfig], Engine] = FakeEngine.load,
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    given = {"models": (MODEL,), "kv_url": redis_url, "state_url": redis_url, "directory": str(directory)}
    settings = Settings(**(given | options))
    settings.metrics_directory.mkdir(exist_ok=True)
    decoder = LocalHandle(Decoder(settings, media))
    workers = {model: LocalHandle(Worker(settings, model, load, decoder)) for model in settings.models}
    ingress = Ingress(settings, decoder, workers)
    api = ingress.__serve_build_asgi_app__()
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://occam", headers=headers, timeout=30)
    try:
        async with api.router.lifespan_context(api), client as http:
            yield World(http, workers[settings.models[0]], decoder, api)
    finally:
        # Where each is a process, what it is at ends with it, and its connections do.
        await ended(*ingress._videos._warming.values())
        await ingress._state._redis.aclose()
        for worker in workers.values():
            await worker.target._prefixes._tiers.aclose()
