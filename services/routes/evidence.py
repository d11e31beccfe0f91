"""What answers rest on, as pictures."""

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Response

from services.overlay import View
from services.overlays import Overlays
from services.routes.responses import ERRORS
from services.schemas import MAX_NAME
from services.tenants import Caller

_MOST = 2**31 - 1
_PNG: dict[str, Any] = {
    "description": "The frame, its longest side at most 1280 pixels.",
    "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
}


def add_routes(api: FastAPI, overlays: Overlays) -> None:
    """Overlays of frames."""

    @api.get(
        "/v1/sessions/{session_id}/turns/{turn}/frames/{index}.png",
        response_class=Response,
        responses={**ERRORS, 200: _PNG},
        tags=["evidence"],
    )
    async def frame(
        session_id: Annotated[str, Path(max_length=MAX_NAME, examples=["session-3KfLq0mZ5cV1bY8d"])],
        turn: Annotated[int, Path(ge=0, le=_MOST, description="Turn of the session, from 0.", examples=[0])],
        index: Annotated[
            int, Path(ge=0, le=_MOST, description="`index` of a frame in the answer's evidence.", examples=[12])
        ],
        tenant: Caller,
        view: Annotated[
            View,
            Query(
                description="`kept`: what reached the upper layers is clear, all else dimmed; `scores`: how much the "
                "question attends to each patch, the threshold being the middle of the colours. What the model never "
                "saw, since it cuts frames to a square, is hatched."
            ),
        ] = "kept",
        medium: Annotated[
            int, Query(ge=0, le=_MOST, description="Which of the conversation's videos and images, from 0.")
        ] = 0,
    ) -> Response:
        """The frame with what an answer rests on, for a turn that was asked with `evidence: true`."""
        png = await overlays.png(session_id, turn, medium, index, view, tenant)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
