"""Videos and images on this node: fetched under guard, kept by digest, probed once, decoded in a child process."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from occam.errors import InvalidInput, SourceUnavailable
from occam.stats import StageStats
from pipelines.ingest.decode import FrameStream, route, walked_s
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.policy import SourcePolicy
from pipelines.ingest.probe import VideoFacts, probe_async
from pipelines.ingest.process import in_reader, walls_of_this_host
from pipelines.ingest.sample import Sampling, sample
from pipelines.ingest.sandbox import Sandbox
from pipelines.ingest.source import fetch
from services.copies import Copies
from services.messages import DecodedChunk, Described, FrameChoice, Medium, Source
from services.settings import Settings
from services.upload_files import UploadFiles

_PACKAGES = {"decord": "decord", "pyav": "av", "pillow": "pillow"}
_REMEMBERED, _REMEMBERED_BYTES = 1024, 64 << 20


@dataclass(frozen=True, kw_only=True)
class _Known:
    local: LocalFile
    facts: VideoFacts


def sampling_of(choice: FrameChoice, frames: int) -> Sampling:
    """What a choice comes to for a model that takes so many frames by itself."""
    return Sampling(
        frames=None if choice.fps else frames,
        fps=choice.fps,
        max_frames=choice.max_frames,
        start_s=choice.start_s or 0.0,
        end_s=choice.end_s,
    )


class LocalMedia:
    """The media of one node's decoder, in `media/` under the service's directory."""

    def __init__(self, settings: Settings) -> None:
        self._limits = limits_of(settings)
        self._policy = SourcePolicy(
            allowed_hosts=settings.allowed_hosts,
            allow_private_hosts=settings.allow_private_hosts,
            file_roots=tuple(Path(root) for root in settings.file_roots),
        )
        self._deadline_s = settings.deadline_s
        # Apart from each other: slow servers must not keep what is here from being decoded.
        self._fetches = asyncio.Semaphore(settings.max_fetches)
        self._children = asyncio.Semaphore(settings.max_decodes)
        self.uploads = UploadFiles(
            Path(settings.directory, "uploads"), upload_limits(settings), settings.upload_bytes, 2 * settings.upload_s
        )
        self._copies = Copies(Path(settings.directory, "media"), settings.video_cache_bytes)
        self._walls: Sandbox | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        """See `services.decoder.Media`."""
        with ExitStack() as uses:
            known, stats = await self._open(source, digest, uses)
        facts = known.facts
        indices = sample(facts.pts_seconds, sampling_of(choice, frames))
        backend = route(known.local, facts, indices)
        medium = Medium(
            kind=known.local.kind,
            url=source.address,
            digest=known.local.digest,
            duration_s=facts.duration_s,
            width=facts.width,
            height=facts.height,
            frames=len(facts),
            indices=tuple(indices.tolist()),
            seconds=_seconds(facts, choice),
            walked_s=walked_s(known.local, facts, indices),
            decoder=f"{backend} {version(_PACKAGES[backend])}",
        )
        return Described(medium=medium, stats=stats)

    async def decode(self, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        """See `services.decoder.Media`."""
        with ExitStack() as uses:
            known, _ = await self._open(Source(url=medium.url, kind=medium.kind), medium.digest, uses)
            async with self._children, aclosing(self._chunks(known, medium, chunk_frames)) as chunks:
                async for chunk in chunks:
                    yield chunk
            # A copy is never written to; a file under a root is its owner's, and was opened anew by the decoder.
            if known.local.path.parent not in (self._copies.directory, self.uploads.copies.directory) and (
                not known.local.is_current
            ):
                raise SourceUnavailable("The file changed while it was decoded.", "url")

    async def forget(self, digest: str) -> None:
        """See `services.decoder.Media`."""
        self._known.pop(digest, None)
        self._copies.forget(digest)

    async def missing_walls(self) -> tuple[str, ...]:
        """See `services.decoder.Media`."""
        if self._walls is None:
            self._walls = await in_reader(walls_of_this_host, self._limits)
        return self._walls.missing

    async def _chunks(self, known: _Known, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        stream = FrameStream(
            known.local,
            known.facts,
            np.array(medium.indices),
            self._limits,
            chunk_frames=chunk_frames,
            deadline_s=self._deadline_s,
        )
        started = stream.stats.started_s
        try:
            async for frames in stream.chunks():
                ended = stream.stats.chunk_ended_s[-1]
                stats = StageStats(stage="decode", started_s=started, ended_s=ended)
                yield DecodedChunk(frames=frames, backend=list(stream.stats.backends)[-1], stats=stats)
                started = ended
        finally:
            stream.close()

    async def _open(self, source: Source, digest: str | None, uses: ExitStack) -> tuple[_Known, tuple[StageStats, ...]]:
        """The local file and its facts; fetched if its bytes are not here, probed if nobody has yet.

        uses: what holds the file here until the caller is through with it
        """
        if digest is not None:
            uses.enter_context(self._copies_of(source).in_use(digest))
            known = self._known.get(digest)
            if known is not None and known.local.is_current:
                self._known.move_to_end(digest)
                return known, ()
        started = time.monotonic()
        local = await self._local(source, digest, uses)
        fetched = time.monotonic()
        known = _Known(local=local, facts=await self._facts(local))
        self._remember(known)
        return known, (
            StageStats(stage="fetch", started_s=started, ended_s=fetched),
            StageStats(stage="probe", started_s=fetched, ended_s=time.monotonic()),
        )

    def _remember(self, known: _Known) -> None:
        """Keep it in front of what makes room for it: as many as are allowed, and no more bytes of timelines."""
        self._known[known.local.digest] = known
        self._known.move_to_end(known.local.digest)
        left = sum(each.facts.nbytes for each in self._known.values())
        while len(self._known) > _REMEMBERED or left > _REMEMBERED_BYTES:
            _, oldest = self._known.popitem(last=False)
            left -= oldest.facts.nbytes

    async def _facts(self, local: LocalFile) -> VideoFacts:
        """What a probe says of the file; the same bytes have the same facts, wherever they came from this time."""
        known = self._known.get(local.digest)
        if known is not None:
            return known.facts
        async with self._children:
            return await probe_async(local, self._limits)

    async def _local(self, source: Source, digest: str | None, uses: ExitStack) -> LocalFile:
        """The copy that is here, or a fresh one; SourceUnavailable if the bytes of `digest` are not to be had."""
        if digest is not None and (path := self._copies_of(source).path(digest)).exists():
            with suppress(InvalidInput):  # a damaged copy is as good as none
                copy = await asyncio.to_thread(open_local, path, self._limits)
                if copy.digest == digest:
                    return copy
        if digest is not None and source.is_upload:
            raise SourceUnavailable("The video was uploaded, and is not on this machine any more. Upload it again.")
        if digest is not None and source.url.startswith("data:"):
            # Its address is a digest by now: the bytes came once, with the request.
            raise SourceUnavailable("The image came inside an earlier request and is not kept any more. Send it again.")
        with self._copies.scratch() as scratch:
            async with self._fetches if source.is_remote else nullcontext():
                local = await fetch(source.url, self._policy, self._limits, scratch, kind=source.kind)
            if digest not in (None, local.digest):
                raise SourceUnavailable("The address gives another file now than when it was first fetched.", "url")
            uses.enter_context(self._copies.in_use(local.digest))
            return self._copies.keep(local) if local.path.is_relative_to(scratch) else local

    def _copies_of(self, source: Source) -> Copies:
        return self.uploads.copies if source.is_upload else self._copies


def _seconds(facts: VideoFacts, choice: FrameChoice) -> float:
    """Length of the chosen range, as far as the video covers it; like the frames' times, it counts from second 0."""
    begin = float(facts.pts_seconds[0])
    end = begin + facts.duration_s
    first, last = (min(max(given, begin), end) for given in (choice.start_s or 0.0, choice.end_s or end))
    return last - first


def upload_limits(settings: Settings) -> Limits:
    """The limits on a file that is uploaded: none is larger than all of its tenant may be together."""
    return replace(limits_of(settings), max_bytes=min(settings.max_video_bytes, settings.most_upload_bytes))


def limits_of(settings: Settings) -> Limits:
    """The limits that the settings put on a video or image."""
    return Limits(
        max_bytes=settings.max_video_bytes,
        max_seconds=settings.max_video_seconds,
        max_pixels=settings.max_video_pixels,
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_frames=settings.max_video_frames,
        total_s=settings.deadline_s,
    )
