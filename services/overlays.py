"""Pictures of what an answer rests on: the frame decoded anew, and what its session keeps of the turn drawn over it."""

from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from occam.types import Framing
from services import origin
from services.conversations import Conversations
from services.errors import NotFound
from services.kept_evidence import unpack
from services.overlay import View
from services.remote import call
from services.state import State


class Overlays:
    """Draws overlays of the turns that were asked with `evidence: true`."""

    def __init__(self, state: State, conversations: Conversations, decoder: DeploymentHandle) -> None:
        self._state = state
        self._conversations = conversations
        self._decoder = decoder

    async def png(self, session_id: str, turn: int, medium: int, index: int, view: View, tenant: str) -> bytes:
        """The frame `index` of a medium of the session, as the turn saw it; NotFound where it did not.

        SourceUnavailable, DecodeTimeout, DeadlineExceeded where the frame cannot be had any more.
        """
        async with self._conversations.until(self._conversations.deadline()):
            session, _ = await self._state.session(session_id, tenant)
            raw = await self._state.evidence(session_id, turn)
            views = unpack(raw, medium, index) if raw is not None else []
            if not views or medium >= len(session.media):
                raise NotFound(
                    f"Turn {turn} of this session keeps no evidence of frame {index} of medium {medium}. It is kept of "
                    "turns that are asked with `evidence: true`, for the frames that their answers name.",
                    "index",
                )
            served = (await self._conversations.served()).get(session.model)
            framing = Framing() if served is None else served.framing
            chosen = replace(session.media[medium], indices=(index,))
            png: bytes = await call(self._decoder, "overlay", chosen, views, framing, view, origin.current())
            return png
