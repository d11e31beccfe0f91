"""Posted videos: described at once, encoded in the background, forgotten on request."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from anyio import CancelScope
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from occam.errors import InvalidInput, OccamError
from services import origin
from services.conversations import Conversations
from services.errors import NotCached
from services.messages import UPLOAD, FrameChoice, Source, Warmed
from services.quotas import Quotas, Reservation
from services.records import VideoRecord
from services.references import References
from services.remote import call
from services.router import affinity
from services.settings import Settings
from services.state import State, new_id
from services.uploads import Uploads


class Videos:
    """The index of posted videos."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        references: References,
        quotas: Quotas,
        conversations: Conversations,
        decoder: DeploymentHandle,
        workers: Mapping[str, DeploymentHandle],
        uploads: Uploads,
    ) -> None:
        self._salt = settings.salt
        self._state = state
        self._references = references
        self._quotas = quotas
        self._uploads = uploads
        self._conversations = conversations
        self._decoder = decoder
        self._workers = workers
        self._missing_walls: tuple[str, ...] | None = None
        self._warming: dict[str, asyncio.Task[None]] = {}

    async def add(self, url: str, tenant: str) -> VideoRecord:
        """Fetch and describe the video; its frames are encoded for the default model behind the answer's back."""
        return await self._add(new_id("video"), Source(url=url, kind="video"), None, tenant)

    async def upload(self, request: Request, tenant: str) -> VideoRecord:
        """The same for the video in a request's form."""
        video_id = new_id("video")
        async with self._uploads.received(request, video_id, tenant) as digest:
            return await self._add(video_id, Source(url=f"{UPLOAD}{digest}", kind="video"), digest, tenant)

    async def _add(self, video_id: str, source: Source, digest: str | None, tenant: str) -> VideoRecord:
        async with self._conversations.until(self._conversations.deadline()):
            model = await self._conversations.model(None, {"video"})
            described = await self._conversations.describe(model, source, FrameChoice(), digest)
            record = VideoRecord(id=video_id, tenant=tenant, video=described.medium, status="processing")
            reservation = await self._reserve(model, record)
            try:
                await self._keep(model, record)
            except BaseException:
                with CancelScope(shield=True):  # a client that hung up must not pay either
                    await reservation.give_back()
                raise
        self._start(model, record, reservation)
        return record

    async def get(self, video_id: str, tenant: str) -> VideoRecord:
        """A video's record; NotFound. One that an ingress which has died was encoding is encoded again."""
        warming = video_id in self._warming  # asked first: it may end while the record is read
        record = await self._state.video(video_id, tenant)
        if record.status == "processing" and not warming:
            model = await self._conversations.model(None, {"video"})
            if video_id not in self._warming:  # nobody else asked meanwhile
                self._start(model, record, await self._quotas.reserve(tenant, 0.0))
        return record

    async def forget(self, video_id: str, tenant: str) -> None:
        """Let go of the video and, where no other one shares them, of its states and copies; its sessions end."""
        record = await self._state.video(video_id, tenant)
        async with self._conversations.until(self._conversations.deadline()):
            await self._references.release(record)
        if record.video.is_upload:
            with suppress(OccamError):  # what stays is swept later
                await self._uploads.sweep()

    async def sandbox(self) -> str:
        """What guards the decoding of a stranger's file, in words for `/readyz`; the decoder is asked once."""
        if self._missing_walls is None:
            self._missing_walls = await call(self._decoder, "missing_walls")
        return f"without {' and '.join(self._missing_walls)}" if self._missing_walls else "complete"

    async def _keep(self, model: str, record: VideoRecord) -> None:
        """Keep the record. If copies of the bytes went since they were described, they are fetched again before."""
        video = record.video
        async with self._state.alone_with(video.digest) as dropped:
            if dropped:
                source = Source(url=video.url, kind="video")
                await self._conversations.describe(model, source, FrameChoice(), video.digest)
            await self._state.save_video(record)

    async def _reserve(self, model: str, record: VideoRecord) -> Reservation:
        """The seconds that must be decoded: none of a video whose state is cached."""
        seconds = record.video.charged_s
        if self._quotas.counts_video(record.tenant):
            with suppress(NotCached):
                await self._warmed(model, record, may_decode=False)
                seconds = 0.0
        return await self._quotas.reserve(record.tenant, seconds)

    async def _warmed(self, model: str, record: VideoRecord, may_decode: bool) -> Warmed:
        salt = self._salt(record.tenant)
        worker, video = self._workers[model], record.video
        asked_by = origin.current()
        warmed: Warmed = await call(worker, "warm", video, salt, may_decode, asked_by, affinity=affinity((video,)))
        return warmed

    def _start(self, model: str, record: VideoRecord, reservation: Reservation) -> None:
        task = self._warming[record.id] = asyncio.create_task(self._warm(model, record, reservation))
        task.add_done_callback(lambda _: self._warming.pop(record.id))

    async def _warm(self, model: str, record: VideoRecord, reservation: Reservation) -> None:
        try:
            warmed = await self._warmed(model, record, may_decode=True)
        except InvalidInput as error:
            ended = replace(record, status="failed", error_code=error.code, error=error.message)
        except OccamError:
            # The service's trouble, not the video's: a question will meet it, or not, on its own.
            await reservation.give_back()
            ended = replace(record, status="ready")
        else:
            if warmed.cache != "none":  # somebody else decoded it meanwhile
                await reservation.give_back()
            await self._references.note(record.id, record.tenant, record.video.digest, warmed.key)
            ended = replace(record, status="ready")
        if not await self._state.update_video(ended):
            await self._references.release(record)
