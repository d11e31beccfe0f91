"""Strangers' addresses through the HTTP API, with real fetching and decoding and real servers that see who comes."""

import asyncio
import gzip
import struct
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from pipelines.evaluation.codec import write_mp4
from pipelines.ingest.source import fetch
from services.media import LocalMedia
from tests.redis_server import RedisServer
from tests.services.world import world
from tests.ssrf import ADDRESSES, FORBIDDEN, REDIRECTS, TRAPPED

MOST_BYTES = 100_000
GIF = b"GIF89a" + bytes(300)


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an ISO file."""
    inside = b"".join(content)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def bodies(trap: str) -> dict[str, bytes]:
    """Files that name another address, each as a host that may be fetched would send it."""
    url = trap.encode()
    ftyp = box(b"ftyp", b"qt  ", bytes(4), b"qt  ")
    reference = box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url) + 1), url, b"\0")
    elsewhere = box(b"dref", bytes(4), struct.pack(">I", 1), box(b"url ", bytes(4), url, b"\0"))
    track = box(b"trak", box(b"mdia", box(b"minf", box(b"dinf", elsewhere))))
    name = b"\x3e\x83\xbb" + bytes([0x80 | len(url)]) + url
    info = b"\x15\x49\xa9\x66" + bytes([0x80 | len(name)]) + name
    return {
        "playlist.m3u8": b"#EXTM3U\n#EXTINF:1,\n" + url,
        "playlist.pls": b"[playlist]\nFile1=" + url,
        "indented.m3u8": b"\n  #EXTM3U\n" + url,
        "concat.txt": b"ffconcat version 1.0\nfile " + url,
        "dash.mpd": b'<?xml version="1.0"?><MPD><BaseURL>' + url + b"</BaseURL></MPD>",
        "stream.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        "page.html": b'<video src="' + url + b'">',
        "movie.svg": b'<svg><image href="' + url + b'"/></svg>',
        "reference.mov": ftyp + box(b"moov", box(b"rmra", box(b"rmda", reference))),
        "external.mov": ftyp + box(b"moov", track),
        "hidden.mov": ftyp + b"#EXTM3U\n" + url,
        "hidden.gif": b"GIF89a#EXTM3U\n" + url,
        "next.mkv": b"\x1aE\xdf\xa3\x80\x18\x53\x80\x67" + bytes([0x80 | len(info)]) + info,
        "redirect.avi": b"RIFF\x40\0\0\0AVI LIST" + url,
    }


BODIES = tuple(bodies(""))
ODD = {
    "endless": ("video_too_large", 413),
    "announced": ("video_too_large", 413),
    "short": ("source_unavailable", 422),
    "gzip": ("source_unavailable", 422),
    "bomb": ("source_unavailable", 422),
    "status": ("source_unavailable", 422),
    "loop": ("source_unavailable", 422),
    "nothing": ("source_unavailable", 422),
}
"""Ways of a host that may be fetched to send a file, and what the caller is told."""


@dataclass
class Scene:
    """A service, a host `public.test` that it may fetch from, and a trap beside it that it may not."""

    http: httpx.AsyncClient
    front: int
    trap: int
    caught: list[str] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)

    async def post(self, url: str) -> httpx.Response:
        return await self.http.post("/v1/videos", json={"url": url})

    async def served(self, path: str) -> httpx.Response:
        return await self.post(f"http://public.test:{self.front}/{path}")


@asynccontextmanager
async def scene(
    folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, addresses: dict[str, Any], **options: Any
) -> AsyncIterator[Scene]:
    caught: list[str] = []
    before = asyncio.all_tasks()

    async def trap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caught.append("a connection")
        writer.close()

    trapping = await asyncio.start_server(trap, "127.0.0.1", 0)
    trap_port = trapping.sockets[0].getsockname()[1]
    front = await asyncio.start_server(partial(serve, trap_port), "127.0.0.1", 0)
    front_port = front.sockets[0].getsockname()[1]
    options = {"allow_private_hosts": (f"public.test:{front_port}",), "max_video_bytes": MOST_BYTES} | options
    connect, connected, resolved = anyio.connect_tcp, [], []

    async def watched(remote_host: str, remote_port: int, **more: Any) -> Any:
        connected.append(f"{remote_host}:{remote_port}")
        if remote_host not in ("127.0.0.1", "::1"):
            raise OSError("nothing leaves this machine")
        return await connect(remote_host, remote_port, **more)

    async def resolver(host: str, port: int) -> list[str]:
        resolved.append(host)
        answer = addresses.get(host, [host])
        return answer.pop(0) if isinstance(answer[0], list) else answer

    monkeypatch.setattr(anyio, "connect_tcp", watched)
    monkeypatch.setattr("services.media.fetch", partial(fetch, resolver=resolver))
    async with world(folder, redis_url, media=LocalMedia, **options) as service:
        yield Scene(service.http, front_port, trap_port, caught, connected, resolved)
    for server in (trapping, front):
        server.close()
    serving = asyncio.all_tasks() - before - {asyncio.current_task()}
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def serve(trap: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What `public.test` answers by the path that is asked for."""
    line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
    kind, _, rest = line.split(" ")[1].removeprefix("/").partition("/")
    trapped = f"http://127.0.0.1:{trap}/secret"
    try:
        writer.write(b"HTTP/1.1 " + answer(kind, rest, trapped))
        while kind == "endless":
            writer.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            await writer.drain()
        if kind == "drip":
            while True:
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.05)
        await writer.drain()
    except OSError:
        pass  # the client has seen enough
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def answer(kind: str, rest: str, trap: str) -> bytes:
    chunked = b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    match kind:
        case "redirect":
            return f"302 Found\r\nLocation: {rest}\r\nContent-Length: 0\r\n\r\n".encode()
        case "body":
            return whole(bodies(trap)[rest])
        case "video":
            return whole(Path(f"/{rest}").read_bytes())
        case "loop":
            return b"302 Found\r\nLocation: /loop/\r\nContent-Length: 0\r\n\r\n"
        case "endless":
            return chunked + b"6\r\nGIF89a\r\n"
        case "announced":
            return b"200 OK\r\nContent-Length: 100001\r\n\r\n" + GIF
        case "short":
            return b"200 OK\r\nContent-Length: 5000\r\n\r\n" + GIF
        case "gzip":
            return whole(gzip.compress(GIF), b"Content-Encoding: gzip\r\n")
        case "bomb":
            return whole(gzip.compress(bytes(50_000_000)), b"Content-Encoding: gzip\r\n")
        case "drip":
            return b"200 OK\r\nContent-Length: 90000\r\n\r\n"
        case "nothing":
            return b""
    return b"404 Not Found\r\nContent-Length: 0\r\n\r\n"


def whole(body: bytes, headers: bytes = b"") -> bytes:
    return b"200 OK\r\n" + headers + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def play(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(act: Callable[[Scene], Awaitable[None]], addresses: Any = ADDRESSES, **options: Any) -> None:
        async def main() -> None:
            async with scene(tmp_path, redis_server.url, monkeypatch, addresses, **options) as live:
                await act(live)
            assert list((tmp_path / "media").glob("**/*.part")) == []

        asyncio.run(main())

    return run


def refused(response: httpx.Response, url: str, codes: tuple[str, ...] = ("forbidden_source",)) -> None:
    """A typed error, in words that show no address which the caller has not named."""
    error = response.json()["error"]
    assert error["code"] in codes, (url, error)
    named = unicodedata.normalize("NFKC", url).replace("。", ".")  # as every client spells it
    for secret in ("127.0.0.1", "10.0.0.5", "169.254.169.254", "93.184.215.14", "::1", "fd00", "root:", "/tmp/"):
        assert secret in named or secret not in error["message"], (url, error)


def test_no_spelling_leads_inside(play: Callable[..., None]) -> None:
    async def act(live: Scene) -> None:
        assert len(TRAPPED) + len(FORBIDDEN) > 100
        for given in (*TRAPPED, *FORBIDDEN):
            url = given.replace("PORT", str(live.trap))
            response = await live.post(url)
            assert response.status_code == 422, (url, response.text)
            refused(response, url, ("forbidden_source", "source_unavailable"))
            if "%" not in url and "\\" not in url:  # which may be no name at all, and so have no address
                refused(response, url)
        assert (live.caught, live.connected) == ([], [])

    play(act)


def test_no_redirect_leads_inside(play: Callable[..., None]) -> None:
    async def act(live: Scene) -> None:
        for given in REDIRECTS:
            location = given.replace("PORT", str(live.trap))
            response = await live.served(f"redirect/{location}")
            refused(response, location)
        assert live.caught == []
        assert set(live.connected) == {f"127.0.0.1:{live.front}"}

    play(act)


def test_a_name_that_changes_its_mind_leads_where_it_was_checked(play: Callable[..., None]) -> None:
    """Rebinding: public when it is checked, this machine a moment later."""

    async def act(live: Scene) -> None:
        url = f"http://rebind.test:{live.trap}/"
        refused(await live.post(url), url, ("source_unavailable",))
        assert live.resolved == ["rebind.test"], "asked once"
        assert live.connected == [f"93.184.215.14:{live.trap}"]
        assert live.caught == []

    play(act, {"rebind.test": [["93.184.215.14"], ["127.0.0.1"], ["127.0.0.1"]]})


def test_no_file_leads_elsewhere(play: Callable[..., None]) -> None:
    async def act(live: Scene) -> None:
        for name in BODIES:
            response = await live.served(f"body/{name}")
            assert response.status_code in (415, 422), (name, response.text)
            refused(response, name, ("unsupported_video", "invalid_input"))
        assert live.caught == []
        assert set(live.connected) == {f"127.0.0.1:{live.front}"}

    play(act)


@pytest.mark.parametrize("way", ODD)
def test_no_way_of_sending_gets_through(play: Callable[..., None], way: str) -> None:
    async def act(live: Scene) -> None:
        response = await live.served(f"{way}/")
        code, status = ODD[way]
        assert response.status_code == status, response.text
        refused(response, way, (code,))

    play(act)


def test_what_comes_in_drops_ends_with_the_request(play: Callable[..., None]) -> None:
    async def act(live: Scene) -> None:
        refused(await live.served("drip/"), "drip", ("source_unavailable", "deadline_exceeded"))

    play(act, deadline_s=0.5)


def test_a_forbidden_source_names_the_setting_that_would_open_it(play: Callable[..., None], tmp_path: Path) -> None:
    async def act(live: Scene) -> None:
        for url, setting in (
            (f"http://localhost:{live.trap}/", f"localhost:{live.trap} is not in OCCAM_ALLOW_PRIVATE_HOSTS"),
            ("http://8.8.8.8/", "OCCAM_ALLOWED_HOSTS"),
            (f"{tmp_path}/secret", "OCCAM_FILE_ROOTS"),
            (f"{tmp_path}/absent", "OCCAM_FILE_ROOTS"),
        ):
            assert setting in (await live.post(url)).json()["error"]["message"]

    (tmp_path / "secret").write_bytes(GIF)
    play(act, allowed_hosts=("localhost", "example.org"))


def test_a_host_that_was_opened_is_fetched_through_redirects(play: Callable[..., None], tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, np.zeros((8, 32, 32, 3), np.uint8), 4)

    async def act(live: Scene) -> None:
        response = await live.served(f"redirect//video{clip}")
        assert (response.status_code, response.json()["frames"]) == (200, 8), response.text
        assert set(live.connected) == {f"127.0.0.1:{live.front}"}

    play(act)
