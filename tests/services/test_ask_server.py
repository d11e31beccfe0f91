"""`occam ask --server`: the same command over a service."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import Request

from services.ask_server import Server, ServiceRefused, ServiceUnreachable, ask
from services.cli import main
from services.events import respond
from tests.redis_server import RedisServer
from tests.services.server import served
from tests.services.world import MODEL


@pytest.fixture
def server(tmp_path: Path, redis_server: RedisServer) -> Iterator[str]:
    with served(tmp_path, redis_server.url) as url:
        yield url


def test_it_streams_the_answer_and_sums_up_what_it_took(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--server", server, "http://clip/a", "what?", "--follow-up", "and then?"]) == 0
    printed = capsys.readouterr()
    first, summary, second, _ = printed.out.splitlines()
    assert first.startswith("saw 8 frames turn 0")
    assert second.startswith("saw 8 frames turn 1")
    assert re.fullmatch(
        r"  visual tokens: 32 encoded, 16 after stage I, 8 after stage II; \d+\.\d\d s, "
        r"\d+ of \d+ prompt tokens cached",
        summary,
    )
    assert printed.err == "", "progress is for terminals"


def test_with_json_it_prints_what_the_service_answered(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--evidence", "--max-frames", "6", "--lambda1", "0.5", "--max-tokens", "2", "--model", MODEL]
    assert main(["ask", "--server", server, *options, "http://clip/b", "what?", "--follow-up", "where?"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert set(first) == {"answer", "session_id", "model", "usage", "timings", "occam", "evidence"}
    assert first["answer"] == "saw 6 frames turn 0"
    assert first["occam"]["lambda1"] == second["occam"]["lambda1"] == 0.5
    assert len(first["evidence"]["frames"]) == len(second["evidence"]["frames"]) == 6
    assert second["session_id"] == first["session_id"]


def test_an_error_is_the_services_own(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ask", "--server", server, "http://missing/", "what?"]
    assert main([*command, "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["param"]) == ("source_unavailable", "url")
    assert re.fullmatch("[0-9a-f]{32}", error["request_id"])
    assert main(command) == 1
    assert capsys.readouterr().err == "occam: The source answered with status 404.\n"
    assert main(["ask", "--server", server, "http://clip/", "what?", "--model", "absent"]) == 1
    assert "There is no model 'absent'" in capsys.readouterr().err


def test_nobody_there_is_a_plain_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--server", "http://127.0.0.1:9", "http://clip/", "what?"]) == 1
    assert capsys.readouterr().err.startswith("occam: http://127.0.0.1:9 does not answer: ")


def test_wrong_use_exits_with_two() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ask", "--server", "localhost:8000", "clip.mp4", "what?"])
    assert ended.value.code == 2


def test_progress_is_a_line_on_a_terminal(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["ask", "--server", server, "http://slow/?delay=0.05", "what?", "--max-frames", "4"]) == 0
    printed = capsys.readouterr()
    assert "decode   [####################] 4 of 4" in printed.err
    assert printed.out.startswith("saw 4 frames")


EVENTS = (
    ": keep-alive\n\n"
    'data: {"type": "progress", "stage": "decode", "done": 1, "total": 2, "seconds": 0.1}\n\n'
    'data: {"type": "text", "text": "red"}\n\n'
    "data: %s\n\n"
    "data: [DONE]\n\n"
)
ANSWER = {
    "type": "answer",
    "answer": "red",
    "session_id": "session-1",
    "model": "m",
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "visual_tokens": {"encoded": 1, "stage1": 1, "stage2": 1},
        "cached_tokens": 0,
        "video_seconds": 1.0,
        "gpu_seconds": 0.1,
    },
    "timings": dict.fromkeys(("fetch_s", "decode_s", "encode_s", "prefill_s", "ttft_s", "total_s"), 0.0),
    "occam": {
        "cache": "none",
        "approximate": False,
        "strategy": "occam",
        "lambda1": 1.0,
        "lambda2": 1.0,
        "options": {},
        "finish_reason": "stop",
    },
}


class Service:
    """A service that takes uploads; it keeps the requests that it was sent."""

    def __init__(self, stream: str = EVENTS % json.dumps(ANSWER)) -> None:
        self.stream = stream
        self.seen: list[tuple[httpx.Request, bytes]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request, request.read()))
        if request.url.path == "/v1/videos":
            return httpx.Response(200, json={"id": "video-1"})
        return httpx.Response(200, text=self.stream, headers={"content-type": "text/event-stream"})

    def ask(self, source: str, *questions: str, key: str = "") -> tuple[list[Any], list[str], list[str]]:
        notes: list[str] = []
        pieces: list[str] = []
        server = Server(url="http://occam.example", key=key)
        query = {"max_tokens": 3, "evidence": False, "fps": 2.0}
        transport = httpx.MockTransport(self)
        answers = list(ask(server, source, questions, query, notes.append, pieces.append, transport))
        return answers, notes, pieces


def test_what_ends_a_line_elsewhere_ends_none_of_a_stream() -> None:
    odd = "one\u2028two\u2029three\x85four\x0cfive\x1esix"

    async def events() -> AsyncGenerator[dict[str, Any]]:
        yield {"type": "text", "text": odd}
        yield ANSWER | {"answer": odd}

    async def written() -> str:
        response = await respond(Request({"type": "http"}), events())
        return "".join([str(chunk) async for chunk in response.body_iterator])

    answers, _, pieces = Service(asyncio.run(written())).ask("http://a/", "what?")
    assert [answer.answer for answer in answers] == pieces == [odd]


def test_a_file_is_sent_and_a_key_goes_along(tmp_path: Path) -> None:
    clip = tmp_path / "a clip.mp4"
    clip.write_bytes(b"the bytes of the clip")
    service = Service()
    answers, notes, pieces = service.ask(str(clip), "what?", "and then?", key="secret")
    (upload, sent), (_, first), (_, second) = service.seen
    assert upload.headers["content-type"].startswith("multipart/form-data")
    assert b'name="file"; filename="a clip.mp4"' in sent
    assert b"the bytes of the clip" in sent
    assert all(request.headers["authorization"] == "Bearer secret" for request, _ in service.seen)
    every = {"stream": True, "max_tokens": 3, "evidence": False}
    assert json.loads(first) == {"question": "what?", "fps": 2.0, **every}
    assert json.loads(second) == {"question": "and then?", "session_id": "session-1", **every}
    assert [answer.answer for answer in answers] == ["red", "red"]
    assert pieces == ["red", "red"]
    assert notes[1:] == ["decode   [##########..........] 1 of 2"] * 2


def test_without_a_key_none_is_sent_and_an_address_is_fetched_by_the_service() -> None:
    service = Service()
    service.ask("https://example.org/clip.mp4", "what?")
    assert json.loads(service.seen[0][1]) == {"url": "https://example.org/clip.mp4"}
    assert "authorization" not in service.seen[0][0].headers


def test_the_key_comes_from_the_environment(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[str | None] = []
    original = httpx.Client.send

    def send(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return original(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", send)
    monkeypatch.setenv("OCCAM_API_KEY", "from-the-environment")
    command = ["ask", "--server", server, "http://clip/a", "what?"]
    assert main(command) == 0
    assert main([*command, "--key", "said"]) == 0
    assert sent == ["Bearer from-the-environment"] * 2 + ["Bearer said"] * 2


def test_an_answer_that_breaks_off_is_a_failure() -> None:
    error = {
        "type": "error",
        "error": {"type": "server_error", "code": "engine_failure", "message": "The engine failed."},
    }
    with pytest.raises(ServiceRefused, match="The engine failed"):
        Service(f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n").ask("http://a/", "what?")
    with pytest.raises(ServiceUnreachable, match="broke off before its end"):
        Service('data: {"type": "text", "text": "re"}\n\n').ask("http://a/", "what?")
    with pytest.raises(ServiceUnreachable, match="does not answer as an Occam service does"):
        Service("data: {nonsense\n\n").ask("http://a/", "what?")


def test_openais_client_takes_a_stream_with_progress(server: str) -> None:
    content: Any = [
        {"type": "video_url", "video_url": {"url": "http://openai/?delay=0.05"}},
        {"type": "text", "text": "what?"},
    ]
    with openai.OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}], stream=True)
        )
    assert chunks[0].model_extra == {"occam": chunks[0].model_extra["occam"]}  # type: ignore[index]
    contents = [chunk.choices[0].delta.content for chunk in chunks]
    assert contents[0] is None
    assert "".join(each or "" for each in contents).startswith("saw 8 frames turn 0")
