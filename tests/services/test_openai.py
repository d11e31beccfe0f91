"""The official client against the service behind a real socket: what it is given, and the exceptions it documents."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from ray.serve.exceptions import BackPressureError

from services.keys import entry_of, fresh_key
from tests.redis_server import RedisServer
from tests.services.local import LocalStream
from tests.services.served import Served, served

MODEL, BOTH = "fake", "fake-both"
CLIP = {"type": "video_url", "video_url": {"url": "fake://clip"}}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def asking(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("openai"), shared_redis.url, models=(MODEL, BOTH)) as live:
        yield live


@pytest.fixture
def client(service: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_a_question_and_the_same_in_pieces(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    whole = create(model=MODEL, messages=asking(CLIP, text("what?")))
    assert said(whole).startswith("saw 8 frames turn 0")
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(
        create(model=MODEL, messages=asking(CLIP, text("what?")), stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said(whole)
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_a_follow_up_by_session_or_by_messages_that_are_sent_again(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    first = create(model=MODEL, messages=asking(CLIP, text("what?")))
    replayed = [*asking(CLIP, text("what?")), {"role": "assistant", "content": said(first)}]
    by_text = create(model=MODEL, messages=[*replayed, {"role": "user", "content": "and then?"}])
    session = first.model_extra["occam"]["session_id"]
    by_session = create(
        model=MODEL,
        messages=[{"role": "user", "content": "and then?"}],
        extra_body={"occam": {"session_id": session}},
    )
    assert " turn 1" in said(by_session)
    assert said(by_session) == said(by_text)


def test_images_by_address_and_inside_the_request(client: openai.OpenAI) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    inside = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    images = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in ("fake://photo", inside)]
    answer = client.chat.completions.create(model=BOTH, messages=asking(*images, text("what?")))
    assert said(answer).startswith("saw 2 frames")
    with pytest.raises(openai.UnprocessableEntityError, match="fake takes video input, not image"):
        client.chat.completions.create(model=MODEL, messages=asking(*images, text("what?")))


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, BOTH]


@pytest.mark.parametrize(
    ("given", "error", "param", "words"),
    [
        ({"model": "another"}, openai.NotFoundError, "model", "There is no model 'another'; there are: fake"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "max_tokens must be at least 1, got 0."),
        ({"extra_body": {"strategy": "none"}}, openai.BadRequestError, "strategy", "belongs into the object occam"),
        ({"messages": asking(text("what?"))}, openai.UnprocessableEntityError, "messages", "has no media"),
        (
            {"extra_body": {"occam": {"session_id": "none"}}},
            openai.NotFoundError,
            "occam.session_id",
            "There is no session with this id.",
        ),
    ],
)
def test_errors_are_the_exceptions_that_the_client_documents(
    client: openai.OpenAI, given: dict[str, Any], error: type[openai.APIStatusError], param: str, words: str
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": asking(CLIP, text("what?")), **given})
    refused = caught.value
    assert words in refused.message
    assert refused.param == param
    assert refused.request_id == refused.body["request_id"]  # type: ignore[index]


def test_an_overload_is_waited_out_by_the_client_itself(
    service: Served, monkeypatch: pytest.MonkeyPatch, client: openai.OpenAI
) -> None:
    """It waits for as long as `Retry-After` says, and its second try is answered; without tries it is an exception."""
    refuse_next(monkeypatch)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=asking(CLIP, text("what?")))
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    waits: list[float] = []
    refuse_next(monkeypatch)
    monkeypatch.setattr(time, "sleep", waits.append)
    answer = client.with_options(max_retries=1).chat.completions.create(
        model=MODEL, messages=asking(CLIP, text("what?"))
    )
    assert said(answer).startswith("saw 8 frames")
    assert 1.0 in waits


def refuse_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next stream from a worker is refused at its queue, as Ray does; those after it are not."""
    monkeypatch.undo()
    original, refused = LocalStream.__anext__, threading.Event()

    async def anext_or_refuse(stream: LocalStream) -> Any:
        if not refused.is_set():
            refused.set()
            raise BackPressureError(8, 8)
        return await original(stream)

    monkeypatch.setattr(LocalStream, "__anext__", anext_or_refuse)


def test_the_clients_own_timeout_is_its_exception(client: openai.OpenAI) -> None:
    clip = {"type": "video_url", "video_url": {"url": "fake://late?fetch=30"}}
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model=MODEL, messages=asking(clip, text("what?")))


def test_a_client_that_closes_its_stream_ends_the_work(client: openai.OpenAI) -> None:
    before = cancelled()
    stream = client.chat.completions.create(model=MODEL, messages=asking(CLIP, text("slow?")), stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    for _ in range(600):
        if cancelled() > before:
            break
        time.sleep(0.05)
    assert cancelled() == before + 1


def test_a_wrong_key_is_an_exception(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> None:
    key = fresh_key()
    with served(tmp_path_factory.mktemp("keys"), redis_server.url, api_keys=(entry_of("acme", key),)) as live:
        for given in (key, fresh_key()):
            with openai.OpenAI(base_url=f"{live.url}/v1", api_key=given, max_retries=0) as client:
                if given == key:
                    assert [model.id for model in client.models.list()] == [MODEL]
                    continue
                with pytest.raises(openai.AuthenticationError) as caught:
                    client.chat.completions.create(model=MODEL, messages=asking(CLIP, text("what?")))
                assert caught.value.request_id == caught.value.body["request_id"]  # type: ignore[index]


def cancelled() -> float:
    return REGISTRY.get_sample_value("occam_cancellations_total", {"stage": "generate"}) or 0.0


def test_the_asynchronous_client_works(service: Served) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
            create = client.chat.completions.create
            wholes = await asyncio.gather(
                *(create(model=MODEL, messages=asking(CLIP, text(f"what {i}?"))) for i in range(4))
            )
            assert all(said(whole).startswith("saw 8 frames") for whole in wholes)
            stream = await create(model=MODEL, messages=asking(CLIP, text("what 0?")), stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == said(wholes[0])
            with pytest.raises(openai.NotFoundError):
                await create(model="another", messages=asking(CLIP, text("what?")))

    asyncio.run(main())


def test_a_deadline_is_an_exception(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> None:
    folder = tmp_path_factory.mktemp("deadline")
    with (
        served(folder, redis_server.url, deadline_s=0.5) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=MODEL, messages=asking(CLIP, text("slow?")))
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        stream = client.chat.completions.create(model=MODEL, messages=asking(CLIP, text("slow?")), stream=True)
        with pytest.raises(openai.APIError, match=r"more than 0\.5 s"):
            list(stream)
