"""Which request some work is for. It goes along with calls between deployments, and into logs and traces."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A request's id, and the span that its work belongs under as W3C's `traceparent`; empty where there is none."""

    request_id: str = ""
    traceparent: str = ""


NOBODY = Origin()
"""What nobody has asked for."""

_ORIGIN: ContextVar[Origin] = ContextVar("occam_origin", default=NOBODY)


def current() -> Origin:
    """The origin of what runs here."""
    return _ORIGIN.get()


def adopt(origin: Origin) -> None:
    """Work for this origin from here on; every request and every call between deployments has a context of its own."""
    _ORIGIN.set(origin)
