"""The decoder deployment: videos and images by address in, facts and chunks of frames out."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from occam.errors import OccamError
from occam.types import Framing
from services import logs, metrics, tracing
from services.messages import DecodedChunk, Described, FrameChoice, Medium, Source, UploadPiece
from services.origin import NOBODY, Origin, adopt
from services.overlay import Patches, View, draw
from services.running import Running, Tally
from services.settings import Settings
from services.upload_files import UploadFiles


class Media(Protocol):
    """What the decoder deployment stands on: `services.media.LocalMedia`, or a fake."""

    @property
    def uploads(self) -> UploadFiles:
        """The uploaded videos that are here."""
        ...

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
        settings = settings.of_node()
        logs.configure(settings, "decoder")
        tracing.configure(settings, "decoder")
        self._media = media(settings)
        self._tally = Tally()

    async def describe(
        self, source: Source, choice: FrameChoice, frames: int, digest: str | None, origin: Origin = NOBODY
    ) -> Described:
        """See `Media.describe`."""
        adopt(origin)
        try:
            with self._tally.of("describe"):
                described = await self._media.describe(source, choice, frames, digest)
        except OccamError as error:
            metrics.DECODE_FAILURES.labels(error.code).inc()
            raise
        metrics.record_stages(described.stats)
        tracing.stages(described.stats)
        return described

    async def decode(self, medium: Medium, chunk_frames: int, origin: Origin = NOBODY) -> AsyncGenerator[DecodedChunk]:
        """See `Media.decode`."""
        adopt(origin)
        try:
            with self._tally.of("decode"):
                async with aclosing(self._media.decode(medium, chunk_frames)) as chunks:
                    async for chunk in chunks:
                        metrics.FRAMES_DECODED.labels(chunk.backend).inc(len(chunk.frames))
                        metrics.record_stages((chunk.stats,))
                        tracing.stages((chunk.stats,), occam__frames=len(chunk.frames))
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

    async def running(self) -> Running:
        """What this replica is at."""
        return self._tally.running()

    async def upload(self, piece: UploadPiece) -> None:
        """See `UploadFiles.take`."""
        await self._media.uploads.take(piece)

    async def finish_upload(self, upload: str) -> str:
        """See `UploadFiles.finish`."""
        return await self._media.uploads.finish(upload)

    async def close_upload(self, upload: str) -> None:
        """See `UploadFiles.close`."""
        self._media.uploads.close(upload)

    async def uploads(self) -> tuple[str, ...]:
        """See `UploadFiles.kept`."""
        return self._media.uploads.kept()

    async def open_uploads(self) -> int:
        """Uploads that have begun and are not closed."""
        return self._media.uploads.open

    async def forget_uploads(self, digests: tuple[str, ...]) -> None:
        """See `UploadFiles.forget`."""
        self._media.uploads.forget(digests)

    async def overlay(
        self, medium: Medium, views: list[Patches], framing: Framing, view: View, origin: Origin = NOBODY
    ) -> bytes:
        """A PNG of the medium's one wanted frame, with what was kept of it."""
        async with aclosing(self.decode(medium, 1, origin)) as chunks:
            frame = (await anext(chunks)).frames.frames[0]
        return await asyncio.to_thread(draw, frame, views, framing, view)

    async def missing_walls(self) -> tuple[str, ...]:
        """See `Media.missing_walls`."""
        return await self._media.missing_walls()
