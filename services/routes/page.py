"""The playground: a page at `/` and its parts out of the package, under a policy that lets nothing else run."""

from dataclasses import MISSING, fields
from os import PathLike, stat_result
from pathlib import Path
from typing import get_type_hints

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from occam.config import STRATEGIES, Pruning

_WEB = Path(__file__).parents[1] / "web"
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' blob:",
    # A video plays where it is uploaded, or from where its address says.
    "media-src blob: http: https:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # Text that would become markup is refused by the browser itself.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked after with its ETag: there are no versions in the names
    "Content-Security-Policy": "; ".join(_POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Parts(StaticFiles):
    """The files, each with the headers above."""

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response


def add_routes(api: FastAPI) -> None:
    """The page and its parts, which need no key: there is nothing of anybody in them."""
    parts = _Parts(directory=_WEB)

    @api.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await parts.get_response("index.html", request.scope)

    @api.get("/static/strategies.json", include_in_schema=False)
    async def strategies() -> Response:
        return JSONResponse({name: _numbers(kind) for name, kind in STRATEGIES.items()}, headers=_HEADERS)

    api.mount("/static", parts)


def _numbers(kind: type[Pruning]) -> dict[str, float | None]:
    """The numbers that a strategy takes, with their defaults; None where there is none."""
    kinds = get_type_hints(kind)
    return {
        field.name: None if field.default is MISSING else field.default
        for field in fields(kind)
        if kinds[field.name] is float
    }
