"""Errors as they go out over HTTP, all in one shape."""

import logging
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from occam import errors
from services import errors as service
from services import metrics
from services.middleware import REQUEST_ID_HEADER
from services.statuses import body_of, error_body, status_of

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
    error = cast(errors.OccamError, error)
    status = status_of(error)
    headers = {}
    if status == 503:
        retry_after_s = error.retry_after_s if isinstance(error, errors.Overloaded) else 1.0
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
        metrics.REJECTIONS.labels(error.code).inc()
    return JSONResponse(body_of(error, request_id(request)).model_dump(), status, headers)


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    """Pydantic's first finding; the field is named as in the body that was sent."""
    finding = cast(RequestValidationError, error).errors()[0]
    place = ".".join(str(part) for part in finding["loc"] if part not in ("body", "path", "query"))
    message = f"{place}: {finding['msg']}." if place else f"{finding['msg']}."
    return await _ours(request, service.MalformedRequest(message, place or None))


async def _http(request: Request, error: Exception) -> JSONResponse:
    error = cast(HTTPException, error)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}."
    body = error_body(error.status_code, code, message, None, request_id(request))
    return JSONResponse(body.model_dump(), error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("request %s failed", request_id(request), exc_info=error)
    return await _ours(request, errors.OccamError("The service failed on this request."))
