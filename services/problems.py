"""Errors as they go out over HTTP, all in one shape."""

import logging
from collections.abc import Mapping
from math import ceil
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from occam import errors
from services import errors as service
from services import logs, metrics
from services.middleware import REQUEST_ID_HEADER
from services.sentences import sentence
from services.statuses import NOT_ADMITTED, body_of, error_body, status_of

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}

log = logging.getLogger(__name__)


def request_id(request: Request) -> str:
    """The id that the request came with or was given; the response carries it in the same header."""
    return request.headers[REQUEST_ID_HEADER]


def install(api: FastAPI) -> None:
    """Make every error of `api` come out in the one shape."""
    api.add_exception_handler(errors.OccamError, _ours)
    api.add_exception_handler(RequestValidationError, _malformed)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, _unexpected)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    return response(request, cast(errors.OccamError, error))


def response(request: Request, error: errors.OccamError, challenge: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as it goes out, counted if the request was not admitted; challenge: headers that go with it."""
    status = status_of(error)
    logs.note(error=error.code)
    headers = dict(challenge or {})
    if status in (429, 503):
        retry_after_s = error.retry_after_s if isinstance(error, errors.Overloaded) else 1.0
        headers["Retry-After"] = str(max(1, ceil(retry_after_s)))
    if status in NOT_ADMITTED:
        metrics.REJECTIONS.labels(error.code).inc()
    return JSONResponse(body_of(error, request_id(request)).model_dump(), status, headers)


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    """What pydantic found; the field is named as in the body that was sent."""
    error = cast(RequestValidationError, error)
    return await _ours(request, service.MalformedRequest(*sentence(error.errors(), error.body)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    error = cast(HTTPException, error)
    if isinstance(error.__cause__, errors.OccamError):  # FastAPI's wrapping of what reading the body raised
        return await _ours(request, error.__cause__)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}."
    body = error_body(error.status_code, code, message, None, request_id(request))
    return JSONResponse(body.model_dump(), error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    """Starlette answers these in front of every middleware, so the id goes into the header here."""
    log.error("The service failed on a request.", exc_info=error)
    response = await _ours(request, errors.OccamError("The service failed on this request."))
    response.headers[REQUEST_ID_HEADER] = request_id(request)
    return response
