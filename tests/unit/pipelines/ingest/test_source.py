"""Fetching, from a server on this machine that is opened by name: `video.test`, which resolves nowhere but here."""

import asyncio
import contextlib
import hashlib
import os
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from occam.errors import ForbiddenSource, OccamError, Overloaded, SourceUnavailable, UnsupportedVideo, VideoTooLarge
from pipelines.ingest import source
from pipelines.ingest.addresses import resolve
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.policy import SourcePolicy
from pipelines.ingest.source import fetch
from tests.ssrf import FORBIDDEN

GIF = b"GIF89a" + bytes(5000)
Handler = Callable[[str, dict[str, str]], bytes]


def ok(body: bytes = GIF, **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return b"HTTP/1.1 200 OK\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n" + body


def to(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


class Network:
    """One server, and a resolver that knows it as `video.test`; counts what is asked of both."""

    def __init__(self, answer: Handler, drip_s: float = 0.0) -> None:
        self.answer, self.drip_s = answer, drip_s
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.resolved: list[str] = []
        self.handlers: list[asyncio.Task[None] | None] = []
        self.closing = False
        self.addresses: dict[str, list[list[str]]] = {"video.test": [["127.0.0.1"]]}

    async def resolver(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        answers = self.addresses.get(host, [[host]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.append(asyncio.current_task())
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path, fields = lines[0].split()[1], dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.requests.append((path, fields))
        data = self.answer(path, fields)
        try:
            for part in [data] if not self.drip_s else [bytes([byte]) for byte in data]:
                if self.closing:
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(self.drip_s)
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass  # the client has seen enough

    def fetch(
        self, url: str, folder: Path, limits: Limits | None = None, *, opened: bool = True, **policy: tuple[str, ...]
    ) -> LocalFile:
        async def run() -> LocalFile:
            self.handlers.clear()
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            rules = SourcePolicy(allow_private_hosts=(f"video.test:{port}",) if opened else (), **policy)
            try:
                address = url.replace("PORT", str(port))
                return await fetch(address, rules, limits or Limits(), folder, resolver=self.resolver)
            finally:
                server.close()
                self.closing = True
                await asyncio.gather(*filter(None, self.handlers))

        return asyncio.run(run())


def test_what_arrives_is_what_was_sent(tmp_path: Path) -> None:
    network = Network(lambda *_: ok())
    video = network.fetch("http://video.test:PORT/a.gif?x=1", tmp_path)
    assert video.path.read_bytes() == GIF
    assert video.path.parent == tmp_path
    assert (video.digest, video.bytes, video.reader) == (hashlib.sha256(GIF).hexdigest(), len(GIF), "gif")
    path, fields = network.requests[0]
    assert path == "/a.gif?x=1"
    assert fields["host"].startswith("video.test:")
    assert fields["accept-encoding"] == "identity"


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers differently when asked again (DNS rebinding) is not asked again."""
    network = Network(lambda *_: ok())
    network.addresses["video.test"] = [["127.0.0.1"], ["127.0.0.9"]]
    asked: list[object] = []
    system = socket.getaddrinfo

    def getaddrinfo(host: object, *rest: object, **more: object) -> object:
        asked.append(host)
        return system(host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    network.fetch("http://video.test:PORT/", tmp_path)
    assert network.resolved == ["video.test"]
    assert "video.test" not in asked


def test_tls_names_the_host_of_the_url(tmp_path: Path) -> None:
    names: list[str | None] = []

    async def run() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = lambda _socket, name, _context: names.append(name)
        server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        policy = SourcePolicy(allow_private_hosts=(f"video.test:{port}",))
        with pytest.raises(SourceUnavailable):  # the server has no certificate to show
            await fetch(
                f"https://video.test:{port}/", policy, Limits(), tmp_path, resolver=Network(lambda *_: b"").resolver
            )
        server.close()

    asyncio.run(run())
    assert names == ["video.test"]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_addresses_that_are_not_fetched(url: str, tmp_path: Path) -> None:
    network = Network(lambda *_: ok())
    network.addresses |= {"localhost": [["127.0.0.1"]], "localhost.": [["127.0.0.1"]]}
    with pytest.raises(ForbiddenSource):
        network.fetch(url, tmp_path, opened=False)
    assert network.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:PORT/",
        "http://169.254.169.254/latest/",
        "http://[::1]/",
        "http://internal.test/",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "ftp://8.8.8.8/",
        "http://u:p@8.8.8.8/",
    ],
)
def test_every_hop_is_checked(location: str, tmp_path: Path) -> None:
    network = Network(lambda path, fields: to(location.replace("PORT", fields["host"].rpartition(":")[2])))
    network.addresses["internal.test"] = [["10.0.0.5"]]
    with pytest.raises(ForbiddenSource) as caught:
        network.fetch("http://video.test:PORT/", tmp_path)
    assert "10.0.0.5" not in str(caught.value)
    assert len(network.requests) == 1


INVALID = [
    *("http://[", "http://[foo]/", "http://a\u2100b.com/", "//[x", f"http://{'a' * 64}.test/", "http://a..b/"),
    *("http://./", "http://xn--a/", "http://xn--/", "http://8.8.8.8:99999/", "http://\ud800/", "\ud800"),
]


@pytest.mark.parametrize("url", INVALID)
def test_what_only_looks_like_an_address_is_refused_in_words(url: str, tmp_path: Path) -> None:
    """With the system's resolver, which has its own idea of what a name may look like."""
    with pytest.raises((ForbiddenSource, SourceUnavailable)):
        asyncio.run(fetch(url, SourcePolicy(file_roots=(tmp_path,)), Limits(), tmp_path))


@pytest.mark.parametrize("url", [url for url in INVALID if url.isascii()])
def test_a_redirect_to_no_address_is_refused_in_words(url: str, tmp_path: Path) -> None:
    network = Network(lambda *_: to(url))

    known = network.resolver

    async def resolver(host: str, port: int) -> list[str]:
        return await (known if host == "video.test" else resolve)(host, port)

    network.resolver = resolver  # type: ignore[method-assign]
    with pytest.raises((ForbiddenSource, SourceUnavailable)):
        network.fetch("http://video.test:PORT/", tmp_path)


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    network = Network(lambda *_: ok(GIF + bytes(100_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(Overloaded, match="cannot be kept on this machine: File too large"):
            network.fetch("http://video.test:PORT/", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_followed_and_counted(tmp_path: Path) -> None:
    def answer(path: str, _: dict[str, str]) -> bytes:
        left = int(path.rpartition("/")[2])
        return to(f"../b/{left - 1}") if left else ok()

    assert Network(answer).fetch("http://video.test:PORT/a/3", tmp_path).bytes == len(GIF)
    with pytest.raises(SourceUnavailable, match="more than 3 times"):
        Network(answer).fetch("http://video.test:PORT/a/4", tmp_path)


def test_a_list_of_hosts_narrows_the_public_ones_only(tmp_path: Path) -> None:
    policy = SourcePolicy(allowed_hosts=("example.org", "*.example.net"), allow_private_hosts=("video.test:80",))
    for host in ("example.org", "a.example.net", "a.b.example.net", "video.test"):
        policy.check_host(host, 80)
    for host in ("example.com", "example.net", "aexample.net", "example.org.evil.test"):
        with pytest.raises(ForbiddenSource, match="not among"):
            policy.check_host(host, 80)
    with pytest.raises(ForbiddenSource, match="not among"):
        Network(lambda *_: to("http://8.8.8.8/")).fetch("http://video.test:PORT/", tmp_path, allowed_hosts=("a.test",))


def test_an_opened_host_is_open_on_its_own_port_only(tmp_path: Path) -> None:
    network = Network(lambda *_: ok())
    network.addresses["other.test"] = [["127.0.0.1"]]
    for url in ("http://video.test:1/", "http://other.test:PORT/", "http://127.0.0.1:PORT/"):
        with pytest.raises(ForbiddenSource):
            network.fetch(url, tmp_path)


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (ok(Content_Length="1001"), VideoTooLarge, "1001 bytes, more than the limit of 1000"),
        (ok(GIF)[:40] + b"\r\n\r\n", SourceUnavailable, "failed"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + GIF, VideoTooLarge, "limit of 1000"),
        (ok(b"GIF89a", Content_Encoding="gzip"), SourceUnavailable, "compressed"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", SourceUnavailable, "status 404"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 0\r\n\r\n", SourceUnavailable, "status 206"),
        (b"nonsense\r\n\r\n", SourceUnavailable, "failed"),
        (b"", SourceUnavailable, "failed"),
        (ok(b"#EXTM3U\n"), UnsupportedVideo, "playlist"),
        (ok(b""), UnsupportedVideo, "empty"),
    ],
)
def test_answers_that_are_no_video(answer: bytes, error: type[OccamError], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        Network(lambda *_: answer).fetch("http://video.test:PORT/", tmp_path, Limits(max_bytes=1000))
    assert not list(tmp_path.iterdir())


def test_time_is_limited_in_all_and_between_bytes(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"within 0\.3 s"):
        Network(lambda *_: ok(), drip_s=0.02).fetch("http://video.test:PORT/", tmp_path, Limits(total_s=0.3))
    with pytest.raises(SourceUnavailable, match=r"0\.1 s to read"):
        Network(lambda *_: ok(), drip_s=0.5).fetch("http://video.test:PORT/", tmp_path, Limits(read_s=0.1))


def test_a_second_address_is_tried_and_a_dead_one_is_an_error(tmp_path: Path) -> None:
    network = Network(lambda *_: ok())
    network.addresses["video.test"] = [["127.0.0.9", "127.0.0.1"]]
    assert network.fetch("http://video.test:PORT/", tmp_path).bytes == len(GIF)
    network.addresses["video.test"] = [["127.0.0.9"]]
    with pytest.raises(SourceUnavailable, match="failed"):
        network.fetch("http://video.test:PORT/", tmp_path)


def test_a_second_address_is_tried_when_the_first_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = httpx.AsyncHTTPTransport.handle_async_request

    async def slow(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.host == "127.0.0.9":
            raise httpx.ConnectTimeout("no answer")
        return await connect(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", slow)
    network = Network(lambda *_: ok())
    network.addresses["video.test"] = [["127.0.0.9", "127.0.0.1"]]
    assert network.fetch("http://video.test:PORT/", tmp_path).bytes == len(GIF)
    network.addresses["video.test"] = [["127.0.0.9"]]
    with pytest.raises(SourceUnavailable, match="5 s to connect"):
        network.fetch("http://video.test:PORT/", tmp_path)


def test_no_connection_is_used_twice() -> None:
    """It was made under one name, and another name may have the same address."""
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ok())
                await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        policy = SourcePolicy(allow_private_hosts=(f"video.test:{port}",))
        async with source._client(policy, Limits(), Network(lambda *_: b"").resolver) as client:
            for path in ("here", "there"):
                assert (await client.get(f"http://video.test:{port}/{path}")).content == GIF
        server.close()
        await asyncio.gather(*connections)

    asyncio.run(run())
    assert len(connections) == 2


def test_proxies_of_the_environment_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Network(lambda *_: ok()).fetch("http://video.test:PORT/", tmp_path).bytes == len(GIF)


def _fetch_file(url: str, *roots: Path, limits: Limits | None = None) -> LocalFile:
    return asyncio.run(fetch(url, SourcePolicy(file_roots=roots), limits or Limits(), Path("/nowhere")))


def test_files_are_read_below_their_roots_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a b.gif").write_bytes(GIF)
    (root / "link.gif").symlink_to(outside / "a b.gif")
    (root / "loop.gif").symlink_to(root / "loop.gif")
    for url in (f"file://{root}/a%20b.gif", f"file://localhost{root}/a%20b.gif", f"{root}/a b.gif"):
        assert _fetch_file(url, root).path == root / "a b.gif"
    for path in (root / "link.gif", outside / "a b.gif", f"{root}/../root-outside/a b.gif", outside / "absent.gif"):
        for url in (f"{path}", f"file://{path}"):
            with pytest.raises(ForbiddenSource, match="not in a folder"):
                _fetch_file(url, root)
    for path in (root / "absent.gif", root, root / "loop.gif"):
        with pytest.raises(SourceUnavailable):
            _fetch_file(f"{path}", root)
    with pytest.raises(ForbiddenSource):
        _fetch_file(f"file://{root}/a%20b.gif")
    with pytest.raises(ForbiddenSource):
        _fetch_file(f"file://{root}/a%00b.gif", root)


def test_a_path_on_the_command_line_needs_no_root(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(GIF)
    assert open_local(path, Limits()).digest == hashlib.sha256(GIF).hexdigest()
    with pytest.raises(VideoTooLarge, match="5006 bytes, more than the limit of 5000"):
        open_local(path, Limits(max_bytes=5000))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceUnavailable, match="regular file"):
        open_local(tmp_path / "fifo", Limits())
    with pytest.raises(SourceUnavailable):
        open_local(tmp_path / "absent", Limits())
