"""What is wrong with a request is said in a plain sentence: the field as it was sent, the limit, the value."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from occam.errors import InvalidInput
from services.settings import Settings
from tests.fakes import FakeEngine
from tests.redis_server import RedisServer
from tests.services.served import Served, served

CHAT, QUERIES = "/v1/chat/completions", "/v1/videos/{clip}/queries"
CLIP = {"type": "video_url", "video_url": {"url": "fake://clip"}}
ASKED = {"model": "fake", "messages": [{"role": "user", "content": [CLIP, {"type": "text", "text": "what?"}]}]}


class Silent(FakeEngine):
    """Says nothing at all where the question is `nothing`."""

    def stream(self, state: Any, question: str, pruning: Any, sampling: Any) -> Iterator[Any]:
        *_, answer = super().stream(state, question, pruning, sampling)
        if question == "nothing":
            answer = type(answer)(**{**answer.__dict__, "text": "", "completion_tokens": 1})
            yield answer
        else:
            yield answer.text
            yield answer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("errors"), shared_redis.url, load=Silent) as live:
        yield live


@pytest.fixture
def http(service: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def clip(service: Served) -> str:
    return str(httpx.post(f"{service.url}/v1/videos", json={"url": "fake://clip"}).json()["id"])


def part(**given: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": [CLIP, given]}]}


CASES: list[tuple[str, Any, str | None, str]] = [
    (QUERIES, {}, "question", "question is missing."),
    (QUERIES, {"question": 5}, "question", "question must be text, got 5."),
    (QUERIES, {"question": ""}, "question", "question must have at least 1 character, got 0."),
    (QUERIES, {"question": "x" * 8193}, "question", "question has 8193 characters, more than the limit of 8192."),
    (QUERIES, {"question": "?", "fps": -1}, "fps", "fps must be above 0.0, got -1."),
    (QUERIES, {"question": "?", "max_tokens": 5000}, "max_tokens", "max_tokens must be at most 4096, got 5000."),
    (QUERIES, {"question": "?", "max_tokens": "5"}, "max_tokens", 'max_tokens must be a whole number, got "5".'),
    (QUERIES, {"question": "?", "max_tokens": 1.5}, "max_tokens", "max_tokens must be a whole number, got 1.5."),
    (QUERIES, {"question": "?", "stream": "yes"}, "stream", 'stream must be true or false, got "yes".'),
    (QUERIES, {"question": "?", "sped": 1}, "sped", "sped is not a field of this request."),
    (
        QUERIES,
        {"question": "?", "options": {"cut": {}}},
        "options.cut",
        "options.cut must be true or false, a whole number, a number, text or a list, got an object.",
    ),
    (
        QUERIES,
        {"question": "?", "options": {"cuts": [1, "x"]}},
        "options.cuts.1",
        'options.cuts.1 must be a whole number, got "x".',
    ),
    (QUERIES, [1], None, "The body must be a JSON object, got a list."),
    (CHAT, {**ASKED, "messages": []}, "messages", "messages must have at least 1 item, got 0."),
    (CHAT, {**ASKED, "messages": "hi"}, "messages", 'messages must be a list, got "hi".'),
    (CHAT, {**ASKED, "n": 2}, "n", "n must be at most 1, got 2."),
    (CHAT, {**ASKED, "temperature": 3}, "temperature", "temperature must be at most 2.0, got 3."),
    (
        CHAT,
        {"model": "fake", "messages": [{"role": "tool", "content": "x"}]},
        "messages.0.role",
        "messages.0.role must be 'system', 'developer', 'user' or 'assistant', got \"tool\".",
    ),
    (
        CHAT,
        {"model": "fake", "messages": [{"role": "user", "content": 7}]},
        "messages.0.content",
        "messages.0.content must be text or a list, got 7.",
    ),
    (
        CHAT,
        part(type="input_audio", input_audio={}),
        "messages.0.content.1.type",
        "messages.0.content.1.type must be one of 'text', 'video_url', 'image_url', got \"input_audio\".",
    ),
    (CHAT, part(text="x"), "messages.0.content.1.type", "messages.0.content.1.type is missing."),
    (CHAT, part(type="text"), "messages.0.content.1.text", "messages.0.content.1.text is missing."),
    (CHAT, part(type="text", text=1), "messages.0.content.1.text", "messages.0.content.1.text must be text, got 1."),
    (CHAT, part(type="image_url"), "messages.0.content.1.image_url", "messages.0.content.1.image_url is missing."),
    (
        CHAT,
        part(type="image_url", image_url="http://a/b.png"),
        "messages.0.content.1.image_url",
        'messages.0.content.1.image_url must be an object, got "http://a/b.png".',
    ),
    (
        CHAT,
        part(type="video_url", video_url={}),
        "messages.0.content.1.video_url.url",
        "messages.0.content.1.video_url.url is missing.",
    ),
    (CHAT, {**ASKED, "occam": {"speed": 1}}, "occam.speed", "occam.speed is not a field of this request."),
    (CHAT, {**ASKED, "occam": {"lambda1": -1}}, "occam.lambda1", "occam.lambda1 must be at least 0.0, got -1."),
    *(
        (CHAT, {**ASKED, name: value}, name, f'{name} belongs into the object occam: {{"occam": {{"{name}": ...}}}}.')
        for name, value in {
            "strategy": "none", "lambda1": 1, "session_id": "s", "evidence": True, "start_s": 1, "options": {},
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "message"), CASES)
def test_a_wrong_field_is_named(
    http: httpx.Client, clip: str, path: str, body: Any, param: str | None, message: str
) -> None:
    response = http.post(path.format(clip=clip), json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "malformed")
    assert (error["message"], error["param"]) == (message, param)


def json_of(depth: int) -> bytes:
    return b'{"question": ' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The request has no body; it takes a JSON object, with the header Content-Type: application/json."),
        (b"question", "The body is not JSON: Expecting value at character 0."),
        (b'{"question": "a" "b"}', "The body is not JSON: Expecting ',' delimiter at character 17."),
        (b'{"question": NaN}', "The body is not JSON: NaN is no number there."),
        (b'{"fps": -Infinity}', "The body is not JSON: -Infinity is no number there."),
        (b'{"fps": 1e999}', "The body has the number 1e999, more than a double holds."),
        (b'{"seed": ' + b"9" * 5000 + b"}", "The body has a whole number of 5000 digits, more than the limit of 308."),
        (b'{"question": "a", "question": "b"}', 'The body has the name "question" twice in one object.'),
        (b'{"options": {"a": 1, "a": 1}}', 'The body has the name "a" twice in one object.'),
        (json_of(32), "Lists and objects of the body are nested deeper than the limit of 32 levels."),
        (json_of(100_000), "Lists and objects of the body are nested deeper than the limit of 32 levels."),
        (json_of(31), "question must be text, got a list."),
        (b'{"question": "\xff"}', "The body is not JSON: byte 14 is not UTF-8."),
        (b'{"question": "a\\ud800"}', "question has half a character at position 1."),
        (b'{"options": {"a": "\\udfff"}}', "options.a has half a character at position 0."),
        (b'{"\\ud800": 1}', "A name has half a character at position 0."),
        (b'{"options": {"\\ud800": 1}}', "options has half a character at position 0."),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_body_that_is_no_json_says_what_is_wrong(http: httpx.Client, clip: str, content: bytes, message: str) -> None:
    headers = {"content-type": "application/json"}
    response = http.post(QUERIES.format(clip=clip), content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (400, "malformed", message)


def test_whole_numbers_may_be_written_as_others(http: httpx.Client, clip: str) -> None:
    content = b'\xef\xbb\xbf{"question": "what?", "max_tokens": 2.0, "seed": 1e3}'
    response = http.post(QUERIES.format(clip=clip), content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["usage"]["completion_tokens"]) == (200, 2)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_of_another_type_says_which_it_should_have(http: httpx.Client, clip: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = http.post(QUERIES.format(clip=clip), content=b'{"question": "what?"}', headers=headers)
    assert response.status_code == 400
    assert "Content-Type is not application/json" in response.json()["error"]["message"]


def test_what_openai_has_and_we_do_not_know_is_still_ignored(http: httpx.Client) -> None:
    body = {**ASKED, "user": "somebody", "store": False, "metadata": {"a": "b"}, "strategy": None}
    assert http.post(CHAT, json=body).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_of_nothing_says_so(http: httpx.Client, clip: str, streamed: bool) -> None:
    """The model ended before its first word: the answer is empty, `stop`, and its one token was that end."""
    answer = http.post(QUERIES.format(clip=clip), json={"question": "nothing"}).json()
    assert (answer["answer"], answer["occam"]["finish_reason"]) == ("", "stop")
    assert answer["usage"]["completion_tokens"] == 1
    messages = [{"role": "user", "content": [CLIP, {"type": "text", "text": "nothing"}]}]
    response = http.post(CHAT, json={"model": "fake", "messages": messages, "stream": streamed})
    if streamed:
        *pieces, done = response.text.strip().split("\n\n")
        (end,) = (json.loads(piece.removeprefix("data: ")) for piece in pieces if "progress" not in piece)
        assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({"role": "assistant"}, "stop")
        assert done == "data: [DONE]"
    else:
        choice = response.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


@pytest.mark.parametrize("sent", ["r-1", None])
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/healthz", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/metrics", None, 200),
        ("GET", "/docs", None, 200),
        ("GET", "/openapi.json", None, 200),
        ("POST", QUERIES, {"question": "what?"}, 200),
        ("POST", QUERIES, {"question": "what?", "stream": True}, 200),
        ("POST", QUERIES, {}, 400),
        ("POST", QUERIES, {"question": "crash"}, 500),
        ("GET", "/nothing", None, 404),
        ("PUT", "/v1/models", None, 405),
    ],
)
def test_every_response_carries_the_id_of_its_request_once(
    http: httpx.Client, clip: str, sent: str | None, method: str, path: str, body: Any, status: int
) -> None:
    headers = {} if sent is None else {"x-request-id": sent}
    response = http.request(method, path.format(clip=clip), json=body, headers=headers)
    assert response.status_code == status
    (given,) = response.headers.get_list("x-request-id")
    assert given == sent or (sent is None and len(given) == 32)
    if status >= 400:
        assert response.json()["error"]["request_id"] == given
    if status == 405:
        assert response.headers["allow"] == "GET"


def test_the_page_of_the_api_asks_nobody_else(http: httpx.Client) -> None:
    page = http.get("/docs")
    policy = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert "//" not in page.text
    for path, kind in (("/docs/reference.js", "text/javascript"), ("/docs/reference.css", "text/css")):
        assert path.removeprefix("/") in page.text
        file = http.get(path)
        assert file.headers["content-type"].startswith(kind)
        assert "://" not in file.text
        assert "innerHTML" not in file.text
    assert http.get("/redoc").status_code == 404


def test_what_is_approximate_is_said(http: httpx.Client) -> None:
    ready, model = http.get("/readyz").json(), http.get("/v1/models").json()["data"][0]
    assert (ready["quantization"], ready["kv_wire"]) == (model["quantization"], model["kv_wire"]) == ("none", "exact")


def test_a_wire_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"OCCAM_KV_WIRE=int8 .* OCCAM_KV_URL is memory://"):
        Settings(kv_wire="int8", kv_url="memory://")
    assert Settings(kv_wire="int8").kv_wire == "int8"
