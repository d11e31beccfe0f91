"""The API's documentation at `/docs`: a page of this process that draws the OpenAPI document, and asks nobody else."""

from importlib.resources import files

from fastapi import FastAPI, Response

_FILES = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs/reference.css": ("reference.css", "text/css; charset=utf-8"),
    "/docs/reference.js": ("reference.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_routes(api: FastAPI) -> None:
    """The page, its style and its script; none of them is part of the document."""
    for path, (name, media_type) in _FILES.items():
        content = files("services.reference").joinpath(name).read_bytes()
        _add(api, path, Response(content, media_type=media_type, headers=_HEADERS))


def _add(api: FastAPI, path: str, response: Response) -> None:
    @api.get(path, include_in_schema=False)
    async def file() -> Response:
        return response
