"""What is remembered between requests, as plain data."""

from dataclasses import dataclass
from typing import Literal

from occam.types import Turn
from services.messages import Medium, PruningChoice


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """A video that was posted. `failed` says that its frames cannot be had, with the error's code and message."""

    id: str
    tenant: str
    video: Medium
    status: Literal["processing", "ready", "failed"]
    error_code: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Session:
    """A conversation over its media: everything that is needed to go on with it on any replica.

    turns: as ids; texts: the same as (question, answer), for clients that send them again
    """

    id: str
    tenant: str
    model: str
    video_id: str | None
    media: tuple[Medium, ...]
    pruning: PruningChoice
    system: str
    turns: tuple[Turn, ...]
    texts: tuple[tuple[str, str], ...]
