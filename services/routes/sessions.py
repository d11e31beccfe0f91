"""Sessions: what has been asked and answered, and forgetting it."""

from fastapi import FastAPI

from services.routes.responses import ERRORS
from services.session_schemas import SessionBody
from services.state import State
from services.tenants import Caller


def add_routes(api: FastAPI, state: State) -> None:
    """Sessions."""

    @api.get("/v1/sessions/{session_id}", responses=ERRORS, tags=["sessions"])
    async def get_session(session_id: str, tenant: Caller) -> SessionBody:
        """A session: its model, its media, its turns as texts, and when it ends. Looking at it does not prolong it."""
        return SessionBody.of(*await state.session(session_id, tenant))

    @api.delete("/v1/sessions/{session_id}", status_code=204, responses=ERRORS, tags=["sessions"])
    async def delete_session(session_id: str, tenant: Caller) -> None:
        """Forget a session. A turn that is being answered ends, and is not kept."""
        await state.delete_session(session_id, tenant)
