"""A file on this disk that may be read: what it is by its first bytes, and whether it still is what was read."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from occam.errors import SourceUnavailable, UnsupportedVideo
from occam.types import MediaKind
from pipelines.ingest.limits import Limits
from pipelines.ingest.sniff import HEAD_BYTES, kind_of, reader_of

Version = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A video or image on this disk: its path, SHA-256 (hex) and size, and the reader that its first bytes call for.

    version: device, inode, size and modification time (ns) of the file when it was read
    """

    path: Path
    digest: str
    bytes: int
    reader: str
    version: Version = (0, 0, 0, 0)

    @property
    def kind(self) -> MediaKind:
        """What the file is."""
        return kind_of(self.reader)

    @property
    def is_current(self) -> bool:
        """True iff the file is still the one that was read: neither written to, nor replaced, nor gone."""
        try:
            return version_of(os.stat(self.path)) == self.version
        except OSError:
            return False


def open_local(path: Path, limits: Limits, kind: MediaKind | None = None) -> LocalFile:
    """Take a file that the person at the keyboard named: no roots are checked, sizes and first bytes are.

    Raises SourceUnavailable, VideoTooLarge, UnsupportedVideo.
    """
    try:
        path = real_path(path)
        if not path.is_file():
            raise SourceUnavailable("The path does not name a regular file.")
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())  # before the bytes, so that what is written meanwhile shows
            reader = checked_reader(file.read(HEAD_BYTES), stat.st_size, limits, kind)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return LocalFile(path=path, digest=digest, bytes=file.tell(), reader=reader, version=version_of(stat))
    except OSError as error:
        raise SourceUnavailable(f"The file cannot be read: {error.strerror}.") from None


def real_path(path: Path) -> Path:
    """The path with every link followed."""
    return Path(os.path.realpath(path))  # unlike `resolve`, it raises nothing over a loop of links


def version_of(stat: os.stat_result) -> Version:
    """What changes when a file is written to or replaced."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def checked_reader(head: bytes, size: int, limits: Limits, kind: MediaKind | None) -> str:
    """The reader for a file of `size` bytes that begins with `head`; UnsupportedVideo if it is not of that kind."""
    reader = reader_of(head)
    found = kind_of(reader)
    if kind not in (None, found):
        raise UnsupportedVideo(f"The file is of another kind than was said: {found}, not {kind}.")
    limits.check_bytes(found, size)
    return reader
