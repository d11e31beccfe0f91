"""Structured logs: a line for each event, the same from every process of the service, and nothing of what users say.

A line never has the text of a question or an answer, a source's address, a key or an internal address: what is logged
is named field by field, and of an exception there are only its type and the places in the code.
"""

import json
import logging
import logging.handlers
import queue
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from services import origin
from services.settings import Settings

Format = Literal["json", "text"]

_OURS = ("services", "pipelines", "occam")
_WAITING = 10_000
_NOTES: ContextVar[dict[str, Any] | None] = ContextVar("occam_notes", default=None)


def begin_notes() -> dict[str, Any]:
    """What will be said of the request at hand when it has ended; `note` adds to it from wherever the request goes."""
    notes: dict[str, Any] = {}
    _NOTES.set(notes)
    return notes


def note(**fields: Any) -> None:
    """Have this said of the request at hand; without one, nothing."""
    if (notes := _NOTES.get()) is not None:
        notes.update(fields)


class Lines(logging.Formatter):
    """One line a record: `event` is its message, `extra={"fields": {...}}` stands beside it."""

    def __init__(self, form: Format, component: str) -> None:
        super().__init__()
        self._form = form
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields: dict[str, Any] = {"request_id": origin.current().request_id} | getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = _exception(record.exc_info[1])
        given = {name: value for name, value in fields.items() if value not in (None, "")}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, event = record.levelname.lower(), record.getMessage()
        if self._form == "json":
            head = {"time": time, "level": level, "event": event, "component": self._component}
            return json.dumps(head | given)
        says = [f"{name}={value if _is_plain(value) else json.dumps(value)}" for name, value in given.items()]
        return " ".join([time[11:19], *([level] if record.levelno > logging.INFO else []), _one_line(event), *says])


def configure(settings: Settings, component: str) -> None:
    """Write what this process of the service logs to the launcher, or, on another node, to standard error.

    Where no launcher has settled a format, logging is left alone.
    """
    if settings.log_format == "auto":
        return
    there = bool(settings.log_socket) and Path(settings.log_socket).is_socket()
    sink = _Socket(settings.log_socket, None) if there else logging.StreamHandler()
    # A reader that has stopped must not stop the service: lines wait in a queue, and beyond that are lost.
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING)
    logging.handlers.QueueListener(lines, sink).start()
    install(logging.handlers.QueueHandler(lines), settings, component)


def install(handler: logging.Handler, settings: Settings, component: str) -> None:
    """Have `handler` write what our own code logs; what libraries log may name addresses, and stays with Ray."""
    handler.setFormatter(Lines("json" if settings.log_format == "json" else "text", component))
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(settings.log_level.upper())


def uninstall() -> None:
    """Leave logging as it was found."""
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


class _Socket(logging.handlers.SocketHandler):
    """Lines of text where the base class would send pickles; they are formatted by then."""

    def makePickle(self, record: logging.LogRecord) -> bytes:  # noqa: N802 - the base class's name
        return f"{record.getMessage()}\n".encode()


def _exception(error: BaseException) -> list[str]:
    """Types and places, the cause's first; no messages, which may hold anything."""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    places = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return [*(_exception(behind) if behind else []), " < ".join([type(error).__name__, *reversed(places[-8:])])]


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list) and not any(mark in str(value) for mark in ' "=\n\r')


def _one_line(text: str) -> str:
    return " ".join(text.split())
