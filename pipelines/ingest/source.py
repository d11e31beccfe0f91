"""From an address to a file on this machine, under guard.

Every hop is resolved, every address of it checked, and the connection made to the checked address itself, so that a
name which resolves differently a moment later (DNS rebinding) changes nothing. Host header and TLS name stay the URL's.
"""

import asyncio
import hashlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from occam.errors import ForbiddenSource, Overloaded, SourceUnavailable, VideoTooLarge
from pipelines.ingest.addresses import Resolver, checked_addresses, resolve
from pipelines.ingest.limits import Limits
from pipelines.ingest.sniff import HEAD_BYTES, demuxer_of

_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65535
_NO_URL = "The address is not a valid URL."


@dataclass(frozen=True, kw_only=True)
class SourcePolicy:
    """What may be fetched.

    allowed_hosts: if any, the only public hosts; `*.example.org` stands for all names below example.org
    allow_private_hosts: `host:port` pairs, spelled as in the URL, whose addresses need not be public
    file_roots: folders whose files `file://` URLs and plain paths may name
    """

    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: tuple[str, ...] = ()
    file_roots: tuple[Path, ...] = ()

    def is_private(self, host: str, port: int) -> bool:
        """True iff `host:port` is one of the private hosts that were opened by name."""
        return f"{host}:{port}" in self.allow_private_hosts

    def check_host(self, host: str, port: int) -> None:
        """Raise ForbiddenSource if the list of hosts leaves `host` out."""
        if not self.allowed_hosts or self.is_private(host, port):
            return
        if not any(host == name or (name[:2] == "*." and host.endswith(name[1:])) for name in self.allowed_hosts):
            raise ForbiddenSource(f"The host {host} is not among the hosts that may be fetched.")


@dataclass(frozen=True, kw_only=True)
class LocalVideo:
    """A file that may be decoded: its path, SHA-256 (hex) and size, and the demuxer that its first bytes call for.

    version: device, inode, size and modification time (ns) of the file when it was read
    """

    path: Path
    digest: str
    bytes: int
    demuxer: str
    version: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def is_current(self) -> bool:
        """True iff the file is still the one that was read: neither written to, nor replaced, nor gone."""
        try:
            return _version(os.stat(self.path)) == self.version
        except OSError:
            return False


async def fetch(
    url: str, policy: SourcePolicy, limits: Limits, directory: Path, *, resolver: Resolver = resolve
) -> LocalVideo:
    """Bring the video at `url` to this machine; what is downloaded lies in `directory`, whose owner deletes it.

    Raises ForbiddenSource, SourceUnavailable, VideoTooLarge, UnsupportedVideo; Overloaded if the disk takes no more.
    """
    if _scheme(url) in ("", "file"):
        return await asyncio.to_thread(_open_under_roots, url, policy, limits)
    try:
        async with asyncio.timeout(limits.total_s), _client(policy, limits, resolver) as client:
            return await _download(client, _checked_url(url, policy), policy, limits, directory)
    except TimeoutError:
        raise SourceUnavailable(f"The source did not give the video within {limits.total_s:g} s.") from None
    except httpx.TimeoutException:
        raise SourceUnavailable(
            f"The source did not answer: limits are {limits.connect_s:g} s to connect and {limits.read_s:g} s to read."
        ) from None
    except httpx.HTTPError as error:
        raise SourceUnavailable(f"The connection to the source failed ({type(error).__name__}).") from None
    except (httpx.InvalidURL, UnicodeError):  # of this address or one it redirects to; IDNA's errors are the latter
        raise ForbiddenSource(_NO_URL) from None
    except OSError as error:
        raise Overloaded(f"The video cannot be kept on this machine: {error.strerror}.") from None


def _scheme(url: str) -> str:
    try:
        url.encode()  # half a surrogate pair, which JSON can carry, is in no address and in no path
        return urlsplit(url).scheme
    except ValueError:
        raise ForbiddenSource(_NO_URL) from None


def open_local(path: Path, limits: Limits) -> LocalVideo:
    """Take a file that the person at the keyboard named: no roots are checked, sizes and first bytes are.

    Raises SourceUnavailable, VideoTooLarge, UnsupportedVideo.
    """
    try:
        path = _real(path)
        if not path.is_file():
            raise SourceUnavailable("The path does not name a regular file.")
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())  # before the bytes, so that what is written meanwhile shows
            _check_bytes(stat.st_size, limits)
            demuxer = demuxer_of(file.read(HEAD_BYTES))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return LocalVideo(path=path, digest=digest, bytes=file.tell(), demuxer=demuxer, version=_version(stat))
    except OSError as error:
        raise SourceUnavailable(f"The file cannot be read: {error.strerror}.") from None


def _open_under_roots(url: str, policy: SourcePolicy, limits: Limits) -> LocalVideo:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ForbiddenSource("A file URL may not name a host.")
    path = Path(unquote(parts.path) if parts.scheme else url)
    # Links are followed before the roots are compared, and one answer covers "outside" and "absent".
    if "\0" in str(path) or not any(_real(path).is_relative_to(_real(root)) for root in policy.file_roots):
        raise ForbiddenSource("The file is not in a folder that may be read.")
    return open_local(path, limits)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike `resolve`, it raises nothing over a loop of links


def _version(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_bytes(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise VideoTooLarge(f"The video has {size} bytes, more than the limit of {limits.max_bytes}.")


def _checked_url(text: str, policy: SourcePolicy) -> httpx.URL:
    url = httpx.URL(text)
    if (url.port or 0) > _MAX_PORT:
        raise ForbiddenSource(_NO_URL)
    if url.scheme not in _PORTS:
        raise ForbiddenSource(f"Only http and https addresses are fetched, not {url.scheme[:20]!r}.")
    if not url.host:
        raise ForbiddenSource("The address names no host.")
    if url.userinfo:
        raise ForbiddenSource("The address may not carry a user name or a password.")
    policy.check_host(url.host, _port(url))
    return url


def _port(url: httpx.URL) -> int:
    return url.port or _PORTS[url.scheme]


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


class _PinnedTransport(httpx.AsyncHTTPTransport):
    """Connects to an address that was checked, under the name that the URL gives."""

    def __init__(self, policy: SourcePolicy, resolver: Resolver) -> None:
        # A kept connection could serve another name at the same address.
        super().__init__(verify=_tls(), trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        self._policy = policy
        self._resolver = resolver

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.host, _port(request.url)
        private = self._policy.is_private(host, port)
        addresses = await checked_addresses(host, port, private=private, resolver=self._resolver)
        for address in addresses:
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await super().handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise AssertionError("checked_addresses never returns an empty list")


def _client(policy: SourcePolicy, limits: Limits, resolver: Resolver) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=_PinnedTransport(policy, resolver),
        timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s),
        trust_env=False,
        headers={"Accept-Encoding": "identity"},
    )


@asynccontextmanager
async def _response(
    client: httpx.AsyncClient, url: httpx.URL, policy: SourcePolicy, limits: Limits
) -> AsyncIterator[httpx.Response]:
    for _ in range(limits.redirects + 1):
        async with client.stream("GET", url) as response:
            if not response.has_redirect_location:
                yield response
                return
            url = _checked_url(str(url.join(response.headers["Location"])), policy)
    raise SourceUnavailable(f"The source redirects more than {limits.redirects} times.")


async def _download(
    client: httpx.AsyncClient, url: httpx.URL, policy: SourcePolicy, limits: Limits, directory: Path
) -> LocalVideo:
    async with _response(client, url, policy, limits) as response:
        if response.status_code != httpx.codes.OK:
            raise SourceUnavailable(f"The source answered with status {response.status_code}.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceUnavailable("The source sends the video compressed, which was not asked for.")
        _check_bytes(_announced_bytes(response), limits)
        digest, size, head = hashlib.sha256(), 0, b""
        with (
            tempfile.NamedTemporaryFile(dir=directory, suffix=".video", delete=False) as file,
            _unlinked_on_failure(file.name),
        ):
            async for part in response.aiter_raw():
                size += len(part)
                _check_bytes(size, limits)
                digest.update(part)
                file.write(part)
                head = (head + part)[:HEAD_BYTES] if len(head) < HEAD_BYTES else head
            demuxer = demuxer_of(head)
            file.flush()
            version = _version(os.fstat(file.fileno()))
    return LocalVideo(path=Path(file.name), digest=digest.hexdigest(), bytes=size, demuxer=demuxer, version=version)


@contextmanager
def _unlinked_on_failure(path: str) -> Iterator[None]:
    """Half a download, or a file that is no video, is not left on the disk."""
    try:
        yield
    except BaseException:
        os.unlink(path)
        raise


def _announced_bytes(response: httpx.Response) -> int:
    text = response.headers.get("Content-Length", "0")
    return int(text) if text.isdecimal() else 0
