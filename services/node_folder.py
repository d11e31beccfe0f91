"""A folder of bounded bytes that several processes share: entries by digest, the least recently used leave first.

An entry is written under a temporary name and renamed, so a reader finds all of it or none, and what a reader has open
stays readable when it is evicted. Room is made before an entry is written, and its temporary file has the whole size
from the start: so all files together never pass the limit, whoever writes at the same time. For both, and for nothing
that takes long, the folder is locked. A file's modification time is when it was written, its access time when it was
last used.

What lies in the folder may be anybody's doing: no link is followed, and what cannot be an entry of ours is removed.
Files by other names than ours are neither counted nor touched.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ELOOP, ENXIO
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from io import BufferedReader, BufferedWriter
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from occam.errors import CorruptState, StoreUnavailable

T = TypeVar("T")

_ENTRY = re.compile(r"[0-9a-f]{64}\.state")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.unfinished")
# A pipe of that name does not hold its reader up.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Nothing that takes long is done under the lock, so who holds it for longer than this is stopped, or its disk is.
_LOCK_LIMIT_S = 1.0
_LOCK_RETRY_S = 0.005


class NodeFolder:
    """The entries of `path`, a folder of this user alone, made if only its parent is there; blocks, so for threads.

    max_bytes: of all files together; ttl_s: seconds an entry lives after it was written; clock: seconds since the epoch
    Whatever the system refuses is StoreUnavailable.
    """

    def __init__(self, path: Path, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock

    def check(self) -> None:
        """Raise StoreUnavailable unless the folder can be used."""
        with self._opened():
            pass

    def read(self, digest: str, use: Callable[[BufferedReader], T]) -> T | None:
        """What `use` makes of the entry, or None where there is none; raises CorruptState where one of them does."""
        name = _entry(digest)
        with self._opened() as folder:
            try:
                with _reading(folder, name) as file:
                    found = os.fstat(file.fileno())
                    if self._expired(found):
                        _remove(folder, name)
                        return None
                    if found.st_size > self._max_bytes:
                        raise CorruptState(f"The entry has {found.st_size} bytes; all have at most {self._max_bytes}.")
                    used = use(file)
                    os.utime(file.fileno(), ns=(self._now_ns(), found.st_mtime_ns))
                    return used
            except FileNotFoundError:
                return None
            except CorruptState:
                _remove(folder, name)
                raise

    def write(self, digest: str, pieces: Sequence[bytes | memoryview]) -> bool:
        """Make an entry of `pieces`, one behind the other; False where there is no room for it."""
        name = f"{digest}.{token_hex(8)}.unfinished"
        with self._opened() as folder:
            try:
                file = self._reserve(folder, name, sum(map(len, pieces)))
                if file is None:
                    return False
                with file:
                    for piece in pieces:
                        file.write(piece)
                    file.flush()
                    os.utime(file.fileno(), ns=(self._now_ns(), self._now_ns()))
                    with _locked(folder):
                        os.rename(name, _entry(digest), src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                _remove(folder, name)
        return True

    def remove(self, digest: str) -> None:
        """Forget an entry; one that is not there is fine."""
        with self._opened() as folder:
            _remove(folder, _entry(digest))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder's descriptor, by which alone its files are reached."""
        try:
            with suppress(FileExistsError):
                self._path.mkdir(mode=0o700)
            folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(folder)
                if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    raise StoreUnavailable("The node's cache folder must be this user's alone (mode 0700).")
                yield folder
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreUnavailable(f"The node's cache folder cannot be used: {error.strerror}.") from error

    def _reserve(self, folder: int, name: str, nbytes: int) -> BufferedWriter | None:
        """A new file of `nbytes` that is locked while its writer lives, or None where there is no room for it."""
        with _locked(folder):
            if not self._make_room(folder, nbytes):
                return None
            file = os.fdopen(os.open(name, _CREATE, 0o600, dir_fd=folder), "wb")
            try:
                flock(file, LOCK_EX)
                os.ftruncate(file.fileno(), nbytes)
            except OSError:
                file.close()
                raise
            return file

    def _make_room(self, folder: int, nbytes: int) -> bool:
        """Remove what is dead or expired, then what was not used for longest; whether there is room for `nbytes`."""
        entries = []
        for name, found in _files(folder):
            if _ENTRY.fullmatch(name) and found.st_size <= self._max_bytes and not self._expired(found):
                entries.append((found.st_atime_ns, found.st_size, name))
            elif _UNFINISHED.fullmatch(name) and _being_written(folder, name):
                nbytes += found.st_size
            else:
                _remove(folder, name)
        if nbytes > self._max_bytes:
            return False
        nbytes += sum(size for _, size, _ in entries)
        for _, size, name in sorted(entries):
            if nbytes <= self._max_bytes:
                break
            _remove(folder, name)
            nbytes -= size
        return True

    def _expired(self, found: os.stat_result) -> bool:
        return self._clock() - found.st_mtime > self._ttl_s

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)


def _entry(digest: str) -> str:
    return f"{digest}.state"


@contextmanager
def _locked(folder: int) -> Iterator[None]:
    """While this lasts no other thread or process makes room, begins a file or finishes one."""
    _lock(folder)
    try:
        yield
    finally:
        flock(folder, LOCK_UN)


def _lock(folder: int) -> None:
    """Lock the folder; raises StoreUnavailable where others hold it for `_LOCK_LIMIT_S`."""
    for _ in range(round(_LOCK_LIMIT_S / _LOCK_RETRY_S)):
        with suppress(BlockingIOError):
            flock(folder, LOCK_EX | LOCK_NB)
            return
        time.sleep(_LOCK_RETRY_S)
    raise StoreUnavailable(f"The node's cache folder was locked by others for {_LOCK_LIMIT_S:g} s.")


def _files(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Everything by a name of ours, as it lies there: nothing is followed."""
    with os.scandir(folder) as found:
        for each in found:
            if _ENTRY.fullmatch(each.name) or _UNFINISHED.fullmatch(each.name):
                with suppress(FileNotFoundError):  # forgotten meanwhile
                    yield each.name, each.stat(follow_symlinks=False)


def _reading(folder: int, name: str) -> BufferedReader:
    """The file, open for reading; raises CorruptState where it is none, or not this user's."""
    try:
        file = os.open(name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno not in (ELOOP, ENXIO):
            raise
        raise CorruptState("The entry is a link or a socket.") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise CorruptState("The entry is not a file of this user.")
    except (OSError, CorruptState):
        os.close(file)
        raise
    return os.fdopen(file, "rb")


def _being_written(folder: int, name: str) -> bool:
    """Whether the writer lives: its lock goes with it, however it ends."""
    try:
        with _reading(folder, name) as file:
            flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return True
    except (CorruptState, FileNotFoundError):
        pass
    return False


def _remove(folder: int, name: str) -> None:
    """Remove what goes by that name, whatever it is; somebody else may have been quicker."""
    with suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=folder)
