"""Uploads as the ingress sees them: bodies passed on to the decoder in pieces, and files that nobody needs any more."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from anyio import CancelScope
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request

from occam.errors import OccamError, VideoTooLarge
from services.background import check_cancelled
from services.errors import DeadlineExceeded, MalformedRequest
from services.form import OVERHEAD, FileForm
from services.media import upload_limits
from services.messages import UploadPiece
from services.remote import broadcast, call
from services.settings import Settings
from services.state import State
from services.upload_room import UploadRoom

PIECE_BYTES = 1 << 20
SWEEP_S = 600.0
_DIGITS = 20


class Uploads:
    """Takes uploads, and deletes those that no record of a video refers to."""

    def __init__(self, settings: Settings, state: State, decoder: DeploymentHandle) -> None:
        self._limits = upload_limits(settings)
        self._upload_s = settings.upload_s
        self._state = state
        self._room = UploadRoom(settings, state)
        self._decoder = decoder

    @asynccontextmanager
    async def received(self, request: Request, video_id: str, tenant: str) -> AsyncGenerator[str]:
        """The digest of the file in a request's form; inside, it stays though no record refers to it yet.

        video_id: of the record that it will have; what does not get one is deleted. MalformedRequest, UnsupportedVideo,
        VideoTooLarge, QuotaExceeded, Overloaded, StoreUnavailable, SourceUnavailable, DeadlineExceeded.
        """
        digest = None
        try:
            digest = await self._in_time(request, video_id, tenant)
            yield digest
        except BaseException:
            # Shielded: a client that hangs up must not leave a file. What cannot be reached now is swept later.
            with CancelScope(shield=True), suppress(OccamError):
                await self._close(video_id)
                if digest is not None:
                    await self.sweep()
            raise
        with suppress(OccamError):  # it has its record; the decoder closes by itself what stays open
            await self._close(video_id)

    async def sweep(self) -> None:
        """Delete the uploaded files to which no record refers; call it when a record of one has gone."""
        kept = set(await call(self._decoder, "uploads"))
        if gone := kept - await self._state.uploads():
            await broadcast(self._decoder, "forget_uploads", tuple(gone))

    async def sweep_for_ever(self) -> None:
        """Sweep now and then, for records that expire."""
        while True:
            with suppress(OccamError):  # nothing is deleted on a guess; the next time will do
                await self.sweep()
            check_cancelled()
            await asyncio.sleep(SWEEP_S)

    async def _close(self, video_id: str) -> None:
        await broadcast(self._decoder, "close_upload", video_id)
        await self._room.give_back(video_id)

    async def _in_time(self, request: Request, video_id: str, tenant: str) -> str:
        try:
            async with asyncio.timeout(self._upload_s):
                await self._room.take(tenant, video_id, self._most(request))
                size, digest = await self._pass_on(request, video_id)
                await self._room.take(tenant, video_id, size, digest)
                return digest
        except TimeoutError as error:
            raise DeadlineExceeded(f"The upload took more than {self._upload_s:g} s.") from error
        except ClientDisconnect:
            raise MalformedRequest("The upload breaks off: its client has gone.") from None

    async def _pass_on(self, request: Request, upload: str) -> tuple[int, str]:
        """The file's bytes and its digest."""
        form = FileForm(request.headers["content-type"])
        offset, size, piece = 0, 0, bytearray()
        async for data in request.stream():
            piece += form.feed(data)
            size = offset + len(piece)
            self._limits.check_bytes("video", size)
            if len(piece) >= PIECE_BYTES:
                await self._send(upload, offset, piece)
                offset = size
        form.close()
        if piece or not offset:
            await self._send(upload, offset, piece)
        digest: str = await call(self._decoder, "finish_upload", upload)
        return size, digest

    async def _send(self, upload: str, offset: int, piece: bytearray) -> None:
        await call(self._decoder, "upload", UploadPiece(upload=upload, offset=offset, data=bytes(piece)))
        piece.clear()

    def _most(self, request: Request) -> int:
        """Bytes that the file may have; a body that is too large by its own word need not come."""
        announced = request.headers.get("content-length", "")
        if "transfer-encoding" in request.headers or not announced.isdecimal() or len(announced) >= _DIGITS:
            return self._limits.max_bytes  # where a body comes in chunks, its length is not what it says
        if int(announced) > self._limits.max_bytes + OVERHEAD:
            raise VideoTooLarge(
                f"The form has {announced} bytes, and the video in it may have {self._limits.max_bytes}.", "file"
            )
        return min(int(announced), self._limits.max_bytes)
