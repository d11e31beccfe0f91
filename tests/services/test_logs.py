"""The service's log: lines that machines read, that name their request, and that hold nothing of what users say."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

from services import logs, origin
from services.decoder import Decoder
from services.log_collector import collected
from services.prefixes import Prefixes
from services.settings import Settings
from services.worker import Worker
from tests.fakes import FakeMedia
from tests.services.world import MODEL, Play, World

SECRETS = ("whose-secret", "sig=planted", "occ_key", "10.11.12.13", "planted-text", "answer-in-history")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What the service of this process logs, as JSON."""
    stream = io.StringIO()
    logs.install(logging.StreamHandler(stream), Settings(log_format="json", log_level="debug"), "here")
    yield stream
    logs.uninstall()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_finished_request_is_one_line(play: Play, out: io.StringIO) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://logged")
        out.truncate(out.seek(0))
        answer = await service.query(video, "what?")
        (line,) = lines(out)
        assert {name: line[name] for name in ("level", "event", "component", "method", "route", "status")} == {
            "level": "info",
            "event": "request",
            "component": "here",
            "method": "POST",
            "route": "/v1/videos/{video_id}/queries",
            "status": 200,
        }
        assert (line["outcome"], line["tenant"], line["model"], line["cache"]) == ("ok", "public", MODEL, "memory")
        assert line["session_id"] == answer["session_id"]
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "visual_tokens", "video_seconds"):
            assert line[name] == answer["usage"][name]
        assert line["seconds"] >= line["ttft_s"] > 0
        assert line["time"].endswith("+00:00")

        out.truncate(out.seek(0))
        body = {"question": "what?", "stream": True}
        streamed = await service.http.post(f"/v1/videos/{video}/queries", json=body, headers={"x-request-id": "mine-1"})
        assert streamed.status_code == 200
        (line,) = lines(out)
        assert (line["request_id"], line["visual_tokens"]["stage2"]) == ("mine-1", 8)

    play(scene)


def test_what_fails_is_logged_with_its_request(play: Play, out: io.StringIO) -> None:
    async def scene(service: World) -> None:
        async def sent(path: str, **body: Any) -> list[dict[str, Any]]:
            out.truncate(out.seek(0))
            await service.http.post(path, json=body, headers={"x-request-id": "mine-2"})
            return lines(out)

        (line,) = await sent("/v1/videos/absent/queries", question="what?")
        assert (line["status"], line["outcome"], line["error"]) == (404, "client_error", "not_found")
        (line,) = await sent("/v1/videos", url="fake://missing")
        assert (line["level"], line["error"], line["request_id"]) == ("info", "source_unavailable", "mine-2")
        content = [{"type": "video_url", "video_url": {"url": "fake://corrupt"}}, {"type": "text", "text": "what?"}]
        chat = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": content}]}
        (line,) = await sent("/v1/chat/completions", **chat)
        assert (line["status"], line["outcome"], line["error"]) == (200, "client_error", "unsupported_video")
        video = await service.post_video()
        service.worker.target.answer = None  # a bug
        line, bug = await sent(f"/v1/videos/{video}/queries", question="what?")
        assert bug["request_id"] == line["request_id"] == "mine-2"
        assert (line["level"], line["status"], line["outcome"]) == ("error", 500, "server_error")
        assert bug["exception"][-1].startswith("TypeError < local.py:")

    play(scene)


def test_probes_are_not_worth_a_line(play: Play, out: io.StringIO) -> None:
    async def scene(service: World) -> None:
        out.truncate(out.seek(0))
        await service.http.get("/healthz")
        (line,) = lines(out)
        assert (line["level"], line["route"]) == ("debug", "/healthz")
        await service.http.get("/nowhere/planted-text")
        assert (lines(out)[-1]["level"], lines(out)[-1]["route"]) == ("info", "other")

    play(scene)


def test_a_log_holds_no_secret(play: Play, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted where requests have room for them; an error inside the service holds them all in its message."""

    async def scene(service: World) -> None:
        out.truncate(out.seek(0))
        headers = {"authorization": "Bearer occ_key", "cookie": "whose-secret"}
        clip = {"type": "video_url", "video_url": {"url": "fake://u:whose-secret@10.11.12.13/a?sig=planted"}}
        messages = [
            {"role": "system", "content": "planted-text"},
            {"role": "user", "content": [clip, {"type": "text", "text": "planted-text?"}]},
            {"role": "assistant", "content": "answer-in-history"},
            {"role": "user", "content": "planted-text slow"},
        ]
        chat = {"model": MODEL, "messages": messages, "max_tokens": 3, "user": "whose-secret"}
        post = service.http.post
        for body in (chat, chat | {"stream": True}, chat | {"model": "planted-text"}, chat | {"n": "planted-text"}):
            await post("/v1/chat/completions?sig=planted", json=body, headers=headers)
        await post("/v1/videos", json={"url": clip["video_url"]["url"]}, headers=headers)
        await post("/v1/videos/planted-text/queries", json={"question": "planted-text"}, headers=headers)
        await service.http.get("/planted-text?sig=planted", headers=headers)
        await post("/v1/videos", content=b'{"url": planted-text', headers=headers)

        def fail(*args: Any) -> None:
            try:
                raise ConnectionError("10.11.12.13:6379 whose-secret")
            except ConnectionError as error:
                raise RuntimeError("planted-text of occ_key") from error

        monkeypatch.setattr("services.conversations.check_sources", fail)
        await post("/v1/chat/completions", json=chat, headers=headers)
        written = lines(out)
        assert len(written) >= 10
        assert {line["event"] for line in written} == {"request", "The service failed on a request."}
        (failed,) = [line for line in written if "exception" in line]
        assert [each.split(" < ")[0] for each in failed["exception"]] == ["ConnectionError", "RuntimeError"]
        for secret in SECRETS:
            assert secret not in out.getvalue()

    play(scene)


def test_lines_of_all_processes_come_out_whole_and_in_the_launchers_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    with collected(Settings(directory=str(tmp_path)), out) as settings:
        assert settings.log_format == "json", "nobody watches"
        listener = _configure(settings, monkeypatch)
        Decoder(settings, FakeMedia)
        for number in range(500):
            logging.getLogger("services.decoder").info("line %d", number)
        logging.getLogger("httpx").warning("GET https://example.org/?sig=planted")
        listener()
    assert [line["event"] for line in lines(out)] == [f"line {number}" for number in range(500)]
    assert {line["component"] for line in lines(out)} == {"decoder"}
    assert logging.getLogger("services").propagate, "logging is left as it was found"


def _configure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Something that waits until what was logged here has reached the launcher."""
    started: list[logging.handlers.QueueListener] = []
    original = logging.handlers.QueueListener.start

    def start(listener: logging.handlers.QueueListener) -> None:
        started.append(listener)
        original(listener)

    monkeypatch.setattr(logging.handlers.QueueListener, "start", start)

    def finish() -> None:
        for listener in started:
            listener.stop()
            for handler in listener.handlers:
                handler.close()

    return finish


def test_a_process_without_the_launcher_writes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(log_format="text", log_level="warning", log_socket="/nowhere/log")
    finish = _configure(settings, monkeypatch)
    try:
        logs.configure(settings, "worker-a")
        origin.adopt(origin.Origin(request_id="mine-3"))
        logging.getLogger("services.worker").info("unsaid")
        logging.getLogger("services.worker").warning("two\nlines", extra={"fields": {"a": 1, "b": {"c": "d e"}}})
        finish()
    finally:
        logs.uninstall()
        origin.adopt(origin.NOBODY)
    (line,) = capsys.readouterr().err.splitlines()
    assert line[8:] == ' warning two lines request_id=mine-3 a=1 b={"c": "d e"}'


def test_work_elsewhere_knows_whose_it_is(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the decoder and in the worker, in work that is shared, and in what goes on behind an answer."""
    seen: dict[str, set[str]] = {"describe": set(), "decode": set(), "foresee": set()}
    describe, decode, foresee, has = FakeMedia.describe, FakeMedia.decode, Worker.foresee, Prefixes.has

    async def described(*args: Any) -> Any:
        seen["describe"].add(origin.current().request_id)
        return await describe(*args)

    async def decoded(*args: Any) -> Any:
        seen["decode"].add(origin.current().request_id)
        async for chunk in decode(*args):
            yield chunk

    async def foreseen(*args: Any) -> Any:
        return await asyncio.create_task(foresee(*args), context=Context())  # as in a process of its own

    async def looked_for(*args: Any) -> Any:
        seen["foresee"].add(origin.current().request_id)
        return await has(*args)

    monkeypatch.setattr(FakeMedia, "describe", described)
    monkeypatch.setattr(FakeMedia, "decode", decoded)
    monkeypatch.setattr(Worker, "foresee", foreseen)
    monkeypatch.setattr(Prefixes, "has", looked_for)

    async def scene(service: World) -> None:
        content = [{"type": "video_url", "video_url": {"url": "fake://whose"}}, {"type": "text", "text": "what?"}]
        chat = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        await service.http.post("/v1/chat/completions", json=chat, headers={"x-request-id": "mine-4"})
        assert (seen["describe"], seen["decode"]) == ({"mine-4"}, {"mine-4"})
        await service.http.post("/v1/videos", json={"url": "fake://behind"}, headers={"x-request-id": "mine-5"})
        while "mine-5" not in seen["decode"]:
            await asyncio.sleep(0.01)
        shown = {**chat, "occam": {"evidence": True}}
        answer = (await service.http.post("/v1/chat/completions", json=shown)).json()
        overlay = answer["occam"]["evidence"]["frames"][0]["overlay"]
        assert (await service.http.get(overlay, headers={"x-request-id": "mine-6"})).status_code == 200
        assert "mine-6" in seen["decode"]
        asked = {"url": "fake://whose", "question": "what?"}
        await service.http.post("/v1/estimate", json=asked, headers={"x-request-id": "mine-7"})
        assert seen["foresee"] == {"mine-7"}

    play(scene)
