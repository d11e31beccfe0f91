"""Traces of requests through the service; without an endpoint to send them to, nothing of OpenTelemetry is imported."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from occam.errors import InvalidInput
from occam.stats import StageStats
from services.settings import Settings

if TYPE_CHECKING:
    from services.spans import Spans

Attribute = str | bool | int | float

_EXPORTER = "opentelemetry.exporter"

_spans: "Spans | None" = None


class Span(Protocol):
    """A span that is open."""

    def rename(self, name: str) -> None:
        """Give it another name."""
        ...

    def note(self, **attributes: Attribute | None) -> None:
        """Add attributes, those that are not None; a name's first `__` stands for a dot."""
        ...

    def end(self) -> None:
        """End it before its block does."""
        ...


class _Nothing:
    def rename(self, name: str) -> None:
        del name

    def note(self, **attributes: Attribute | None) -> None:
        del attributes

    def end(self) -> None:
        pass


_NOTHING = _Nothing()


def check(settings: Settings) -> None:
    """InvalidInput if traces are to be sent and what sends them is not installed."""
    if settings.otlp_endpoint and not (find_spec(_EXPORTER) and find_spec(f"{_EXPORTER}.otlp.proto.http")):
        raise InvalidInput("OCCAM_OTLP_ENDPOINT needs `pip install 'occam-video[otel]'`.", "otlp_endpoint")


def configure(settings: Settings, component: str) -> None:
    """Send this process's spans to the endpoint that is set, if one is."""
    global _spans
    if settings.otlp_endpoint and _spans is None:
        from services.spans import Spans, exporter_to

        _spans = Spans(exporter_to(settings.otlp_endpoint), component)


@contextmanager
def span(name: str, kind: str = "internal", **attributes: Attribute | None) -> Iterator[Span]:
    """A span under the origin of what runs here; it is the origin of all that is inside."""
    if _spans is None:
        yield _NOTHING
        return
    with _spans.opened(name, kind) as opened:
        opened.note(**attributes)
        yield opened


def stages(stats: Iterable[StageStats], **attributes: Attribute) -> None:
    """Stages that this process has been through, as spans."""
    if _spans is not None:
        for stage in stats:
            _spans.stage(stage, attributes)
