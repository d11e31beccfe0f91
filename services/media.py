"""Videos and images on this node: fetched under guard, kept by digest, probed once, decoded in a child process."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from occam.errors import SourceUnavailable
from occam.stats import StageStats
from pipelines.ingest.decode import FrameStream, route
from pipelines.ingest.limits import Limits
from pipelines.ingest.policy import SourcePolicy
from pipelines.ingest.probe import VideoFacts, probe
from pipelines.ingest.sample import Sampling, sample
from pipelines.ingest.source import LocalFile, fetch, open_local
from services.messages import DecodedChunk, Described, FrameChoice, Medium, Source
from services.settings import Settings

_PACKAGES = {"decord": "decord", "pyav": "av", "pillow": "pillow"}
_REMEMBERED = 1024


@dataclass(frozen=True, kw_only=True)
class _Known:
    local: LocalFile
    facts: VideoFacts


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
        self._cache_bytes = settings.video_cache_bytes
        self._directory = Path(settings.directory, "media")
        self._directory.mkdir(parents=True, exist_ok=True)
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        """See `services.decoder.Media`."""
        known, stats = await self._open(source, digest)
        facts = known.facts
        sampling = Sampling(
            frames=None if choice.fps else frames,
            fps=choice.fps,
            max_frames=choice.max_frames,
            start_s=choice.start_s or 0.0,
            end_s=choice.end_s,
        )
        indices = sample(facts.pts_seconds, sampling)
        backend = route(known.local, facts)
        medium = Medium(
            kind=known.local.kind,
            url=source.address,
            digest=known.local.digest,
            duration_s=facts.duration_s,
            frames=len(facts),
            indices=tuple(indices.tolist()),
            seconds=min(choice.end_s or facts.duration_s, facts.duration_s) - (choice.start_s or 0.0),
            decoder=f"{backend} {version(_PACKAGES[backend])}",
        )
        return Described(medium=medium, stats=stats)

    async def decode(self, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        """See `services.decoder.Media`."""
        known, _ = await self._open(Source(url=medium.url, kind=medium.kind), medium.digest)
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

    async def forget(self, digest: str) -> None:
        """See `services.decoder.Media`."""
        self._known.pop(digest, None)
        self._path(digest).unlink(missing_ok=True)

    async def _open(self, source: Source, digest: str | None) -> tuple[_Known, tuple[StageStats, ...]]:
        """The local copy and its facts; fetched if its bytes are not here, probed if nobody has yet."""
        known = self._known.get(digest or "")
        if known is not None and known.local.path.exists():
            self._known.move_to_end(known.local.digest)
            return known, ()
        started = time.monotonic()
        local = await self._local(source, digest)
        fetched = time.monotonic()
        facts = await asyncio.to_thread(probe, local, self._limits)
        known = self._known[local.digest] = _Known(local=local, facts=facts)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known, (
            StageStats(stage="fetch", started_s=started, ended_s=fetched),
            StageStats(stage="probe", started_s=fetched, ended_s=time.monotonic()),
        )

    async def _local(self, source: Source, digest: str | None) -> LocalFile:
        """The copy that is here, or a fresh one; SourceUnavailable if the bytes of `digest` are not to be had."""
        if digest is not None and self._path(digest).exists():
            return await asyncio.to_thread(open_local, self._path(digest), self._limits)
        if digest is not None and source.url.startswith("data:"):
            # Its address is a digest by now: the bytes came once, with the request.
            raise SourceUnavailable("The image came inside an earlier request and is not kept any more. Send it again.")
        with TemporaryDirectory(dir=self._directory) as scratch:
            local = await fetch(source.url, self._policy, self._limits, Path(scratch), kind=source.kind)
            if digest not in (None, local.digest):
                raise SourceUnavailable("The address gives another file now than when it was first fetched.", "url")
            if local.path.is_relative_to(scratch):
                local = replace(local, path=local.path.rename(self._path(local.digest)))
        self._trim(local.path)
        return local

    def _trim(self, newest: Path) -> None:
        """Delete the oldest copies until the rest fits."""
        copies = sorted((path for path in self._directory.iterdir() if path.is_file()), key=lambda p: p.stat().st_mtime)
        total = sum(path.stat().st_size for path in copies)
        for path in copies:
            if total <= self._cache_bytes:
                return
            if path != newest:
                total -= path.stat().st_size
                path.unlink()

    def _path(self, digest: str) -> Path:
        return self._directory / digest


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
