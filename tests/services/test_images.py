"""Images and several models, over the service in one process: fakes for most, a real decoder where pixels matter."""

import asyncio
import base64
import io
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from occam.kv.store import TieredStore
from services.media import LocalMedia
from tests.redis_server import RedisServer
from tests.services.world import Play, World

IMAGES, BOTH = "fake-images", "fake-both"


@pytest.fixture
def usual() -> dict[str, Any]:
    """A model of videos, one of images and one of both."""
    return {"models": ("fake", IMAGES, BOTH)}


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def still(shade: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def inside(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def user(text: str, *media: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


async def post(service: World, model: str, *messages: dict[str, Any], **options: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": model, "messages": list(messages), **options}
    response = await service.http.post("/v1/chat/completions", json=body)
    return response.status_code, response.json()


async def ask(service: World, model: str, *messages: dict[str, Any], **options: Any) -> dict[str, Any]:
    status, body = await post(service, model, *messages, **options)
    assert status == 200, body
    return body


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_openais_client_asks_about_an_image(play: Play) -> None:
    async def scene(service: World) -> None:
        labels = {"model": IMAGES, "strategy": "occam", "stage": "encoded"}
        before = count("occam_visual_tokens_total", **labels), count("occam_frames_decoded_total", backend="pillow")
        client = openai.AsyncOpenAI(base_url="http://occam/v1", api_key="any", http_client=service.http)
        messages: Any = [user("what?", image(inside(still(7))))]
        first, second = [
            await client.chat.completions.create(model=IMAGES, messages=messages, extra_body={"occam": {}})
            for _ in range(2)
        ]
        assert first.choices[0].message.content.startswith("saw 1 frames turn 0")
        assert second.choices[0].message.content == first.choices[0].message.content
        for answer, cache in ((first, "none"), (second, "memory")):
            assert answer.usage.model_extra["visual_tokens"] == {"encoded": 4, "stage1": 2, "stage2": 1}
            assert answer.usage.model_extra["video_seconds"] == 0
            assert answer.model_extra["occam"]["cache"] == cache
        assert count("occam_visual_tokens_total", **labels) - before[0] == 8, "two answers"
        assert count("occam_frames_decoded_total", backend="pillow") - before[1] == 1, "one decoding"

    play(scene, media=LocalMedia)


def test_an_image_comes_from_a_file_an_address_or_the_request(play: Play, tmp_path: Path) -> None:
    """One image is one image wherever it comes from; another one gives another answer."""

    async def scene(service: World) -> None:
        (tmp_path / "a.png").write_bytes(still(7))
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        urls = [str(tmp_path / "a.png"), f"http://127.0.0.1:{port}/a", inside(still(7)), inside(still(8))]
        answers = [await ask(service, IMAGES, user("what?", image(url))) for url in urls]
        server.close()
        assert [answer["occam"]["cache"] for answer in answers] == ["none", "memory", "memory", "none"]
        assert len({text_of(answer) for answer in answers}) == 2
        assert text_of(answers[3]) not in map(text_of, answers[:3])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(still(7)) + still(7))
        writer.close()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    play(scene, media=LocalMedia, file_roots=(str(tmp_path),), allow_private_hosts=(f"127.0.0.1:{port}",))


def test_a_session_remembers_an_image_and_not_its_bytes(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        url = inside(still(9))
        first = await ask(service, IMAGES, user("what?", image(url)))
        session = {"session_id": first["occam"]["session_id"]}
        (record,) = (redis_server.client.get(key) for key in redis_server.client.keys("session:*"))
        assert len(url) > 100
        assert url[30:60].encode() not in record
        assert " turn 1 " in text_of(await ask(service, IMAGES, user("and?"), occam=session))
        assert " turn 2 " in text_of(await ask(service, IMAGES, user("and?", image(url)), occam=session))
        status, body = await post(service, IMAGES, user("and?", image(inside(still(10)))), occam=session)
        assert (status, body["error"]["param"]) == (422, "media")

    play(scene, media=LocalMedia)


def test_an_image_whose_every_copy_is_gone_must_be_sent_again(play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        message = user("what?", image(inside(still(9))))
        first = await ask(service, IMAGES, message)
        session = {"session_id": first["occam"]["session_id"]}
        (copy,) = (tmp_path / "media").iterdir()
        copy.unlink()
        status, body = await post(service, IMAGES, user("and?"), occam=session)
        assert (status, body["error"]["code"]) == (422, "source_unavailable")
        assert "Send it again" in body["error"]["message"]
        assert text_of(await ask(service, IMAGES, message)) == text_of(first)
        assert " turn 1 " in text_of(await ask(service, IMAGES, user("and?"), occam=session))

    play(scene, media=LocalMedia, kv_url="memory://", kv_memory_bytes=1)


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        (inside(still(1)[:45]), 415, "unsupported_video"),
        (inside(b"GIF89a" + bytes(100)), 415, "unsupported_video"),
        (inside(b"%PDF-1.7"), 415, "unsupported_video"),
        (inside(bytes(2000)), 413, "video_too_large"),
        ("data:text/html;base64,AAAA", 422, "forbidden_source"),
        ("file:///etc/passwd", 422, "forbidden_source"),
        ("http://169.254.169.254/latest/", 422, "forbidden_source"),
    ],
)
def test_images_that_cannot_be_had_are_typed_errors(play: Play, url: str, status: int, code: str) -> None:
    async def scene(service: World) -> None:
        got, body = await post(service, IMAGES, user("what?", image(url)))
        assert (got, body["error"]["code"]) == (status, code), body

    play(scene, media=LocalMedia, max_image_bytes=1500)


def test_the_order_and_number_of_images_matter(play: Play) -> None:
    async def scene(service: World) -> None:
        a, b = image("fake://a"), image("fake://b")
        texts = []
        for media in ((a,), (b,), (a, b), (b, a), (a, a), (a, b, a)):
            answer = await ask(service, IMAGES, user("what?", *media))
            assert answer["occam"]["cache"] in ("none", "embeddings"), "the state is its own"
            assert text_of(answer).startswith(f"saw {len(media)} frames")
            texts.append(text_of(answer))
        assert len(set(texts)) == 6
        again = await ask(service, IMAGES, user("what?", a, b, a))
        assert (again["occam"]["cache"], text_of(again)) == ("memory", texts[-1])
        behind = {"role": "user", "content": [{"type": "text", "text": "what?"}, a, b]}
        assert text_of(await ask(service, IMAGES, behind)) == texts[2], "media stand before the text of their turn"

    play(scene)


def test_all_media_of_a_prompt_are_looked_up_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow cache costs its round trips once, however many images there are."""
    together = asyncio.Barrier(3)

    async def lookup(*_: object) -> tuple[None, bool]:
        async with asyncio.timeout(30):
            await together.wait()
        return None, True

    async def scene(service: World) -> None:
        monkeypatch.setattr(TieredStore, "get_embeddings", lookup)
        media = [image(f"fake://{name}") for name in "xyz"]
        assert text_of(await ask(service, IMAGES, user("what?", *media))).startswith("saw 3 frames")

    play(scene)


def test_a_video_and_images_in_one_prompt(play: Play) -> None:
    async def scene(service: World) -> None:
        a, clip = image("fake://a"), video("fake://clip")
        one = await ask(service, BOTH, user("what?", a, clip), occam={"max_frames": 4, "evidence": True})
        two = await ask(service, BOTH, user("what?", clip, a), occam={"max_frames": 4})
        assert text_of(one).startswith("saw 5 frames")
        assert len(one["occam"]["evidence"]["frames"]) == 5
        assert text_of(one) != text_of(two)
        assert one["usage"]["video_seconds"] == 2.0

    play(scene)


def test_one_address_as_video_and_as_image_are_two_media(play: Play) -> None:
    async def scene(service: World) -> None:
        answers = [await ask(service, BOTH, user("what?", part("fake://same?frames=1"))) for part in (video, image)]
        assert [answer["occam"]["cache"] for answer in answers] == ["none", "none"]

    play(scene)


def test_media_come_with_the_first_turn(play: Play) -> None:
    async def scene(service: World) -> None:
        a, said = image("fake://a"), {"role": "assistant", "content": "it is"}
        assert " turn 1 " in text_of(await ask(service, IMAGES, user("what?", a), said, user("and?", a)))
        status, body = await post(service, IMAGES, user("what?", a), said, user("and?", image("fake://b")))
        assert (status, body["error"]["param"]) == (422, "messages")
        assert "first turn" in body["error"]["message"]

    play(scene)


@pytest.mark.parametrize(
    ("model", "message", "options", "param", "says"),
    [
        ("fake", user("?", image("fake://missing")), {}, "model", "fake takes video input, not image."),
        (IMAGES, user("?", video("fake://missing")), {}, "model", "fake-images takes image input, not video."),
        ("fake", user("?", *[image("fake://missing")] * 17), {}, "messages", "17 images, more than the limit of 16"),
        (BOTH, user("?", *[video("fake://missing")] * 2), {}, "messages", "one video, the messages have 2"),
        (IMAGES, user("?", image("fake://missing")), {"fps": 1}, "occam", "choose frames of a video"),
        (IMAGES, user("?"), {}, "messages", "no media"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_fetched(
    play: Play, model: str, message: dict[str, Any], options: dict[str, Any], param: str, says: str
) -> None:
    async def scene(service: World) -> None:
        failures = count("occam_decode_failures_total", reason="source_unavailable")
        status, body = await post(service, model, message, occam=options)
        assert (status, body["error"]["code"], body["error"]["param"]) == (422, "invalid_input", param)
        assert says in body["error"]["message"]
        assert count("occam_decode_failures_total", reason="source_unavailable") == failures

    play(scene)


def test_a_posted_video_goes_to_a_model_that_takes_videos(play: Play) -> None:
    async def with_one(service: World) -> None:
        posted = await service.post_video()
        answer = await service.query(posted, "who?")
        assert (answer["model"], answer["occam"]["cache"]) == ("fake", "memory"), "encoded ahead, for this model"
        body = {"question": "what?", "model": IMAGES}
        refused = await service.http.post(f"/v1/videos/{posted}/queries", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")

    async def with_none(service: World) -> None:
        refused = await service.http.post("/v1/videos", json={"url": "fake://missing"})
        assert refused.status_code == 422
        assert refused.json()["error"]["message"] == "fake-images takes image input, not video."

    play(with_one, models=(IMAGES, "fake"))
    play(with_none, models=(IMAGES,))


def test_a_posted_image_is_no_video(play: Play, tmp_path: Path) -> None:
    async def scene(service: World) -> None:
        (tmp_path / "a.png").write_bytes(still(7))
        refused = await service.http.post("/v1/videos", json={"url": str(tmp_path / "a.png")})
        assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_video")
        assert "image, not video" in refused.json()["error"]["message"]

    play(scene, media=LocalMedia, file_roots=(str(tmp_path),))


def test_two_models_answer_side_by_side_and_share_no_state(play: Play) -> None:
    async def scene(service: World) -> None:
        clip = user("who?", video("fake://beside"))
        for cache in ("none", "memory"):
            for model in ("fake", BOTH):
                answer = await ask(service, model, clip)
                assert text_of(answer).endswith(f" by {model}")
                assert (answer["model"], answer["occam"]["cache"]) == (model, cache)
        posted = await service.post_video("fake://posted")
        for model, cache in (("fake", "memory"), (BOTH, "none"), (BOTH, "memory")):
            answer = await service.query(posted, "who?", model=model)
            assert answer["answer"].endswith(f" by {model}")
            assert (answer["model"], answer["occam"]["cache"]) == (model, cache)
        status, body = await post(service, "other", clip)
        assert (status, body["error"]["code"]) == (404, "unknown_model")
        listed = (await service.http.get("/v1/models")).json()["data"]
        assert {model["id"]: model["media"] for model in listed} == {
            "fake": ["video"], IMAGES: ["image"], BOTH: ["video", "image"],
        }  # fmt: skip

    play(scene)
