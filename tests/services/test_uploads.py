"""Uploads over the service in one process: bytes to the disk and nowhere else, and gone when nobody needs them."""

import asyncio
import errno
import hashlib
import resource
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from occam.errors import InvalidInput, Overloaded, SourceUnavailable
from pipelines.ingest.limits import Limits
from services.keys import entry_of, fresh_key
from services.media import LocalMedia
from services.messages import UploadPiece
from services.settings import Settings
from services.upload_files import UploadFiles
from services.uploads import PIECE_BYTES
from tests.redis_server import RedisServer
from tests.services.test_media import write_clip
from tests.services.world import Play, World

CLIP = b"GIF89a" + bytes(2000)
DIGEST = hashlib.sha256(CLIP).hexdigest()
FORM = {"content-type": "multipart/form-data; boundary=edge"}


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"kv_url": "memory://"}


def on_disk(folder: Path) -> list[str]:
    """Files and folders of uploads, finished and not."""
    return sorted(path.name for path in (folder / "uploads").rglob("*"))


def part(name: str, data: bytes, edge: str = "edge") -> bytes:
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="clip.mp4"\r\n\r\n'
    return head.encode() + data + b"\r\n"


END = b"--edge--\r\n"


async def upload(service: World, data: bytes = CLIP) -> dict[str, Any]:
    response = await service.http.post("/v1/videos", files={"file": ("clip.mp4", data, "video/mp4")})
    assert response.status_code == 200, response.text
    return response.json()


async def ready(service: World, video: str) -> str:
    while (status := (await service.http.get(f"/v1/videos/{video}")).json()["status"]) == "processing":
        await asyncio.sleep(0.02)
    return status


def test_an_uploaded_video_is_one_like_any_other(play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        fetched = (await service.http.post("/v1/videos", json={"url": "fake://clip"})).json()
        posted = await upload(service)
        assert set(posted) == set(fetched)
        assert posted["digest"] == DIGEST
        assert await ready(service, posted["id"]) == "ready"
        assert (await service.query(posted["id"], "what?"))["answer"].startswith("saw 8 frames")
        assert on_disk(tmp_path) == [DIGEST]
        assert (tmp_path / "uploads" / DIGEST).read_bytes() == CLIP
        assert (await service.http.delete(f"/v1/videos/{posted['id']}")).status_code == 204
        assert on_disk(tmp_path) == []

    play(scene)


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (part("video", CLIP) + END, 400, "malformed", "part is 'video'; the one part of the form is 'file'"),
        (part("file", CLIP) + part("file", CLIP) + END, 400, "malformed", "more than one part"),
        (part("file", CLIP) + part("model", b"x") + END, 400, "malformed", "more than one part"),
        (b"--edge\r\n\r\n" + CLIP + b"\r\n" + END, 400, "malformed", "part has no name"),
        (END, 400, "malformed", "no part 'file'"),
        (b"", 400, "malformed", "no part 'file'"),
        (part("file", CLIP), 400, "malformed", "breaks off"),
        (part("file", CLIP, "other"), 400, "malformed", "is not multipart/form-data"),
        (part("file", CLIP) + END + bytes(70_000), 400, "malformed", "more than 65536 bytes beside its file"),
        (part("file", b"") + END, 415, "unsupported_video", "The file is empty"),
        (part("file", b"\x89PNG\r\n\x1a\n" + bytes(99)) + END, 415, "unsupported_video", "image_url"),
        (part("file", b"#EXTM3U\nhttp://10.0.0.1/a.ts\n") + END, 415, "unsupported_video", "playlist"),
        (part("file", b"ffconcat version 1.0\nfile /etc/passwd\n") + END, 415, "unsupported_video", "playlist"),
        (part("file", b"hello") + END, 415, "unsupported_video", "first bytes"),
    ],
)
def test_what_is_no_upload_is_refused_in_words(
    body: bytes, status: int, code: str, said: str, play: Play, tmp_path: Path
) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/videos", content=body, headers=FORM)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert said in error["message"]
        assert on_disk(tmp_path) == []

    play(scene)


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ("multipart/form-data", 400, "names no boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, 400, "boundary cannot be used"),
        ("text/plain", 415, "The body is 'text/plain'; it must be application/json with a `url`, or multipart"),
        ("application/x-www-form-urlencoded", 415, "The body is 'application/x-www-form-urlencoded'"),
        ("", 415, "The body has no Content-Type"),
    ],
)
def test_a_body_of_another_type_is_refused_in_words(given: str, status: int, said: str, play: Play) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/videos", content=part("file", CLIP), headers={"content-type": given})
        assert response.status_code == status
        assert said in response.json()["error"]["message"]

    play(scene)


def test_a_file_over_the_limit_is_refused_when_it_crosses_it(play: Play, tmp_path: Path) -> None:
    """Whatever its headers say: a chunked body says nothing."""
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        yield part("file", CLIP)[:-2]
        while given < 1000:
            given += 1
            yield bytes(10_000)

    async def scene(service: World) -> None:
        response = await service.http.post("/v1/videos", content=endless(), headers=FORM)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "video_too_large")
        assert response.json()["error"]["message"].endswith("more than the limit of 2500000.")
        assert given == 250
        assert on_disk(tmp_path) == []
        announced = await service.http.post("/v1/videos", content=b"", headers={**FORM, "content-length": "9000000"})
        assert announced.status_code == 413
        assert "The form has 9000000 bytes" in announced.json()["error"]["message"]

    play(scene, max_video_bytes=2_500_000, max_body_bytes=1000)


def test_other_bodies_stay_bounded(play: Play) -> None:
    async def scene(service: World) -> None:
        for path, headers in (("/v1/videos", {"content-type": "application/json"}), ("/v1/chat/completions", FORM)):
            response = await service.http.post(path, content=bytes(2000), headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")

    play(scene, max_body_bytes=1000)


def test_an_upload_goes_to_the_disk_and_not_into_memory(play: Play, tmp_path: Path) -> None:
    size = 64 * PIECE_BYTES
    block = bytes(PIECE_BYTES // 8)

    async def body() -> AsyncIterator[bytes]:
        yield part("file", CLIP)[:-2]
        for _ in range(size // len(block)):
            yield block
        yield b"\r\n" + END

    async def scene(service: World) -> None:
        await upload(service)  # what is imported and cached the first time
        tracemalloc.start()
        response = await service.http.post("/v1/videos", content=body(), headers=FORM)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert response.status_code == 200
        assert (tmp_path / "uploads" / response.json()["digest"]).stat().st_size == size + len(CLIP)
        assert peak < 12 * PIECE_BYTES

    play(scene)


@pytest.mark.parametrize("ending", ["disconnect", "cancel"])
def test_a_client_that_hangs_up_leaves_nothing(ending: str, play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        halfway = asyncio.Event()
        messages = [part("file", CLIP), bytes(2 * PIECE_BYTES)]

        async def receive() -> dict[str, Any]:
            if messages:
                return {"type": "http.request", "body": messages.pop(0), "more_body": True}
            halfway.set()
            if ending == "cancel":
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            pass

        scope = {
            "type": "http", "method": "POST", "path": "/v1/videos", "raw_path": b"/v1/videos", "query_string": b"",
            "headers": [(b"content-type", FORM["content-type"].encode())], "root_path": "", "http_version": "1.1",
        }  # fmt: skip
        request = asyncio.create_task(service.http._transport.app(scope, receive, send))  # type: ignore[attr-defined]
        await halfway.wait()
        if ending == "cancel":
            assert len(on_disk(tmp_path)) == 2, "the folder and the file of what has come"
            request.cancel()
        await asyncio.wait([request])
        assert on_disk(tmp_path) == []

    play(scene)


def test_an_upload_that_takes_too_long_is_ended(play: Play, tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield part("file", CLIP)
        await asyncio.Event().wait()

    async def scene(service: World) -> None:
        response = await service.http.post("/v1/videos", content=stalled(), headers=FORM)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert "0.1 s" in response.json()["error"]["message"]
        assert on_disk(tmp_path) == []

    play(scene, upload_s=0.1)


def test_a_file_stays_as_long_as_a_record_refers_to_it(play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        first, second = await upload(service), await upload(service)
        assert first["id"] != second["id"]
        await ready(service, second["id"])
        await service.http.delete(f"/v1/videos/{first['id']}")
        assert on_disk(tmp_path) == [DIGEST]
        assert (await service.query(second["id"], "what?", start_s=1))["answer"].startswith("saw 8 frames")
        await service.http.delete(f"/v1/videos/{second['id']}")
        assert on_disk(tmp_path) == []

    play(scene)


def test_a_file_goes_when_its_record_has_expired(play: Play, own_redis: RedisServer, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        kept, gone = await upload(service, CLIP), await upload(service, CLIP + b"2")
        await ready(service, gone["id"])
        app = service.http._transport.app  # type: ignore[attr-defined]
        own_redis.client.delete(f"video:{gone['id']}")
        own_redis.client.set("video:torn", b'{"id": ')
        async with app.router.lifespan_context(app):
            while len(on_disk(tmp_path)) > 1:
                await asyncio.sleep(0.01)
        assert on_disk(tmp_path) == [kept["digest"]]

    play(scene, state_url=own_redis.url)


def test_nothing_is_swept_while_the_records_cannot_be_read(play: Play, own_redis: RedisServer, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        await upload(service)
        own_redis.kill()
        response = await service.http.post("/v1/videos", files={"file": CLIP + b"2"})
        assert response.status_code == 503
        assert DIGEST in on_disk(tmp_path)

    play(scene, state_url=own_redis.url)


def test_all_uploads_together_are_bounded(play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        posted = await upload(service)
        response = await service.http.post("/v1/videos", files={"file": CLIP + b"2"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "60")
        said = response.json()["error"]["message"]
        assert f"would take {2 * len(CLIP) + 1} bytes" in said
        assert "over the limit of 3000" in said
        assert on_disk(tmp_path) == [DIGEST]
        assert (await service.http.post("/v1/videos", files={"file": bytes(3001)})).status_code == 413
        await service.http.delete(f"/v1/videos/{posted['id']}")
        await upload(service, CLIP + b"2")

    play(scene, upload_bytes=3000)


ACME, OTHER = fresh_key(), fresh_key()
AS_OTHER = {"authorization": f"Bearer {OTHER}"}
TENANTS = {
    "api_keys": (entry_of("acme", ACME), entry_of("other", OTHER)),
    "headers": {"authorization": f"Bearer {ACME}"},
}


async def sent(service: World, data: bytes, **given: Any) -> httpx.Response:
    return await service.http.post("/v1/videos", files={"file": ("clip.mp4", data, "video/mp4")}, **given)


def check_refused(response: httpx.Response) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], response.headers["retry-after"]) == (429, "quota_exceeded", "60")
    assert "over the limit of 5000 for one tenant (OCCAM_TENANT_UPLOAD_BYTES)" in error["message"]


def test_one_tenant_cannot_take_all_the_room(play: Play, own_redis: RedisServer, tmp_path: Path) -> None:
    """Half of it, by default; what it deletes or lets expire gives room back, and the same bytes count once."""
    more = [CLIP + bytes([number]) for number in range(4)]

    async def scene(service: World) -> None:
        first, _, second = [await upload(service, data) for data in (more[0], more[0], more[1])]
        check_refused(await sent(service, more[2]))
        assert len(on_disk(tmp_path)) == 2
        assert [(await sent(service, data, headers=AS_OTHER)).status_code for data in more[2:]] == [200, 200]
        check_refused(await sent(service, more[0], headers=AS_OTHER))
        await service.http.delete(f"/v1/videos/{second['id']}")
        third = await upload(service, more[2])
        await service.http.delete(f"/v1/videos/{first['id']}")
        check_refused(await sent(service, more[3]))
        own_redis.client.delete(f"video:{third['id']}")  # as Redis does when its time is over
        await upload(service, more[3])
        assert own_redis.client.keys("upload:*") == []
        assert (await sent(service, CLIP + bytes(70_000))).status_code == 413, "more than a tenant may have at all"

    play(scene, upload_bytes=10_000, state_url=own_redis.url, **TENANTS)


def test_uploads_under_way_take_their_tenants_room(play: Play, own_redis: RedisServer) -> None:
    """As much as they announce, or as the largest file; what breaks off gives it back, and so does a dead ingress."""

    async def scene(service: World) -> None:
        for headers in (FORM, {**FORM, "content-length": "3500"}):
            begun, go_on = asyncio.Event(), asyncio.Event()

            async def slow(begun: asyncio.Event = begun, go_on: asyncio.Event = go_on) -> AsyncIterator[bytes]:
                yield part("file", CLIP)
                begun.set()
                await go_on.wait()  # and breaks off

            coming = asyncio.create_task(service.http.post("/v1/videos", content=slow(), headers=headers))
            await begun.wait()
            check_refused(await sent(service, CLIP))
            assert (await sent(service, CLIP, headers=AS_OTHER)).status_code == 200
            go_on.set()
            assert (await coming).status_code == 400
        own_redis.client.hset("uploads:of:acme", mapping={"video-dead": "4000 ", "video-damaged": "?"})
        own_redis.client.set("upload:video-dead", "", px=200)
        check_refused(await sent(service, CLIP))
        await asyncio.sleep(0.25)
        await upload(service)
        assert own_redis.client.hlen("uploads:of:acme") == 1
        assert own_redis.client.keys("upload:*") == []

    play(scene, tenant_upload_bytes=5000, state_url=own_redis.url, **TENANTS)


def test_how_much_room_a_tenant_has() -> None:
    keys = (entry_of("acme", ACME),)
    for given, most in (
        ({}, 1000),
        ({"api_keys": keys}, 500),
        ({"api_keys": keys, "tenant_upload_bytes": 700}, 700),
        ({"tenant_upload_bytes": 2000}, 1000),
    ):
        assert Settings(upload_bytes=1000, **given).most_upload_bytes == most  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="OCCAM_TENANT_UPLOAD_BYTES must be 0 or more and finite, got -1"):
        Settings(tenant_upload_bytes=-1)


def test_a_service_that_is_started_anew_finds_its_uploads(play: Play, tmp_path: Path) -> None:
    videos: list[str] = []

    async def before(service: World) -> None:
        videos.append((await upload(service))["id"])
        await ready(service, videos[0])
        (tmp_path / "uploads" / "tmp-of-a-killed-process").mkdir()

    async def after(service: World) -> None:
        answer = await service.query(videos[0], "what?")
        assert answer["occam"]["cache"] == "none"
        assert on_disk(tmp_path) == [DIGEST]
        (tmp_path / "uploads" / DIGEST).unlink()
        response = await service.http.post(f"/v1/videos/{videos[0]}/queries", json={"question": "x", "start_s": 1})
        assert (response.status_code, response.json()["error"]["code"]) == (422, "source_unavailable")
        assert "Upload it again" in response.json()["error"]["message"]

    play(before)
    play(after)


def test_a_real_clip_is_uploaded_decoded_and_never_trimmed(play: Play, tmp_path: Path) -> None:
    digest = write_clip(tmp_path / "clip.mkv", 120)
    data = (tmp_path / "clip.mkv").read_bytes()

    async def scene(service: World) -> None:
        posted = await upload(service, data)
        assert (posted["digest"], posted["frames"], posted["duration_s"]) == (digest, 20, 2.0)
        assert await ready(service, posted["id"]) == "ready"
        first, again = [await service.query(posted["id"], "what?", end_s=1) for _ in range(2)]
        assert first["answer"].startswith("saw 8 frames")
        assert (first["occam"]["cache"], again["occam"]["cache"]) == ("none", "memory")
        assert first["timings"]["decode_s"] > 0
        assert again["timings"]["fetch_s"] == again["timings"]["decode_s"] == 0, "of one range only the first decodes"
        for url in (f"upload:{digest}", f"UPLOAD:{digest}"):
            refused = await service.http.post("/v1/videos", json={"url": url})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "forbidden_source")
        broken = await service.http.post("/v1/videos", files={"file": data[:200] + bytes(500)})
        assert (broken.status_code, broken.json()["error"]["code"]) == (415, "unsupported_video")
        assert on_disk(tmp_path) == [digest], "what turns out to be broken does not stay"
        (tmp_path / "uploads" / digest).unlink()
        lost = await service.http.post(f"/v1/videos/{posted['id']}/queries", json={"question": "x", "start_s": 1})
        assert (lost.status_code, lost.json()["error"]["code"]) == (422, "source_unavailable")
        assert "Upload it again" in lost.json()["error"]["message"]

    play(scene, media=LocalMedia, video_cache_bytes=1)


def test_the_document_names_both_bodies(play: Play) -> None:
    async def scene(service: World) -> None:
        document = (await service.http.get("/openapi.json")).json()
        body = document["paths"]["/v1/videos"]["post"]["requestBody"]
        assert set(body["content"]) == {"application/json", "multipart/form-data"}
        form = body["content"]["multipart/form-data"]
        assert form["schema"]["properties"]["file"]["format"] == "binary"
        assert "example" in form
        assert document["components"]["schemas"]["VideoRequest"]["examples"]

    play(scene)


def test_files_that_nobody_closes_are_dropped_and_lost_pieces_said_so(tmp_path: Path) -> None:
    async def scene() -> None:
        now = [0.0]
        files = UploadFiles(tmp_path / "uploads", Limits(), 10_000, stale_s=60, clock=lambda: now[0])
        await files.take(UploadPiece(upload="a", offset=0, data=CLIP))
        for offset in (len(CLIP) - 1, len(CLIP) + 1):
            with pytest.raises(SourceUnavailable, match="Upload the file again"):
                await files.take(UploadPiece(upload="a", offset=offset, data=CLIP))
        with pytest.raises(SourceUnavailable, match="Upload the file again"):
            await files.finish("unknown")
        digest = await files.finish("a")
        files.forget([digest])
        assert digest in on_disk(tmp_path), "its record may be on its way"
        await files.take(UploadPiece(upload="b", offset=0, data=CLIP * 3))
        with pytest.raises(Overloaded):
            await files.take(UploadPiece(upload="c", offset=0, data=CLIP))
        now[0] = 61
        await files.take(UploadPiece(upload="c", offset=0, data=CLIP))
        files.forget([digest])
        assert files.kept() == ()
        files.close("c")
        assert on_disk(tmp_path) == []

    asyncio.run(scene())


@contextmanager
def limit(kind: int, most: int) -> Iterator[None]:
    """A limit of this process's own."""
    usual = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, usual)


def test_a_machine_that_keeps_no_more_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not grow stands for a full disk: the system refuses a write in the same place."""

    async def scene() -> None:
        files = UploadFiles(tmp_path / "uploads", Limits(), 10_000, stale_s=60)

        async def uploaded(name: str) -> str:
            await files.take(UploadPiece(upload=name, offset=0, data=CLIP))
            return await files.finish(name)

        for kind, most, said in (
            (resource.RLIMIT_FSIZE, 1000, "File too large"),
            (resource.RLIMIT_NOFILE, 3, "Too many open files"),
        ):
            await asyncio.to_thread(int)  # its pool's thread is there before files cannot be opened
            with limit(kind, most), pytest.raises(Overloaded, match=f"cannot be kept on this machine: {said}"):
                await uploaded("refused")
            files.close("refused")

        def full(*args: Any) -> Path:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", full)
            with pytest.raises(Overloaded, match="this machine: No space left on device"):
                await uploaded("not moved")
        files.close("not moved")
        assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == []
        assert await uploaded("later") == DIGEST
        files.close("later")

    asyncio.run(scene())
