"""Traces of a request through the whole service: what is under what, and what it costs where nobody looks."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from occam.errors import InvalidInput
from occam.stats import StageStats
from services import tracing
from services.settings import Settings
from services.spans import Spans
from tests.services.world import MODEL, Play, World

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CLIP = {"type": "video_url", "video_url": {"url": "fake://u:hidden@traced/?frames=16&hidden=1"}}


def chat(**options: Any) -> dict[str, Any]:
    content = [CLIP, {"type": "text", "text": "hidden?"}]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[ReadableSpan]]]:
    """The spans that have ended since it was last asked."""
    exporter = InMemorySpanExporter()
    spans = Spans(exporter, "here")
    monkeypatch.setattr(tracing, "_spans", spans)

    def taken() -> list[ReadableSpan]:
        spans.flush()
        ended = list(exporter.get_finished_spans())
        exporter.clear()
        return ended

    yield taken
    spans.close()


def named(spans: list[ReadableSpan], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_under_its_clients(
    play: Play, memory: Callable[[], list[ReadableSpan]], stream: bool
) -> None:
    async def scene(service: World) -> None:
        await service.http.post(
            "/v1/chat/completions",
            json=chat(stream=stream),
            headers={"traceparent": PARENT, "x-request-id": "mine-1"},
        )
        spans = memory()
        assert {f"{span.context.trace_id:032x}" for span in spans} == {PARENT[3:35]}
        (request,) = named(spans, "POST /v1/chat/completions")
        assert request.parent is not None
        assert f"{request.parent.span_id:016x}" == PARENT[36:52]
        assert request.attributes is not None
        assert request.attributes["http.response.status_code"] == 200
        assert request.attributes["occam.request_id"] == "mine-1"
        assert request.attributes["occam.encoded_tokens"] == 32
        assert request.attributes["occam.cache"] == "none"
        (answer,) = named(spans, "answer")
        stages = {name: named(spans, name) for name in ("fetch", "cache", "decode", "encode", "prefill_lower")}
        assert {name: len(found) for name, found in stages.items()} == {
            "fetch": 1, "cache": 2, "decode": 4, "encode": 4, "prefill_lower": 4,
        }  # fmt: skip
        (generate,) = named(spans, "generate")
        for span in (answer, *stages["fetch"]):
            assert span.parent is not None
            assert span.parent.span_id == request.context.span_id
        for span in (generate, *stages["cache"], *stages["decode"], *stages["encode"], *stages["prefill_lower"]):
            assert span.parent is not None
            assert span.parent.span_id == answer.context.span_id
        assert sum(span.attributes["occam.tokens_in"] for span in stages["encode"] if span.attributes) == 32
        assert [span.attributes["occam.tier"] for span in stages["cache"] if "occam.tier" in span.attributes] == [
            "none"
        ]
        now = time.time_ns()
        for span in spans:
            assert now - 60e9 < span.start_time <= span.end_time <= now
            assert "hidden" not in span.to_json(), "nothing of what users say"

    play(scene)


def test_failures_are_marked_without_their_words(play: Play, memory: Callable[[], list[ReadableSpan]]) -> None:
    async def scene(service: World) -> None:
        clip = {"type": "video_url", "video_url": {"url": "fake://corrupt"}}
        messages = [{"role": "user", "content": [clip, {"type": "text", "text": "hidden?"}]}]
        await service.http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
        spans = memory()
        (answer,), (request,) = named(spans, "answer"), named(spans, "POST /v1/chat/completions")
        assert answer.attributes is not None
        assert request.attributes is not None
        assert (answer.attributes["error.type"], answer.status.is_ok) == ("unsupported_video", False)
        assert answer.status.description is None
        assert not answer.events
        assert (request.attributes["error.type"], request.attributes["http.response.status_code"]) == (
            "unsupported_video",
            415,
        )
        await service.http.get("/v1/videos/absent", headers={"traceparent": PARENT[:-1] + "0"})
        assert memory() == [], "the client does not record this one"

    play(scene)


COUNT = """
import asyncio, sys
from services import ingress, tracing
from services.settings import Settings
tracing.configure(Settings(), "ingress")
with tracing.span("a") as span:
    span.note(occam__a=1)
tracing.stages(())
print([name for name in sys.modules if name == "services.spans" or name.startswith("opentelemetry.exporter")])
"""


def test_nothing_is_imported_where_no_endpoint_is_set() -> None:
    command = [sys.executable, "-W", "ignore", "-c", COUNT]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == "[]\n", ended.stderr


def test_an_endpoint_without_its_exporter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing.check(Settings(otlp_endpoint="http://collector:4318"))
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    tracing.check(Settings())
    with pytest.raises(InvalidInput, match="needs `pip install 'occam-video"):
        tracing.check(Settings(otlp_endpoint="http://collector:4318"))


class Collector(BaseHTTPRequestHandler):
    """An OTLP/HTTP collector that keeps what it is sent."""

    taken: list[tuple[str, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("suffix", ["", "/", "/v1/traces"])
def test_spans_reach_a_collector(play: Play, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(Collector, "taken", [], raising=False)
    monkeypatch.setattr(tracing, "_spans", None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}{suffix}"

    async def scene(service: World) -> None:
        response = await service.http.post("/v1/chat/completions", json=chat())
        assert response.status_code == 200

    play(scene, otlp_endpoint=endpoint)
    assert tracing._spans is not None
    tracing._spans.close()
    server.shutdown()
    server.server_close()
    assert {path for path, _ in Collector.taken} == {"/v1/traces"}
    resources = [each for _, sent in Collector.taken for each in sent.resource_spans]
    names = {span.name for each in resources for scope in each.scope_spans for span in scope.spans}
    assert {"POST /v1/chat/completions", "answer", "cache", "decode", "encode", "prefill_lower", "generate"} <= names
    facts = {fact.key: fact.value.string_value for fact in resources[0].resource.attributes}
    assert facts["service.name"] == "occam"
    assert b"hidden" not in b"".join(sent.SerializeToString() for _, sent in Collector.taken)


def test_a_collector_that_is_away_costs_a_number_and_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemorySpanExporter, "export", lambda *_: SpanExportResult.FAILURE)
    spans = Spans(InMemorySpanExporter(), "here")
    lost = REGISTRY.get_sample_value("occam_spans_total", {"result": "lost"}) or 0
    for _ in range(3):
        spans.stage(StageStats(stage="encode", started_s=1.0, ended_s=2.0), {})
        spans.flush()
    spans.close()
    assert REGISTRY.get_sample_value("occam_spans_total", {"result": "lost"}) == lost + 3
    assert [record.getMessage() for record in caplog.records] == [
        "Spans cannot be sent: the collector does not take them. They are dropped until it does."
    ]


def test_answers_do_not_wait_for_a_collector(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes no connection: every request is answered before the first attempt to send has ended."""
    reached, go_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> SpanExportResult:
        reached.set()
        go_on.wait(30)
        return SpanExportResult.FAILURE

    monkeypatch.setattr(InMemorySpanExporter, "export", hang)
    spans = Spans(InMemorySpanExporter(), "here")
    monkeypatch.setattr(tracing, "_spans", spans)

    async def scene(service: World) -> None:
        spans.stage(StageStats(stage="encode", started_s=1.0, ended_s=2.0), {})
        await asyncio.to_thread(reached.wait, 30)
        for _ in range(3):
            assert (await service.http.post("/v1/chat/completions", json=chat())).status_code == 200
        assert not go_on.is_set()

    play(scene)
    go_on.set()
    spans.close()
