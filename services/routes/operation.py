"""Probes and metrics."""

import asyncio
from typing import Any

from fastapi import Depends, FastAPI, Response

from services import metric_files
from services.conversations import Conversations
from services.kv import Pulse
from services.routes.responses import only
from services.schemas import Alive, Ready
from services.settings import Settings
from services.state import State
from services.tenants import tenant_of
from services.videos import Videos

_METRICS: dict[str, Any] = {
    "description": "Samples in Prometheus' text format.",
    "content": {
        "text/plain": {
            "schema": {"type": "string"},
            "example": 'occam_requests_total{outcome="ok",route="/v1/videos"} 1.0\n',
        }
    },
}


def add_routes(api: FastAPI, settings: Settings, state: State, conversations: Conversations, videos: Videos) -> None:
    """Probes and metrics."""
    cache = Pulse(settings.kv_url, settings.kv_detail)

    @api.get("/healthz", tags=["operation"])
    async def healthz() -> Alive:
        """Alive: this process answers."""
        return Alive()

    @api.get("/startupz", responses=only(500, 503), tags=["operation"])
    async def startupz() -> Alive:
        """Started: every model is loaded and warm."""
        await conversations.served()
        return Alive()

    @api.get("/readyz", responses=only(500, 503), tags=["operation"])
    async def readyz() -> Ready:
        """Ready: models are warm and the store of sessions takes them; says which tiers, durability, walls are live."""
        await state.check()
        return Ready(
            models=list(await conversations.served()),
            kv=await cache.detail(),
            state=settings.state_detail,
            sandbox=await videos.sandbox(),
            quantization=settings.quantization,
            kv_wire=settings.kv_wire,
        )

    @api.get(
        "/metrics",
        response_class=Response,
        dependencies=[Depends(tenant_of)],
        responses={**only(401), 200: _METRICS},
        tags=["operation"],
    )
    async def prometheus() -> Response:
        """The numbers of all processes of this node, in Prometheus' text format."""
        text = await asyncio.to_thread(metric_files.render, settings.metrics_directory)
        return Response(text, media_type=metric_files.CONTENT_TYPE)
