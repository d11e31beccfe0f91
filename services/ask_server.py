"""`occam ask --server URL`: the same questions about a video, put to a service."""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from occam.errors import InvalidInput, OccamError
from services.answer_schemas import AnswerBody

# A stream is never silent for longer than its heartbeat; before it begins, a long video is fetched.
_TIMEOUT = httpx.Timeout(10, read=300)
# All else a session keeps from its first question.
_OF_EVERY_TURN = ("max_tokens", "evidence")

Note = Callable[[str], None]


class ServiceRefused(OccamError):
    """The service answered with an error; `body` is what it sent."""

    body: dict[str, Any]

    @classmethod
    def by(cls, body: dict[str, Any]) -> "ServiceRefused":
        """The error of such a body."""
        refused = cls(str(body["error"]["message"]), body["error"].get("param"))
        refused.body = body
        return refused


class ServiceUnreachable(OccamError):
    """Nothing at the address answers as a service does."""

    code = "service_unreachable"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A service and the key for it; empty where it wants none."""

    url: str
    key: str = ""


def query_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of how questions are put, as fields of a query."""
    given = {
        "model": options.model,
        "strategy": options.strategy,
        "lambda1": options.lambda1,
        "lambda2": options.lambda2,
        "budget": options.budget,
        "start_s": options.start,
        "end_s": options.end,
        "fps": options.fps,
        "max_frames": options.max_frames,
        "max_tokens": options.max_tokens,
        "evidence": options.evidence,
    }
    return {name: value for name, value in given.items() if value is not None}


def ask(
    server: Server,
    source: str,
    questions: tuple[str, ...],
    query: dict[str, Any],
    note: Note,
    piece: Note,
    transport: httpx.BaseTransport | None = None,
) -> Iterator[AnswerBody]:
    """One answer for each question.

    query: how the questions are put
    note: is told what is going on; piece: is given the answer's text as it is generated
    """
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    with (
        _translated(server),
        httpx.Client(base_url=server.url, headers=headers, timeout=_TIMEOUT, transport=transport) as http,
    ):
        note("sending the video" if _is_path(source) else "fetching the video")
        video = _post(http, source)
        for question in questions:
            answer = _answer(http, video, {"question": question, "stream": True, **query}, note, piece)
            yield answer
            query = {name: query[name] for name in _OF_EVERY_TURN} | {"session_id": answer.session_id}


def _post(http: httpx.Client, source: str) -> str:
    """The id of the video; the service fetches an address, and is sent a file."""
    if not _is_path(source):
        return str(_json(http.post("/v1/videos", json={"url": source}))["id"])
    try:
        with Path(source).open("rb") as file:
            return str(_json(http.post("/v1/videos", files={"file": (Path(source).name, file)}))["id"])
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}.", "source") from error


def _answer(http: httpx.Client, video: str, query: dict[str, Any], note: Note, piece: Note) -> AnswerBody:
    with http.stream("POST", f"/v1/videos/{video}/queries", json=query) as response:
        if response.status_code != httpx.codes.OK:
            response.read()
            _json(response)
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue  # what separates events, what keeps the line open, and the mark of the end
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "progress":
                note(progress_bar(event["stage"], event["done"], event["total"]))
            elif event["type"] == "text":
                piece(event["text"])
            elif event["type"] == "answer":
                return AnswerBody.model_validate(event)
            else:
                raise ServiceRefused.by({"error": event["error"]})
    raise ServiceUnreachable("The service's answer broke off before its end.")


def progress_bar(stage: str, done: int, total: int) -> str:
    """A stage as a bar."""
    width = 20
    full = width * min(done, total) // max(total, 1)
    return f"{stage:<8} [{'#' * full}{'.' * (width - full)}] {done} of {total}"


def _json(response: httpx.Response) -> dict[str, Any]:
    """The body of a response; an error of the service's is raised as it was sent."""
    body = response.json()
    if response.is_success:
        return dict(body)
    raise ServiceRefused.by(body)


@contextmanager
def _translated(server: Server) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServiceUnreachable(f"{server.url} does not answer: {error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, OccamError):
            raise
        raise ServiceUnreachable(f"{server.url} does not answer as an Occam service does.") from error


def _is_path(source: str) -> bool:
    return not source.startswith(("http://", "https://"))
