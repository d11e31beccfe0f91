"""Uploaded videos on this node: files by digest that stay until they are forgotten, since nothing can fetch them."""

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from occam.errors import Overloaded, SourceUnavailable, UnsupportedVideo
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, checked_reader, version_of
from pipelines.ingest.sniff import HEAD_BYTES, kind_of, reader_of
from services.copies import Copies, writing
from services.messages import UploadPiece

_LOST = "What had come of the upload is lost. Upload the file again."
_FULL_RETRY_S = 60.0


@dataclass(kw_only=True)
class _Open:
    """An upload that has begun and is not closed; `digest` once all of it is here."""

    began_s: float
    reader: str
    file: FileIO
    folder: ExitStack
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)
    digest: str = ""

    def write(self, data: bytes) -> None:
        """All of it now: a file without a buffer has nothing left that could fail as it is closed."""
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]
        self.hash.update(data)


class UploadFiles:
    """The uploads in one folder, which one process has to itself; another process finds those that it kept.

    limits: of one file; max_bytes: of all together; stale_s: after which an upload that nobody closes is dropped
    """

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        max_bytes: int,
        stale_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.copies = Copies(directory, sys.maxsize)
        self._limits = limits
        self._max_bytes = max_bytes
        self._stale_s = stale_s
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._kept_bytes = self._count()

    @property
    def open(self) -> int:
        """Uploads that have begun and are not closed."""
        return len(self._open)

    async def take(self, piece: UploadPiece) -> None:
        """Add the next piece to an upload, or begin it with the first, whose bytes say whether it is a video.

        UnsupportedVideo, VideoTooLarge; Overloaded if all uploads together take too much, or the machine has no room;
        SourceUnavailable if this process has not what came before.
        """
        with writing():
            if piece.offset == 0:
                self._begin(piece)
            upload = self._open.get(piece.upload)
            if upload is None or upload.size != piece.offset:
                raise SourceUnavailable(_LOST, "file")
            self._limits.check_bytes("video", upload.size + len(piece.data))
            self._check_room(len(piece.data))
            upload.size += len(piece.data)
            await asyncio.to_thread(upload.write, piece.data)

    async def finish(self, name: str) -> str:
        """The digest of an upload that is all here; nothing forgets its file before the upload is closed.

        SourceUnavailable as for `take`; Overloaded if the machine cannot keep it.
        """
        upload = self._open.get(name)
        if upload is None:
            raise SourceUnavailable(_LOST, "file")
        with writing():
            upload.file.close()
            path = Path(upload.file.name)
            version = version_of(path.stat())
            local = LocalFile(
                path=path, digest=upload.hash.hexdigest(), bytes=upload.size, reader=upload.reader, version=version
            )
            upload.digest = self.copies.keep(local).digest
            self._kept_bytes = self._count()
        return upload.digest

    def close(self, name: str) -> None:
        """End an upload: what is not all here goes, and what is, is its records' to keep."""
        if (upload := self._open.pop(name, None)) is not None:
            upload.file.close()
            upload.folder.close()

    def kept(self) -> tuple[str, ...]:
        """Digests of all that is here, but for what was uploaded just now and is about to get its record."""
        held = {upload.digest for upload in self._open.values()}
        return tuple(path.name for path in self._files() if path.name not in held)

    def forget(self, digests: Iterable[str]) -> None:
        """Delete files that no record refers to; one that was uploaded just now may be about to get a record."""
        self._close_stale()
        held = {upload.digest for upload in self._open.values()}
        for digest in set(digests) - held:
            self.copies.forget(digest)
        self._kept_bytes = self._count()

    def _begin(self, piece: UploadPiece) -> None:
        self.close(piece.upload)
        self._close_stale()
        head = piece.data[:HEAD_BYTES]
        if kind_of(reader_of(head)) == "image":
            raise UnsupportedVideo(
                "The file is an image, and only videos are uploaded. Send an image in a chat completion, as an "
                "`image_url` part with a `data:` URL.",
                "file",
            )
        reader = checked_reader(head, len(piece.data), self._limits, "video")
        with ExitStack() as folder:
            file = (folder.enter_context(self.copies.scratch()) / "upload").open("wb", buffering=0)
            self._open[piece.upload] = _Open(began_s=self._clock(), reader=reader, file=file, folder=folder.pop_all())

    def _check_room(self, more: int) -> None:
        coming = sum(upload.size for upload in self._open.values() if not upload.digest)
        total = self._kept_bytes + coming + more
        if total > self._max_bytes:
            raise Overloaded(
                f"With this video uploads would take {total} bytes or more, over the limit of {self._max_bytes} for "
                "all of them together. Delete a video that was uploaded, or come back when some have expired.",
                "file",
                _FULL_RETRY_S,
            )

    def _count(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        return [path for path in self.copies.directory.iterdir() if path.is_file()]

    def _close_stale(self) -> None:
        for name, upload in list(self._open.items()):
            if self._clock() - upload.began_s > self._stale_s:
                self.close(name)
