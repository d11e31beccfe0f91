"""The other body of `POST /v1/videos`: the video itself, in a form."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.routing import Match
from starlette.types import Scope

from services.errors import WrongContentType
from services.form import FORM, PART, is_form
from services.schemas import VideoBody
from services.tenants import Caller, CountedRoute
from services.videos import Videos

PATH = "/v1/videos"
JSON = "application/json"

FORM_BODY: dict[str, Any] = {
    "requestBody": {
        "description": f"Where the video is (`{JSON}`), or the video itself, as the one part `{PART}` of a form "
        f"(`{FORM}`). A file that was uploaded is kept for as long as its video is.",
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "additionalProperties": False,
                    "properties": {
                        PART: {"type": "string", "format": "binary", "description": "The video file, of any name."}
                    },
                },
                "example": {PART: "(the bytes of clip.mp4)"},
            }
        },
    }
}
"""What the OpenAPI document says of the form, beside what it says of JSON."""


class _FormRoute(CountedRoute):
    """A route of requests whose body is a form; others go on to the next one of the same path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope["type"] == "http" and is_form(scope) else (Match.NONE, {})


def is_upload(scope: Scope) -> bool:
    """Whether a request is an upload, whose body goes to the disk as it comes and is bounded on the way."""
    return scope["method"] == "POST" and scope["path"] == PATH and is_form(scope)


def must_be_json(request: Request) -> None:
    """WrongContentType for a body that is neither JSON nor a form, or does not say what it is."""
    given = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if given != JSON and not (given.startswith("application/") and given.endswith("+json")):
        found = f"is {given[:80]!r}" if given else "has no Content-Type"
        raise WrongContentType(f"The body {found}; it must be {JSON} with a `url`, or {FORM} with a part {PART!r}.")


def add_routes(api: FastAPI, videos: Videos) -> None:
    """The form; to be added before the route that takes JSON, in whose documentation it is described."""

    async def upload_video(request: Request, tenant: Caller) -> VideoBody:
        """Take and describe a video; its frames are encoded in the background."""
        return VideoBody.of(await videos.upload(request, tenant))

    api.router.add_api_route(
        PATH, upload_video, methods=["POST"], route_class_override=_FormRoute, include_in_schema=False
    )
