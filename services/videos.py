"""Posted videos: described at once, encoded in the background, forgotten on request."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from ray.serve.handle import DeploymentHandle

from occam.errors import InvalidInput, OccamError
from occam.kv.key import KVKey
from services.conversations import Conversations
from services.messages import FrameChoice, Source
from services.records import VideoRecord
from services.remote import broadcast, call
from services.state import State, new_id


class Videos:
    """The index of posted videos."""

    def __init__(
        self,
        state: State,
        conversations: Conversations,
        decoder: DeploymentHandle,
        workers: Mapping[str, DeploymentHandle],
    ) -> None:
        self._state = state
        self._conversations = conversations
        self._decoder = decoder
        self._workers = workers
        self._missing_walls: tuple[str, ...] | None = None
        self._warming: dict[str, asyncio.Task[None]] = {}

    async def add(self, url: str) -> VideoRecord:
        """Fetch and describe the video; its frames are encoded for the default model behind the answer's back."""
        async with self._conversations.until(self._conversations.deadline()):
            model = await self._conversations.model(None, {"video"})
            described = await self._conversations.describe(model, Source(url=url, kind="video"), FrameChoice())
            record = VideoRecord(id=new_id("video"), video=described.medium, status="processing")
            await self._state.save_video(record)
        self._start(model, record)
        return record

    async def get(self, video_id: str) -> VideoRecord:
        """A video's record; NotFound. One that an ingress which has died was encoding is encoded again."""
        record = await self._state.video(video_id)
        if record.status == "processing" and video_id not in self._warming:
            model = await self._conversations.model(None, {"video"})
            if video_id not in self._warming:  # nobody else asked meanwhile
                self._start(model, record)
        return record

    async def forget(self, video_id: str) -> None:
        """Drop the video's cached states and its local copies, then its record; its sessions end with it."""
        record = await self._state.video(video_id)
        await self._drop(record, await self._state.keys(video_id))
        await self._state.delete_video(video_id)

    async def sandbox(self) -> str:
        """What guards the decoding of a stranger's file, in words for `/readyz`; the decoder is asked once."""
        if self._missing_walls is None:
            self._missing_walls = await call(self._decoder, "missing_walls")
        return f"without {' and '.join(self._missing_walls)}" if self._missing_walls else "complete"

    def _start(self, model: str, record: VideoRecord) -> None:
        task = self._warming[record.id] = asyncio.create_task(self._warm(model, record))
        task.add_done_callback(lambda _: self._warming.pop(record.id))

    async def _warm(self, model: str, record: VideoRecord) -> None:
        keys: list[KVKey] = []
        try:
            keys.append(await call(self._workers[model], "warm", record.video))
            await self._state.note_key(record.id, keys[0])
            ended = replace(record, status="ready")
        except InvalidInput as error:
            ended = replace(record, status="failed", error_code=error.code, error=error.message)
        except OccamError:
            # The service's trouble, not the video's: a question will meet it, or not, on its own.
            ended = replace(record, status="ready")
        if not await self._state.update_video(ended):
            await self._drop(record, keys)

    async def _drop(self, record: VideoRecord, keys: list[KVKey]) -> None:
        for worker in self._workers.values():
            await broadcast(worker, "forget", keys)
        await broadcast(self._decoder, "forget", record.video.digest)
