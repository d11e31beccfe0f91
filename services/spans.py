"""Spans by OpenTelemetry's SDK; `tracing` imports this module where traces are wanted, and nobody else does."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from occam.errors import OccamError
from occam.stats import StageStats
from services import metrics, origin
from services.tracing import Attribute

_LOG = logging.getLogger(__name__)
_PATH = "/v1/traces"
_PROPAGATOR = TraceContextTextMapPropagator()
_KINDS = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER}
# Sooner than a replica that has drained is ended.
_DELAY_MS = 1000
_TIMEOUT_S = 5.0


class Spans:
    """The spans of one process, sent in the background."""

    def __init__(self, exporter: SpanExporter, component: str) -> None:
        resource = Resource.create({"service.name": "occam", "occam.component": component})
        # No flush at exit: with the collector away, it would hold up the end of the service.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Counted(exporter), schedule_delay_millis=_DELAY_MS))
        self._tracer = self._provider.get_tracer("occam")

    @contextmanager
    def opened(self, name: str, kind: str) -> Iterator["OpenSpan"]:
        """A span under the current origin, and the origin of what is inside."""
        outer = origin.current()
        raw = self._tracer.start_span(name, context=_context(outer.traceparent), kind=_KINDS[kind])
        opened = OpenSpan(raw)
        # Set again behind it and not reset: a stream may be gone on with in another context.
        origin.adopt(replace(outer, traceparent=_traceparent(raw)))
        try:
            yield opened
        except BaseException as error:
            if raw.is_recording():
                # Of a message nobody knows what is in it.
                opened.note(error__type=error.code if isinstance(error, OccamError) else type(error).__name__)
                raw.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            opened.end()
            origin.adopt(outer)

    def stage(self, stats: StageStats, attributes: Mapping[str, Attribute]) -> None:
        """A stage that is over, under the current origin."""
        # Its seconds are on the monotonic clock, which begins anywhere.
        offset = time.time_ns() - time.monotonic_ns()
        started, ended = (int(seconds * 1e9) + offset for seconds in (stats.started_s, stats.ended_s))
        parent = _context(origin.current().traceparent)
        raw = self._tracer.start_span(stats.stage, context=parent, start_time=started)
        opened = OpenSpan(raw)
        opened.note(**attributes)
        if stats.tokens_in or stats.tokens_out:
            opened.note(occam__tokens_in=stats.tokens_in, occam__tokens_out=stats.tokens_out)
        opened.note(occam__work_seconds=stats.work_s)
        raw.end(ended)

    def flush(self) -> None:
        """Send what waits."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what waits, and nothing after it."""
        self._provider.shutdown()


class OpenSpan:
    """See `tracing.Span`."""

    def __init__(self, raw: trace.Span) -> None:
        self._raw = raw

    def rename(self, name: str) -> None:
        """See `tracing.Span`."""
        self._raw.update_name(name)

    def note(self, **attributes: Attribute | None) -> None:
        """See `tracing.Span`."""
        for name, value in attributes.items():
            if value is not None:
                self._raw.set_attribute(name.replace("__", ".", 1), value)

    def end(self) -> None:
        """See `tracing.Span`."""
        if self._raw.is_recording():
            self._raw.end()


def exporter_to(endpoint: str) -> SpanExporter:
    """The OTLP/HTTP exporter to a collector's base address."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # What it says of a collector that is away names its address; `_Counted` says it without.
    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    url = endpoint.rstrip("/").removesuffix(_PATH) + _PATH
    return OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT_S)


class _Counted(SpanExporter):
    """An exporter whose failures cost a number, and a line when they begin."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter`."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        metrics.SPANS.labels("lost" if failed else "sent").inc(len(spans))
        if failed and not self._failing:
            _LOG.warning("Spans cannot be sent: the collector does not take them. They are dropped until it does.")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """See `SpanExporter`."""
        self._exporter.shutdown()


def _context(traceparent: str) -> Context | None:
    return _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None


def _traceparent(raw: trace.Span) -> str:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(raw))
    return carrier.get("traceparent", "")
