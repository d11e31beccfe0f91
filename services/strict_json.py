"""Bodies of requests as JSON that means one thing: RFC 8259, and none of what Python's reader takes besides."""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from services.errors import MalformedRequest

MAX_DEPTH = 32
"""Levels of lists and objects; what a request needs has six."""
MAX_DIGITS = 308
"""Digits of a whole number, those of the largest double; reading many takes time that grows with their square."""
_MOST_WHOLE = 2**63
MAX_VALUES = 200_000
"""Values of a body; a job of ten thousand questions, each with options, has fewer."""
_AT_ONCE = 64 << 10
"""Bytes that are read within 20 ms or so; more of them are read beside the event loop, which others wait for."""


class StrictRoute(APIRoute):
    """A route whose JSON bodies are read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that reads strictly."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        return parse(body) if len(body) <= _AT_ONCE else await asyncio.to_thread(parse, body)


def parse(body: bytes) -> Any:
    """The value that a body holds; MalformedRequest with a sentence about the first thing that is wrong with it."""
    try:
        # Every value but the first stands behind one of these. Texts have them too, but not so many.
        if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > 16 * MAX_VALUES:
            raise MalformedRequest(_too_many())
        value = json.loads(
            body.decode("utf-8-sig"),
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_number,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: byte {error.start} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise MalformedRequest(_too_deep()) from None
    _check(value)
    return value


def _check(value: Any) -> None:
    """MalformedRequest where lists and objects are nested too deep, or text has half a character (a lone surrogate)."""
    left: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen = 1
    while left:
        path, value = left.pop()
        if isinstance(value, dict | list) and (seen := seen + len(value)) > MAX_VALUES:
            raise MalformedRequest(_too_many())
        if isinstance(value, str):
            _check_text(path, value)
        elif isinstance(value, dict | list) and len(path) == MAX_DEPTH:
            raise MalformedRequest(_too_deep())
        elif isinstance(value, dict):
            for name in value:
                _check_text(path, name)
            left += (((*path, name), item) for name, item in reversed(value.items()))
        elif isinstance(value, list):
            left += (((*path, str(index)), item) for index, item in reversed(list(enumerate(value))))


def _check_text(path: tuple[str, ...], text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = ".".join(path)
        where = f"{place} has" if place else "A name has"
        raise MalformedRequest(f"{where} half a character at position {error.start}.", place or None) from None


def _too_many() -> str:
    return f"The body has more than the limit of {MAX_VALUES} values."


def _too_deep() -> str:
    return f"Lists and objects of the body are nested deeper than the limit of {MAX_DEPTH} levels."


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise MalformedRequest(
            f"The body has a whole number of {len(text.lstrip('-'))} digits, more than the limit of {MAX_DIGITS}."
        )
    return int(text)


def _finite(text: str) -> int | float:
    """A number; a whole one as such: JSON, and its schemas, know no difference between 64 and 64.0."""
    if not math.isfinite(number := float(text)):
        raise MalformedRequest(f"The body has the number {text[:24]}, more than a double holds.")
    return int(number) if number.is_integer() and abs(number) <= _MOST_WHOLE else number


def _no_number(text: str) -> NoReturn:
    raise MalformedRequest(f"The body is not JSON: {text} is no number there.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; what is said twice would mean one thing here, and another to whoever checked it in front of us."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            shown = json.dumps(name[:64])
            raise MalformedRequest(f"The body has the name {shown} twice in one object.", None)
        found[name] = value
    return found
