"""Letting go of videos: cached states and local copies go with the last video that refers to them."""

from collections.abc import Mapping, Sequence

from ray.serve.handle import DeploymentHandle

from occam.kv.key import KVKey
from services.records import VideoRecord
from services.remote import broadcast
from services.state import State


class References:
    """What posted videos refer to, on every replica. Whoever lets go of the last reference drops it there."""

    def __init__(self, state: State, decoder: DeploymentHandle, workers: Mapping[str, DeploymentHandle]) -> None:
        self._state = state
        self._decoder = decoder
        self._workers = workers

    async def note(self, video_id: str, tenant: str, digest: str, key: KVKey) -> None:
        """Remember that a state was cached for a video; if that and all like it are gone meanwhile, the state goes."""
        if await self._state.note_key(video_id, tenant, digest, key):
            return
        async with self._state.alone_with(digest):
            if not await self._state.note_key(video_id, tenant, digest, key):
                last = await self._state.last(video_id, tenant, digest)
                await self._drop([key], digest if last.copies else None)

    async def release(self, record: VideoRecord) -> None:
        """Forget a video. Its record goes at the end, so that whoever is told of a failure can try again."""
        digest = record.video.digest
        async with self._state.alone_with(digest):
            last = await self._state.last(record.id, record.tenant, digest)
            await self._drop(last.keys, digest if last.copies else None)
            # Answers under way may have cached more meanwhile.
            late = await self._state.release(record)
            dropped = {key.digest for key in last.keys}
            await self._drop([key for key in late.keys if key.digest not in dropped], None)

    async def _drop(self, keys: Sequence[KVKey], digest: str | None) -> None:
        if keys:
            for worker in self._workers.values():
                await broadcast(worker, "forget", keys)
        if digest is not None:
            await broadcast(self._decoder, "forget", digest)
