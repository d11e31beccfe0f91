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
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from occam.errors import ForbiddenSource, Overloaded, SourceUnavailable
from occam.types import MediaKind
from pipelines.ingest.addresses import Resolver, checked_addresses, resolve
from pipelines.ingest.data_url import image_bytes
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, checked_reader, open_local, real_path, version_of
from pipelines.ingest.policy import SourcePolicy
from pipelines.ingest.sniff import HEAD_BYTES

_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65535
_NO_URL = "The address is not a valid URL."


async def fetch(
    url: str,
    policy: SourcePolicy,
    limits: Limits,
    directory: Path,
    *,
    kind: MediaKind | None = None,
    resolver: Resolver = resolve,
) -> LocalFile:
    """Bring the video or image at `url` to this machine; a new file lies in `directory`, whose owner deletes it.

    kind: what it must be, if that matters
    Raises ForbiddenSource, SourceUnavailable, VideoTooLarge, UnsupportedVideo; Overloaded if the disk takes no more.
    """
    if url[:5].lower() == "data:":
        return await asyncio.to_thread(_unpack, url, limits, directory, kind)
    if _scheme(url) in ("", "file"):
        return await asyncio.to_thread(_open_under_roots, url, policy, limits, kind)
    try:
        async with asyncio.timeout(limits.total_s), _client(policy, limits, resolver) as client:
            return await _download(client, _checked_url(url, policy), policy, limits, directory, kind)
    except TimeoutError:
        raise SourceUnavailable(f"The source did not give the whole file within {limits.total_s:g} s.") from None
    except httpx.TimeoutException:
        raise SourceUnavailable(
            f"The source did not answer: limits are {limits.connect_s:g} s to connect and {limits.read_s:g} s to read."
        ) from None
    except httpx.HTTPError as error:
        raise SourceUnavailable(f"The connection to the source failed ({type(error).__name__}).") from None
    except (httpx.InvalidURL, UnicodeError):  # of this address or one it redirects to; IDNA's errors are the latter
        raise ForbiddenSource(_NO_URL) from None
    except OSError as error:
        raise Overloaded(_no_room(error)) from None


def _no_room(error: OSError) -> str:
    return f"The file cannot be kept on this machine: {error.strerror}."


def _scheme(url: str) -> str:
    try:
        url.encode()  # half a surrogate pair, which JSON can carry, is in no address and in no path
        return urlsplit(url).scheme
    except ValueError:
        raise ForbiddenSource(_NO_URL) from None


def _open_under_roots(url: str, policy: SourcePolicy, limits: Limits, kind: MediaKind | None) -> LocalFile:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ForbiddenSource("A file URL may not name a host.")
    path = Path(unquote(parts.path) if parts.scheme else url)
    # Links are followed before the roots are compared, and one answer covers "outside" and "absent".
    if "\0" in str(path) or not any(real_path(path).is_relative_to(real_path(root)) for root in policy.file_roots):
        raise ForbiddenSource("The file is not in a folder that may be read (OCCAM_FILE_ROOTS).")
    return open_local(path, limits, kind)


def _unpack(url: str, limits: Limits, directory: Path, kind: MediaKind | None) -> LocalFile:
    data = image_bytes(url, limits)
    reader = checked_reader(data[:HEAD_BYTES], len(data), limits, kind)
    digest = hashlib.sha256(data).hexdigest()
    path = directory / digest
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Overloaded(_no_room(error)) from None
    return LocalFile(path=path, digest=digest, bytes=len(data), reader=reader, version=version_of(path.stat()))


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
    client: httpx.AsyncClient,
    url: httpx.URL,
    policy: SourcePolicy,
    limits: Limits,
    directory: Path,
    kind: MediaKind | None,
) -> LocalFile:
    async with _response(client, url, policy, limits) as response:
        if response.status_code != httpx.codes.OK:
            raise SourceUnavailable(f"The source answered with status {response.status_code}.")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceUnavailable("The source sends the file compressed, which was not asked for.")
        limits.check_bytes(kind or "video", _announced_bytes(response))
        digest, size, head = hashlib.sha256(), 0, b""
        with (
            tempfile.NamedTemporaryFile(dir=directory, suffix=".part", delete=False) as file,
            _unlinked_on_failure(file.name),
        ):
            async for part in response.aiter_raw():
                size += len(part)
                limits.check_bytes(kind or "video", size)
                digest.update(part)
                file.write(part)
                head = (head + part)[:HEAD_BYTES] if len(head) < HEAD_BYTES else head
            reader = checked_reader(head, size, limits, kind)
            file.flush()
            version = version_of(os.fstat(file.fileno()))
    return LocalFile(path=Path(file.name), digest=digest.hexdigest(), bytes=size, reader=reader, version=version)


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
