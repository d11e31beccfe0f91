"""The decoder deployment: videos and images by address in, facts and chunks of frames out."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from occam.errors import OccamError
from services import metrics
from services.messages import DecodedChunk, Described, FrameChoice, Medium, Source
from services.settings import Settings


class Media(Protocol):
    """What the decoder deployment stands on: `services.media.LocalMedia`, or a fake."""

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        """Fetch (unless the bytes of `digest` are here), probe, and plan which frames to take.

        frames: what to sample if `choice` leaves it open. UnsupportedVideo if the bytes are of another kind than the
        source's, SourceUnavailable if they are not those of `digest`.
        """
        ...

    def decode(self, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        """The planned frames, in chunks as they are decoded; closing the generator ends the decoding."""
        ...

    async def forget(self, digest: str) -> None:
        """Delete the local copy of a video or image."""
        ...

    async def missing_walls(self) -> tuple[str, ...]:
        """Walls of the decoding sandbox that this host does not have, by the names in `Sandbox`."""
        ...


class Decoder:
    """A thin shell round `Media` that keeps the work ledger."""

    def __init__(self, settings: Settings, media: Callable[[Settings], Media]) -> None:
        self._media = media(settings)

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        """See `Media.describe`."""
        try:
            described = await self._media.describe(source, choice, frames, digest)
        except OccamError as error:
            metrics.DECODE_FAILURES.labels(error.code).inc()
            raise
        metrics.record_stages(described.stats)
        return described

    async def decode(self, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        """See `Media.decode`."""
        try:
            async for chunk in self._media.decode(medium, chunk_frames):
                metrics.FRAMES_DECODED.labels(chunk.backend).inc(len(chunk.frames))
                metrics.record_stages((chunk.stats,))
                yield chunk
        except OccamError as error:
            metrics.DECODE_FAILURES.labels(error.code).inc()
            raise
        except asyncio.CancelledError:
            metrics.CANCELLATIONS.labels("decode").inc()
            raise

    async def forget(self, digest: str) -> None:
        """See `Media.forget`."""
        await self._media.forget(digest)

    async def missing_walls(self) -> tuple[str, ...]:
        """See `Media.missing_walls`."""
        return await self._media.missing_walls()
