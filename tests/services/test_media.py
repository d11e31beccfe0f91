"""One node's media over real files, a real HTTP server and real decoding children."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest

from occam.errors import InvalidInput, Overloaded, SourceUnavailable
from pipelines.ingest import process
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.probe import VideoFacts, probe_async
from services.media import LocalMedia
from services.messages import DecodedChunk, FrameChoice, Medium, Source
from services.settings import Settings

RATE, FRAMES, KEYS = 10, 20, 2


def write_clip(path: Path, shade: int, silence_s: float = 0.0) -> str:
    """A clip of one grey, which begins with so much sound alone; its digest."""
    with av.open(str(path), "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono") if silence_s else None
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if sound is not None:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            quiet.sample_rate, quiet.pts = 8000, 0
            container.mux(sound.encode(quiet))
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
            frame.pts = number + round(silence_s * RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Site:
    """A folder behind HTTP, and the service's directory; `digests` by name of clip."""

    def __init__(self, folder: Path, base_url: str, host: str) -> None:
        self.files, self.directory = folder / "site", folder / "service"
        self.base_url, self.host = base_url, host
        self.digests = {
            name: write_clip(self.files / name, shade) for name, shade in {"a": 20, "b": 120, "c": 220}.items()
        }
        self.bytes = max((self.files / name).stat().st_size for name in self.digests)

    def media(self, **options: object) -> LocalMedia:
        given = {"directory": str(self.directory), "allow_private_hosts": (self.host,), "deadline_s": 30.0}
        return LocalMedia(Settings(**{**given, "file_roots": (str(self.files),), **options}))  # type: ignore[arg-type]

    def url(self, name: str) -> str:
        return f"{self.base_url}/{name}"

    def copies(self) -> set[str]:
        """Names of the clips that have a copy; digests, where they are of none."""
        names = {digest: name for name, digest in self.digests.items()}
        return {names.get(path.name, path.name) for path in (self.directory / "media").iterdir()}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with serving(tmp_path / "site") as host:
        yield Site(tmp_path, f"http://{host}", host)


async def look(media: LocalMedia, url: str, digest: str | None = None, choice: FrameChoice | None = None) -> Medium:
    return (await media.describe(Source(url=url, kind=None), choice or FrameChoice(), 8, digest)).medium


async def shades(chunks: AsyncGenerator[DecodedChunk]) -> list[int]:
    return [int(frame.mean().round(-1)) for chunk in [c async for c in chunks] for frame in chunk.frames.frames]


def children() -> set[str]:
    pids: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            pids.update((task / "children").read_text().split())
    return pids


def test_a_video_is_fetched_probed_and_decoded_once_it_is_asked_for(site: Site) -> None:
    async def scene() -> None:
        media = site.media()
        described = await media.describe(Source(url=site.url("a"), kind=None), FrameChoice(), 8, None)
        video = described.medium
        assert (video.digest, video.frames, video.duration_s) == (site.digests["a"], FRAMES, FRAMES / RATE)
        assert [stage.stage for stage in described.stats] == ["fetch", "probe"]
        assert await shades(media.decode(video, 2)) == [20] * 8
        assert (await media.describe(Source(url=site.url("a"), kind=None), FrameChoice(), 4, video.digest)).stats == ()

    asyncio.run(scene())


def test_the_same_bytes_are_probed_once_wherever_they_come_from(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []

    async def probe(local: LocalFile, limits: Limits) -> VideoFacts:
        probed.append(local.digest)
        return await probe_async(local, limits)

    monkeypatch.setattr("services.media.probe_async", probe)

    async def scene() -> None:
        media = site.media()
        (site.files / "same").write_bytes((site.files / "a").read_bytes())
        urls = [site.url("a"), site.url("a"), site.url("same"), str(site.files / "a")]
        assert len({(await look(media, url)).digest for url in urls}) == 1
        await look(media, site.url("b"))
        assert probed == [site.digests["a"], site.digests["b"]]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("bound", "room"), [("_REMEMBERED", 2), ("_REMEMBERED_BYTES", 2 * 8 * (FRAMES + KEYS))], ids=["count", "bytes"]
)
def test_what_probes_said_is_forgotten_beyond_a_count_and_beyond_bytes(
    bound: str, room: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"services.media.{bound}", room)

    async def scene() -> None:
        media = site.media()
        first = await look(media, site.url("a"))
        await look(media, site.url("b"))
        await look(media, site.url("a"), first.digest)
        await look(media, site.url("c"))
        assert list(media._known) == [site.digests["a"], site.digests["c"]]

    asyncio.run(scene())


def test_what_was_not_used_for_longest_makes_room(site: Site) -> None:
    async def scene() -> None:
        media = site.media(video_cache_bytes=5 * site.bytes // 2)
        first = await look(media, site.url("a"))
        await look(media, site.url("b"))
        await shades(media.decode(first, 2))
        await look(media, site.url("c"))
        assert site.copies() == {"a", "c"}

    asyncio.run(scene())


def test_a_video_that_is_being_described_is_not_trimmed(site: Site) -> None:
    async def scene() -> None:
        media = site.media(video_cache_bytes=1)
        videos = await asyncio.gather(*(look(media, site.url(name)) for name in site.digests))
        assert [video.digest for video in videos] == list(site.digests.values())

    asyncio.run(scene())


@pytest.mark.parametrize("ending", ["trim", "forget"])
def test_a_video_that_is_being_decoded_stays_to_the_end(ending: str, site: Site) -> None:
    async def scene() -> None:
        media = site.media(video_cache_bytes=1)
        video = await look(media, site.url("a"))
        chunks = media.decode(video, 2)
        await anext(chunks)
        if ending == "trim":
            await look(media, site.url("b"))
            assert site.copies() == {"a", "b"}
        else:
            await media.forget(video.digest)
            assert site.copies() == {"a"}
        assert await shades(media.decode(video, 2)) == [20] * 8, "another one who comes meanwhile finds it too"
        assert await shades(chunks) == [20] * 6
        assert site.copies() == ({"a", "b"} if ending == "trim" else set())

    asyncio.run(scene())


def test_what_is_forgotten_and_fetched_again_stays(site: Site) -> None:
    async def scene() -> None:
        media = site.media()
        video = await look(media, site.url("a"))
        await media.forget(video.digest)
        assert site.copies() == set()
        chunks = media.decode(video, 2)
        await anext(chunks)
        await media.forget(video.digest)
        await look(media, site.url("a"))
        await chunks.aclose()
        assert site.copies() == {"a"}

    asyncio.run(scene())


def test_a_damaged_copy_is_fetched_anew(site: Site) -> None:
    async def scene(damage: Callable[[Path], object]) -> None:
        media = site.media()
        video = await look(media, site.url("a"))
        damage(site.directory / "media" / video.digest)
        assert await shades(media.decode(video, 2)) == [20] * 8

    asyncio.run(scene(lambda copy: copy.write_bytes((site.files / "b").read_bytes())))
    asyncio.run(scene(lambda copy: copy.write_bytes(b"no video")))
    asyncio.run(scene(lambda copy: copy.unlink()))


def test_an_address_that_gives_other_bytes_is_refused(site: Site) -> None:
    async def scene() -> None:
        media = site.media()
        video = await look(media, site.url("a"))
        await media.forget(video.digest)
        write_clip(site.files / "a", 50)
        with pytest.raises(SourceUnavailable, match="another file now"):
            await look(media, site.url("a"), video.digest)
        assert site.copies() == set()

    asyncio.run(scene())


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_that_was_replaced_is_not_the_one_that_was_described(in_place: bool, site: Site) -> None:
    async def scene() -> None:
        media = site.media()
        path = site.files / "a"
        video = await look(media, str(path))
        new = (site.files / "b").read_bytes()
        if in_place:
            path.write_bytes(new)
        else:
            (site.files / "b").rename(path)
        with pytest.raises(SourceUnavailable, match="another file now"):
            await shades(media.decode(video, 2))
        with pytest.raises(SourceUnavailable, match="another file now"):
            await look(media, str(path), video.digest)
        video = await look(media, str(path))
        assert video.digest == site.digests["b"]
        assert await shades(media.decode(video, 2)) == [120] * 8

    asyncio.run(scene())


def test_a_file_that_is_replaced_while_it_is_decoded_gives_no_whole_video(site: Site) -> None:
    async def scene() -> None:
        media = site.media()
        chunks = media.decode(await look(media, str(site.files / "a")), 2)
        await anext(chunks)
        (site.files / "b").rename(site.files / "a")
        with pytest.raises(SourceUnavailable, match="changed while it was decoded"):
            await shades(chunks)

    asyncio.run(scene())


def test_cancelling_a_description_ends_its_work(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COMMAND", ("-S", "-c", "import time; time.sleep(60)"))

    async def scene() -> None:
        media = site.media()
        others = children()
        task = asyncio.create_task(look(media, site.url("a")))
        while not children() - others:
            await asyncio.sleep(0.02)
        await media.forget(site.digests["a"])
        assert site.copies() == {"a"}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() <= others
        assert site.copies() == set()

    asyncio.run(scene())


def test_slow_servers_are_bounded_and_hold_up_no_decoding(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        media = site.media(max_fetches=2, max_decodes=1)
        medium = await look(media, site.url("a"))
        fetching = 0

        async def stalled(*_: object, **__: object) -> LocalFile:
            nonlocal fetching
            fetching += 1
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr("services.media.fetch", stalled)
        slow = [asyncio.create_task(look(media, site.url("b"))) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert fetching == 2
        assert len(await shades(media.decode(medium, 4))) > 0
        assert await look(media, site.url("a"), medium.digest) == medium
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(main())


def test_a_new_process_finds_the_copies_and_clears_up(site: Site) -> None:
    async def scene() -> None:
        video = await look(site.media(), site.url("a"))
        left = site.directory / "media" / "tmp123"
        left.mkdir()
        (left / "half.video").write_bytes(b"half")
        media = site.media()
        assert site.copies() == {"a"}
        (site.files / "a").unlink()
        assert await shades(media.decode(video, 2)) == [20] * 8

    asyncio.run(scene())


def test_a_full_disk_is_said_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    media = site.media()
    monkeypatch.setattr("services.copies.TemporaryDirectory", full)
    with pytest.raises(Overloaded, match="No space left"):
        asyncio.run(look(media, site.url("a")))


OFF = "from pipelines.ingest import sandbox, seccomp; from pipelines.ingest.child import main; "


@pytest.mark.parametrize(
    ("off", "missing"),
    [
        ("seccomp.install = lambda: False; ", ("seccomp",)),
        ("seccomp.install = lambda: False; sandbox._restrict_files = lambda *_: 0; ", ("landlock", "seccomp")),
    ],
)
def test_walls_that_the_host_lacks_are_said_once_and_when_asked(
    off: str,
    missing: tuple[str, ...],
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process._warn.cache_clear()

    async def scene() -> None:
        whole = await site.media().missing_walls()
        warnings = len(caplog.records)
        monkeypatch.setattr(process, "_COMMAND", ("-s", "-c", OFF + off + "main()"))
        media = site.media()
        for name in site.digests:
            await look(media, site.url(name))
        gone = tuple(wall for wall in ("landlock", "seccomp", "namespaces") if wall in {*missing, *whole})
        assert await media.missing_walls() == gone
        assert [record.message for record in caplog.records[warnings:]] == [
            f"videos are decoded in a sandbox without {' and '.join(gone)}, which this host does not have"
        ]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("start_s", "end_s", "seconds"),
    [(None, None, 2.0), (None, 0.5, 0.0), (0.5, 1.5, 0.5), (1.5, None, 1.5), (2.8, None, 0.2), (2.5, 9.0, 0.5)],
)
def test_seconds_are_those_of_the_range_that_the_video_covers(
    start_s: float | None, end_s: float | None, seconds: float, site: Site
) -> None:
    """The frames begin a second after the sound."""
    write_clip(site.files / "late", 80, silence_s=1.0)
    choice = FrameChoice(start_s=start_s, end_s=end_s)
    video = asyncio.run(look(site.media(), str(site.files / "late"), choice=choice))
    assert video.duration_s == pytest.approx(2.0)
    assert video.seconds == pytest.approx(seconds)


def test_a_rate_over_the_limit_is_refused_with_the_limit(site: Site) -> None:
    with pytest.raises(InvalidInput, match=r"fps is 1e\+09, more than the limit of 1000"):
        asyncio.run(look(site.media(), str(site.files / "a"), choice=FrameChoice(fps=1e9)))
