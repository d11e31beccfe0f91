"""Local copies of videos: files by digest, of which the least recently used go when all take too much room."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from occam.errors import Overloaded
from pipelines.ingest.local_file import LocalFile


@contextmanager
def writing() -> Iterator[None]:
    """Overloaded where this machine keeps no more files: its disk is full, or too many are open."""
    try:
        yield
    except OSError as error:
        raise Overloaded(f"The video cannot be kept on this machine: {error.strerror}.") from None


class Copies:
    """The files of one folder, which one process has to itself."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._uses: Counter[str] = Counter()
        self._forgotten: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.is_dir():  # a download that a killed process left
                shutil.rmtree(path)

    def path(self, digest: str) -> Path:
        """Where the copy is, if there is one."""
        return self.directory / digest

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for a download; gone afterwards, with all that was not kept. Overloaded."""
        with writing():
            folder = TemporaryDirectory(dir=self.directory)
        with folder as name:
            yield Path(name)

    def keep(self, download: LocalFile) -> LocalFile:
        """Make a download the copy of its digest, and make room for it. Overloaded."""
        self._forgotten.discard(download.digest)
        with writing():
            kept = replace(download, path=download.path.rename(self.path(download.digest)))
            with self.in_use(kept.digest):
                self._trim()
        return kept

    @contextmanager
    def in_use(self, digest: str) -> Iterator[None]:
        """While this lasts, the copy stays: it is neither trimmed nor, before the end, forgotten."""
        self._touch(digest)
        self._uses[digest] += 1
        try:
            yield
        finally:
            self._uses[digest] -= 1
            if not self._uses[digest]:
                del self._uses[digest]
                if digest in self._forgotten:
                    self.forget(digest)

    def forget(self, digest: str) -> None:
        """Delete the copy, now or when it is no longer in use."""
        if digest in self._uses:
            self._forgotten.add(digest)
            return
        self._forgotten.discard(digest)
        self.path(digest).unlink(missing_ok=True)

    def _touch(self, digest: str) -> None:
        """Set the time of the last use: the file's access time, since a changed modification time means other bytes."""
        path = self.path(digest)
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))

    def _trim(self) -> None:
        copies = {path: path.stat() for path in self.directory.iterdir() if path.is_file()}
        total = sum(stat.st_size for stat in copies.values())
        for path in sorted(copies, key=lambda path: copies[path].st_atime_ns):
            if total <= self._max_bytes:
                return
            if path.name not in self._uses:
                total -= copies[path].st_size
                path.unlink()
